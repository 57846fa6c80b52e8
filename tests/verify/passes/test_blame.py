"""Which pass breaks a network: known ways to go wrong, alone and together, and the real optimisers."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import onnx
import pass_tool_fake
import pytest

from dlas.cli import _passes
from dlas.core.errors import MissingDependencyError, UnknownNameError
from dlas.core.options import Choice
from dlas.data.dataset import Dataset
from dlas.graph.format import save_model
from dlas.testing import models
from dlas.verify.differential import Verdict
from dlas.verify.passes import PassOutcome, PassReport, blame, pass_tools
from dlas.verify.passes.tool import PassTool

pass_tools._members.pop("fake", None)  # importing it registered it for whatever runs in this process later


@pytest.fixture(autouse=True)
def _fake(monkeypatch: pytest.MonkeyPatch) -> None:
    """The optimiser of these tests is known in them alone."""
    monkeypatch.setitem(pass_tools._members, "fake", pass_tool_fake.Fake)


def tried(*passes: str, **given: object) -> PassReport:
    options = {k: given.pop(k) for k in ("always_negates",) if k in given}
    tool = pass_tool_fake.Fake(passes="+".join(passes), **options)
    return blame(models.residual(), tool, **given)  # type: ignore[arg-type]


def test_an_optimiser_that_is_right_is_tried_once() -> None:
    report = tried(*pass_tool_fake.HARMLESS)
    assert report.right
    assert report.passes == report.culprits == ()
    assert report.attempts == 2
    assert report.bundles[-1].comparison is not None
    assert report.bundles[-1].comparison.verdict is Verdict.EQUAL
    assert json.loads(json.dumps(report.to_dict()))["right"] is True


BREAKING = {
    "negate": (PassOutcome.DIFFERENT, "of 32 labels differ"),
    "nan": (PassOutcome.DIFFERENT, "hold NaN"),
    "raise": (PassOutcome.CRASH, "no idea how to go on"),
    "abort": (PassOutcome.CRASH, "SIGSEGV"),
    "garbage": (PassOutcome.INVALID, "nowhere"),
    "ask-more": (PassOutcome.INVALID, "1 more inputs: "),
    "more-outputs": (PassOutcome.INVALID, "2 outputs, the network 1"),
}


def test_passes_that_break_the_network_alone_are_named() -> None:
    report = tried("nothing", *BREAKING, "tidy")
    assert not report.right
    assert [c.passes for c in report.culprits] == [(name,) for name in BREAKING]
    for culprit, (outcome, reason) in zip(report.culprits, BREAKING.values(), strict=True):
        assert culprit.outcome is outcome
        assert reason in culprit.reason
    outcomes = {p.name: p.outcome for p in report.passes}
    assert outcomes["nothing"] is outcomes["tidy"] is PassOutcome.FINE


@pytest.mark.parametrize(
    "passes",
    [("nothing", "half-a", "tidy", "half-b", "round-a-little"), ("half-b", "half-a")],
)
def test_two_passes_that_are_wrong_only_together_are_found(passes: tuple[str, ...]) -> None:
    report = tried(*passes)
    assert not any(p.outcome.broken for p in report.passes)
    assert [set(c.passes) for c in report.culprits] == [{"half-a", "half-b"}]
    assert report.culprits[0].outcome is PassOutcome.DIFFERENT


def test_a_pair_is_found_behind_passes_that_are_wrong_alone() -> None:
    report = tried("half-a", "raise", "half-b", "garbage", "nothing")
    assert [c.passes for c in report.culprits] == [("raise",), ("garbage",), ("half-a", "half-b")]


def test_other_names_for_inputs_are_no_fault() -> None:
    report = tried("rename")
    assert report.right
    assert report.bundles[0].outcome is PassOutcome.RENAMES_IO
    assert report.bundles[0].reason == "image to x_0"


def test_what_breaks_before_any_pass_is_not_put_on_one() -> None:
    report = tried("nothing", "tidy", always_negates=True)
    assert report.idle.outcome is PassOutcome.DIFFERENT
    assert not report.right
    assert report.culprits == ()


def test_each_pass_is_tried_on_request_and_one_that_hangs_times_out() -> None:
    report = tried("nothing", "round-a-little", each=True, timeout_s=6.0)
    changed = {p.name: p.changed for p in report.passes}
    assert changed["nothing"] is False
    assert changed["round-a-little"] is True
    assert [p.name for p in report.passes if p.outcome is PassOutcome.TIMEOUT] == ["hang"]
    assert len(report.passes) == len(pass_tool_fake.ALL)
    assert report.right
    assert report.culprits == ()


def test_rows_of_a_data_set_are_used() -> None:
    rows = Dataset("tiny", models.images(20, seed=5), np.zeros(20, np.int64))
    report = tried("negate", data=rows, rows=12)
    assert (report.rows, report.random) == (12, False)
    assert "12 of 12" in report.culprits[0].reason


class Absent(PassTool):
    name = "absent"
    requires = {"no_such_library": "opt"}  # noqa: RUF012

    def passes(self, model: bytes) -> list[str]:
        return []

    def run(self, model: bytes, passes: object) -> bytes:
        return model


def test_a_missing_optimiser_names_the_extra() -> None:
    with pytest.raises(MissingDependencyError, match="no_such_library"):
        blame(models.residual(), Absent())


def _member(name: str) -> PassTool:
    choice = Choice.parse(name)
    kind = pass_tools.get(choice.name)
    if kind.missing():
        pytest.skip(f"{choice.name} {kind.missing()}")
    return kind(**choice.as_dict())


@pytest.mark.parametrize(
    "name",
    ["onnxoptimizer", "onnxslim", "onnxsim", "ort", pytest.param("tvm:opt=O1", marks=pytest.mark.slow)],
)
def test_the_real_optimisers_are_right_on_a_small_network(name: str) -> None:
    report = blame(models.residual(), _member(name), each=name == "onnxoptimizer")
    assert report.right, report.bundles
    assert not report.idle.outcome.broken
    assert report.version
    if name == "onnxoptimizer":
        bad = {p.name: p.outcome for p in report.passes if p.outcome is not PassOutcome.FINE}
        assert bad == {
            "lift_lexical_references": PassOutcome.CRASH,
            "split_init": PassOutcome.INVALID,
            "split_predict": PassOutcome.INVALID,
            "rename_input_output": PassOutcome.RENAMES_IO,
        }


@pytest.mark.parametrize(
    ("name", "passes"),
    [
        ("onnxoptimizer", ["fuse_bn_into_conv"]),
        ("onnxslim", ["FusionConvBN"]),
        ("onnxsim", ["fuse_bn_into_conv"]),
        ("ort:level=basic", ["ConvBNFusion"]),
    ],
)
def test_one_pass_alone_does_its_work_and_no_pass_none(name: str, passes: list[str]) -> None:
    import onnx

    tool = _member(name)
    model = models.residual().to_bytes()
    assert set(passes) <= set(tool.bundle(model)) <= set(tool.passes(model))

    def norms(result: bytes) -> int:
        return sum(n.op_type == "BatchNormalization" for n in onnx.ModelProto.FromString(result).graph.node)

    assert norms(tool.run(model, [])) == 2
    assert norms(tool.run(model, passes)) == 0
    assert norms(tool.run(model, [p for p in tool.bundle(model) if p not in passes])) == 2


def test_levels_are_tried_from_the_weakest_up() -> None:
    assert [t.spelled() for t in _member("ort:level=extended").bundles()] == [
        "ort:level=disable",
        "ort:level=basic",
        "ort:level=extended",
    ]
    assert [t.spelled() for t in pass_tools.get("tvm")().bundles()] == [
        "tvm:opt=O0",
        "tvm:opt=O1",
        "tvm:opt=O2",
        "tvm",
    ]


def test_onnx_runtime_knows_every_rewrite_rule_by_the_name_we_call_it() -> None:
    import onnxruntime

    from dlas.verify.passes.tools.ort import RULES

    (library,) = Path(onnxruntime.__file__).parent.glob("capi/onnxruntime_pybind11_state*.so")
    content = library.read_bytes()
    assert [rule for rule in RULES if b"\0" + rule.encode() + b"\0" not in content] == []


def test_onnx_runtime_tells_its_transformers_and_without_optimisation_none() -> None:
    model = models.residual().to_bytes()
    found = _member("ort").passes(model)
    assert {"ConstantFolding", "ConvActivationFusion", "NchwcTransformer"} <= set(found)
    assert "MemcpyTransformer" not in found
    assert "ConvActivationFusion" not in _member("ort:level=basic").passes(model)
    assert _member("ort:level=disable").passes(model) == []


def test_a_session_that_fails_is_known_by_what_it_logged_until_then() -> None:
    from dlas.verify.passes.tools import ort

    assert ort._logged(b"no network", "all") == []
    proto = models.residual().to_proto()
    proto.graph.node[-1].domain = "nowhere"
    assert ort._logged(proto.SerializeToString(), "all") == []


def test_the_optimisations_of_onnx_runtime_are_not_their_own_noise_floor() -> None:
    """Or whatever they break would be called noise."""
    paths = {
        name: blame(models.residual(), _member(name)).floor.paths for name in ("ort:level=basic", "fake")
    }
    assert "optimisations" in paths["fake"]
    assert "optimisations" not in paths["ort:level=basic"]


def test_tvm_does_the_passes_it_is_told_in_order() -> None:
    _member("tvm")
    from dlas.verify.passes.tools.tvm import _sequence

    def names(*passes: str) -> list[str]:
        return [step.info.name for step in _sequence(passes)]

    assert names("LegalizeOps") == ["LegalizeOps"]
    assert names("FuseOps+FuseTIR") == ["LegalizeOps", "AnnotateTIROpPattern", "FuseOps", "FuseTIR"]
    assert names("LegalizeOps", "FoldConstant", "FuseOps+FuseTIR") == [
        "LegalizeOps",
        "AnnotateTIROpPattern",
        "FoldConstant",
        "FuseOps",
        "FuseTIR",
    ]


def test_the_command_prints_and_leaves_with_what_it_found(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    save_model(models.residual(), tmp_path / "net.onnx")
    source = str(tmp_path / "net.onnx")
    assert _passes.passes_command(source, "ort:level=basic") == 0
    told = capsys.readouterr()
    assert "all of ort:level=basic" in told.out
    assert "noise floor" in told.err
    assert _passes.passes_command(source, "fake:passes=half-a+half-b+raise", rows=8) == 1
    told = capsys.readouterr()
    assert "half-a + half-b" in told.out
    assert "2 of 3 passes are fine alone: not raise" in told.err
    assert _passes.passes_command(source, "fake:passes=negate,always_negates", json=True) == 1
    told = capsys.readouterr()
    assert json.loads(told.out)["idle"]["outcome"] == "different"
    with pytest.raises(UnknownNameError):
        _passes.passes_command(source, "onnxoptimiser")


def test_a_network_that_comes_back_as_it_was_is_not_run_again(monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.verify.passes import _attempts

    model = models.residual()
    spec = model.inputs[0]
    rows = {spec.name: np.zeros(spec.bound(2), np.float32)}
    _attempts.begin("pass_tool_fake", model.to_bytes(), rows, False)
    found = _attempts.attempt("fake", ["nothing"])
    assert found["same"] is True
    assert "arrays" not in found
    assert "same" not in _attempts.attempt("fake", ["round-a-little"])
    monkeypatch.setattr(pass_tool_fake.Fake, "run", lambda self, model, passes: with_a_shape(model))
    assert "same" not in _attempts.attempt("fake", ["nothing"])  # a shape that was not recorded may be wrong


def with_a_shape(model: bytes) -> bytes:
    proto = onnx.ModelProto.FromString(model)
    output = proto.graph.node[0].output[0]
    del proto.graph.value_info[:]
    proto.graph.value_info.append(onnx.helper.make_tensor_value_info(output, onnx.TensorProto.FLOAT, None))
    return proto.SerializeToString(deterministic=True)
