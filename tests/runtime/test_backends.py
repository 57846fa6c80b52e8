"""Every registered back end against the conformance suite, and what is particular to each."""

from __future__ import annotations

import dataclasses
import functools
import platform
import shutil
import subprocess
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest

from dlas.compress.unsigned import unsigned_activations
from dlas.core.errors import OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.reference import Reference
from dlas.hardware.target import Target, target_for
from dlas.runtime.backend import backend_for, backends
from dlas.testing import models
from dlas.testing.backends import BackendSuite, sqnr_db

SLOW = {"executorch", "iree"}  # their compilers take seconds for the smallest network

# Every registered back end with its defaults; a new one is tested without a line here.
for _name in backends.names():
    _suite = "Test" + _name.title().replace("-", "")
    _made = type(_suite, (BackendSuite,), {"backend": _name})
    globals()[_suite] = pytest.mark.slow(_made) if _name in SLOW else _made


class TestOnnxruntimeDisabled(BackendSuite):
    backend = "onnxruntime:level=disable"


class TestLitertBuiltin(BackendSuite):
    backend = "litert:kernels=builtin"


class TestLitertReference(BackendSuite):
    backend = "litert:kernels=reference"


@pytest.mark.slow
class TestIreeLowered(BackendSuite):
    backend = "iree:opt=O0"


@pytest.mark.slow
class TestTvmLowered(BackendSuite):
    backend = "tvm:opt=O0"


@pytest.mark.slow
class TestTvmSimplified(BackendSuite):
    backend = "tvm:opt=O3"


class TestTorchChannelsLast(BackendSuite):
    backend = "torch:mode=channels_last"


needs = {
    name: pytest.mark.skipif(
        bool(backends.get(name).missing()), reason=f"{name} {backends.get(name).missing()}"
    )
    for name in backends.names()
}


def test_the_onnxruntime_runner_is_the_bare_call():
    with backend_for("onnxruntime").compile(models.residual()) as loaded:
        runner = loaded.runner({"image": models.images()})
        assert isinstance(runner, functools.partial)
        assert runner.func == loaded._session.run
        assert runner.args[0] is None


@pytest.mark.parametrize("level", ["disable", "basic", "extended", "layout", "all"])
def test_onnxruntime_levels_fuse_more_and_more(level):
    with backend_for(f"onnxruntime:level={level}").compile(models.residual()) as loaded:
        rows = loaded.profile({"image": models.images()}, repeats=1)
    kinds = [r.op for r in rows]
    assert "BatchNormalization" not in kinds  # folded before any back end sees the network
    alone = {
        "disable": 3,
        "basic": 3,
        "extended": 1,
        "layout": 0,
        "all": 0,
    }  # activations that no layer took in
    assert kinds.count("Relu") == alone[level]


def test_onnxruntime_fuses_residual_blocks_of_int8_networks():
    model, inputs = models.residual_quantized(), {"image": models.images()}
    answers, kinds = {}, {}
    for unsigned in ("true", "false"):
        with backend_for(f"onnxruntime:unsigned={unsigned}").compile(model) as loaded:
            answers[unsigned] = loaded.run(inputs)["logits"]
            kinds[unsigned] = [r.op for r in loaded.profile(inputs, repeats=1)]
            assert (loaded.notes != ()) is (unsigned == "true" and platform.machine() == "x86_64")
    assert sqnr_db(answers["false"], answers["true"]) > 30
    if platform.machine() == "x86_64":
        assert kinds["true"].count("QLinearConv") == 3
        assert "QLinearAdd" in kinds["true"]


def test_unsigned_activations_are_the_same_numbers():
    model = models.residual_quantized()
    graph = model.editable()
    assert unsigned_activations(graph) == sum(n.op_type == "QuantizeLinear" for n in model.ir.graph)
    changed = dataclasses.replace(model, ir=graph)
    onnx.checker.check_model(changed.to_proto(), full_check=True)
    inputs = {"image": models.images(4)}
    with Reference(model, level="disable") as before, Reference(changed, level="disable") as after:
        np.testing.assert_array_equal(before.run(inputs)["logits"], after.run(inputs)["logits"])


def test_grids_that_are_arrays_of_one_element_still_run():
    proto = models.residual_quantized().to_proto()
    for tensor in proto.graph.initializer:
        if tensor.name.endswith(("_scale", "_zero")) and not tensor.dims:
            tensor.dims.append(1)
    assert unsigned_activations(Model.from_proto(proto).editable()) == 0
    with backend_for("onnxruntime:level=basic").compile(Model.from_proto(proto)) as loaded:
        assert np.isfinite(loaded.run({"image": models.images()})["logits"]).all()


def test_int8_inputs_and_outputs_stay_int8():
    proto = models.residual_quantized().to_proto()
    last = next(n for n in proto.graph.node if n.output[0] == "logits")
    proto.graph.node.remove(last)
    proto.graph.output[0].CopyFrom(
        onnx.helper.make_tensor_value_info(last.input[0], onnx.TensorProto.INT8, ["N", 10])
    )
    model = Model.from_proto(proto)
    with backend_for("onnxruntime").compile(model) as loaded, Reference(model, level="disable") as reference:
        inputs = {"image": models.images()}
        found, wanted = loaded.run(inputs)["fc_q"], reference.run(inputs)["fc_q"]
    assert found.dtype.name == "int8"
    assert abs(found.astype(int) - wanted.astype(int)).max() <= 2


@needs["openvino"]
def test_openvino_says_which_precision_it_uses():
    with backend_for("openvino").compile(models.residual()) as loaded:
        assert loaded.notes == ()
    from openvino import Core

    can = Core().get_property("CPU", "OPTIMIZATION_CAPABILITIES")
    with backend_for("openvino:precision=f16").compile(models.residual()) as loaded:
        assert (loaded.notes == ()) is ("FP16" in can)


@needs["openvino"]
def test_openvino_computes_in_float32_unless_asked():
    inputs = {"image": models.images()}
    with backend_for("onnxruntime").compile(models.residual()) as loaded:
        expected = loaded.run(inputs)["logits"]
    with backend_for("openvino:precision=bf16").compile(models.residual()) as loaded:
        if not loaded.notes:
            assert 20 < sqnr_db(expected, loaded.run(inputs)["logits"]) < 80
    with backend_for("openvino").compile(models.residual()) as loaded:
        assert sqnr_db(expected, loaded.run(inputs)["logits"]) > 100


@needs["tvm"]
@pytest.mark.skipif(
    platform.machine() != "x86_64" or not shutil.which("objdump"), reason="reads x86-64 code with objdump"
)
def test_tvm_generates_the_instruction_set_it_is_told(tmp_path):
    sizes = {}
    for isa in ("x86-64-v2", "x86-64-v4"):
        folder = tmp_path / isa
        folder.mkdir()
        backend_for("tvm").build(models.residual(), _FakeHost(isa=isa), folder)
        sizes[isa] = b"zmm" in _disassembly(folder / "lib.so")
    assert sizes == {"x86-64-v2": False, "x86-64-v4": True}


@needs["tvm"]
def test_tvm_fuses_from_level_two_on():
    names = {}
    for level in ("O1", "O2"):
        with backend_for(f"tvm:opt={level}").compile(models.residual()) as loaded:
            names[level] = [r.name for r in loaded.profile({"image": models.images()}, repeats=1)]
    fused = {level: sum(n.startswith("fused_") for n in found) for level, found in names.items()}
    assert fused["O1"] == 0
    assert fused["O2"] > 0


@needs["tvm"]
def test_tvm_says_that_more_threads_do_not_help():
    with backend_for("tvm").compile(models.residual(), threads=2) as loaded:
        assert any("one thread" in note for note in loaded.notes)


@pytest.mark.parametrize("name", backends.names())
def test_an_operator_nobody_knows_is_unsupported(name):
    if backends.get(name).missing():
        pytest.skip(backends.get(name).missing())
    model = models.residual()
    graph = model.editable()
    next(n for n in graph.graph if n.op_type == "MaxPool").domain = "com.example"
    graph.opset_imports["com.example"] = 1
    foreign = Model(graph, "foreign")
    assert "com.example" in backend_for(name).supports(foreign, target_for("host"))
    with pytest.raises(UnsupportedError, match=r"com\.example"):
        backend_for(name).compile(foreign)


@pytest.mark.parametrize("name", backends.names())
def test_unbound_dimensions_are_unsupported(name):
    if backends.get(name).missing():
        pytest.skip(backends.get(name).missing())
    graph = models.residual().editable()
    graph.graph.inputs[0].shape = ir.Shape(["N", 3, "height", 12])
    with pytest.raises(UnsupportedError, match="height"):
        backend_for(name).compile(Model(graph, "unbound"))


@pytest.mark.parametrize("name", backends.names())
def test_an_unusable_target_is_refused(name):
    if backends.get(name).missing():
        pytest.skip(backends.get(name).missing())
    with pytest.raises(UnsupportedError, match="made up"):
        backend_for(name).compile(models.residual(), _FakeHost(isa="native", reason="made up"))


@pytest.mark.parametrize(
    "choice",
    [
        "onnxruntime:level=most",
        "litert:kernels=fast",
        "tvm:opt=O9",
        "torch:mode=jit",
        "openvino:precision=f8",
        "iree:opt=O9",
        "executorch:delegate=qnn",
    ],
)
def test_option_values_are_checked(choice):
    if backends.get(choice.split(":")[0]).missing():
        pytest.skip("not installed")
    with pytest.raises(OptionError, match="one of"):
        backend_for(choice)


class _FakeHost(Target):
    """A target that says what it is told to say."""

    def __init__(self, isa: str, reason: str = "") -> None:
        super().__init__()
        self._isa, self._reason = isa, reason

    @property
    def memory_bytes(self) -> int:
        return 2**30

    @property
    def isa(self) -> str:
        return self._isa

    def unusable(self) -> str:
        return self._reason


def _disassembly(path: Path) -> bytes:
    found = subprocess.run(
        ["objdump", "-d", "--no-show-raw-insn", str(path)], capture_output=True, check=True
    )
    return found.stdout


def test_a_back_end_that_chooses_its_instructions_is_not_measured_under_another_name():
    model = models.residual()
    with pytest.raises(UnsupportedError, match="cannot be held to x86-64-v2"):
        backend_for("onnxruntime").compile(model, "host:isa=x86-64-v2")
    for name in ("tvm", "iree"):
        if not backends.get(name).missing():
            assert backend_for(name).refusal(model, target_for("host:isa=x86-64-v2")) == ""


@needs["iree"]
def test_iree_runs_code_of_a_lower_instruction_set_and_at_every_level():
    inputs = {"image": models.images()}
    with Reference(models.residual(), level="disable") as reference:
        wanted = reference.run(inputs)["logits"]
    for level, isa in (("O1", "x86-64-v2"), ("O3", "native")):
        with backend_for(f"iree:opt={level}").compile(models.residual(), f"host:isa={isa}") as loaded:
            assert sqnr_db(wanted, loaded.run(inputs)["logits"]) > 100


@needs["iree"]
def test_iree_names_what_it_cannot_import():
    graph = models.residual().editable()
    next(n for n in graph.graph if n.op_type == "MaxPool").op_type = "StringNormalizer"
    with pytest.raises(UnsupportedError, match=r"IREE refuses this network: .*StringNormalizer"):
        backend_for("iree").compile(Model(graph, "odd"))
