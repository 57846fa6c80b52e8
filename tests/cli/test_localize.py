"""``dlas localize``: what it finds, what it leaves with, and that a reproducer really reproduces."""

from __future__ import annotations

import json
from collections.abc import Callable
from pathlib import Path

import faulty
import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from dlas.cli.main import run_command
from dlas.verify.localize import report


@pytest.fixture(scope="module")
def place(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Source, targets and rows as files."""
    folder = tmp_path_factory.mktemp("nets")
    faulty.write_all(folder)
    return folder


@pytest.fixture
def at_once(monkeypatch: pytest.MonkeyPatch) -> None:
    """The work of the worker in this process, which does not have to start one."""
    monkeypatch.setattr(report, "run_in_worker", faulty.called_here)


@pytest.fixture
def run(place: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Callable:
    """Runs the command there; exit code, standard output and standard error."""
    monkeypatch.chdir(place)

    def run(*words: str) -> tuple[int, str, str]:
        code = run_command(["localize", *words])
        captured = capsys.readouterr()
        assert "Traceback" not in captured.err
        return code, captured.out, captured.err

    return run


def test_a_fault_is_named_and_leaves_with_1(run: Callable) -> None:
    code, out, err = run("source.onnx", "pads.onnx", "--data", "rows.npz")
    assert code == 1
    row = next(line for line in out.splitlines() if line.startswith("1 "))
    assert row.split()[:4] == ["1", "attribute", "conv3", "conv3"]
    assert "pads is (0, 0, 2, 2), the source has (1, 1, 1, 1)" in row
    assert "pads.onnx against source.onnx: measured on 32 samples" in err
    assert "explain place 1 of 1: conv3" in err  # from the worker, while it works


@pytest.mark.usefixtures("at_once")
def test_no_fault_leaves_with_0(run: Callable) -> None:
    code, out, err = run("source.onnx", "same.onnx", "--data", "rows.npz")
    assert (code, out) == (0, "")
    assert "no fault found" in err


@pytest.mark.parametrize(
    ("flips", "code", "words"), [(2, 0, "rounding that adds up"), (12, 1, "feed more samples")]
)
def test_labels_that_no_fault_explains_are_not_passed_over(
    run: Callable, monkeypatch: pytest.MonkeyPatch, flips: int, code: int, words: str
) -> None:
    found = report.LocalizeReport("a", "b", (), flips, 32, False, 9, 9, 0.1, 0.0, {})
    monkeypatch.setattr("dlas.api.localize", lambda *_, **__: found)
    left, out, err = run("source.onnx", "same.onnx")
    assert (left, out) == (code, "")
    assert words in err


def test_another_network_does_not_fill_the_screen(run: Callable, monkeypatch: pytest.MonkeyPatch) -> None:
    fault = {
        "fault": "graph", "target_node": "a", "source_node": "b", "error_before": None, "error_after": None,
        "flips": -3, "detail": "an operator", "hint": "a converter did this",
    }  # fmt: skip
    found = report.LocalizeReport(
        "a", "b", (fault,) * 50, 9, 32, False, 9, 9, 0.1, 0.0, {}, tuple(f"note {i}" for i in range(5))
    )
    monkeypatch.setattr("dlas.api.localize", lambda *_, **__: found)
    code, out, err = run("source.onnx", "same.onnx")
    assert code == 1
    assert len(out.splitlines()) == 21  # with the head
    assert "no result" in out
    assert "30 more, see --json; perhaps the two are not the same network" in err
    assert err.count("a converter did this") == 1
    assert "note: 2 more, see --json" in err
    assert len(json.loads(run("source.onnx", "same.onnx", "--json")[1])["faults"]) == 50


@pytest.mark.usefixtures("at_once")
def test_random_numbers_that_saturate_an_integer_input_are_named(run: Callable, place: Path) -> None:
    """No fault can be told from the damage that such samples do."""
    proto = onnx.ModelProto.FromString(faulty.conversion().to_bytes())
    proto.graph.input[0].type.tensor_type.elem_type = TensorProto.INT8
    proto.graph.input[0].name = "codes"
    proto.graph.node.insert(
        0, helper.make_node("DequantizeLinear", ["codes", "scale", "zero"], ["input"], name="real")
    )
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.float32(0.001), "scale"))
    proto.graph.initializer.append(onnx.numpy_helper.from_array(np.int8(0), "zero"))
    (place / "int8.onnx").write_bytes(proto.SerializeToString())
    _, _, err = run("source.onnx", "int8.onnx", "--rows", "4")
    assert "the input of int8.onnx holds -0.128 to 0.127 in steps of 0.001: the random numbers lose" in err
    assert "lose" not in run("source.onnx", "same.onnx", "--rows", "4")[2]


@pytest.mark.usefixtures("at_once")
def test_without_data_random_numbers_are_fed_and_said_to_be(run: Callable) -> None:
    code, _, err = run("source.onnx", "pads.onnx", "--rows", "5")
    assert code == 1
    assert "5 random samples" in err


@pytest.mark.usefixtures("at_once")
def test_json_holds_everything_and_nothing_else(run: Callable) -> None:
    code, out, _ = run("source.onnx", "two.onnx", "--data", "rows.npz", "--json")
    found = json.loads(out)
    assert code == 1
    assert [(f["fault"], f["target_node"]) for f in found["faults"]] == [
        ("parameter", "conv4"),
        ("graph", "linear.softmax"),
    ]
    assert {"kind", "detail", "error_before", "error_after", "flips", "hint", "source_node"} <= found[
        "faults"
    ][0].keys()
    assert found["faults"][0]["error_before"] == pytest.approx(0.5, abs=0.01)
    assert found["faults"][0]["error_after"] < 1e-4
    assert found["rows"] == 32
    assert found["random"] is False
    assert found["reproducers"] == []


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize("target", ["pads", "two"])
def test_reproducers_reproduce(run: Callable, tmp_path: Path, target: str) -> None:
    """Whoever gets the two files sees the fault with ONNX Runtime alone."""
    import onnxruntime as ort

    folder = tmp_path / "new" / "folder"
    _, out, _ = run(
        "source.onnx", f"{target}.onnx", "--data", "rows.npz", "--reproducers", str(folder), "--json"
    )
    found = json.loads(out)
    assert len(found["reproducers"]) == len(found["faults"]) > 0
    for path in map(Path, found["reproducers"]):
        proto = onnx.load(path)
        onnx.checker.check_model(proto)
        assert 1 <= len(proto.graph.node) <= 3
        samples = np.load(path.with_suffix(".npz"))
        session = ort.InferenceSession(str(path), providers=["CPUExecutionProvider"])
        given = {k.removeprefix("input:"): samples[k] for k in samples if k.startswith("input:")}
        assert given.keys() == {i.name for i in session.get_inputs()}
        (result,) = session.run(None, given)
        expected = samples["expected"]
        assert np.linalg.norm(result - expected) > 0.05 * np.linalg.norm(expected)
    assert len(list(folder.iterdir())) == 2 * len(found["faults"])


@pytest.mark.usefixtures("at_once")
def test_reproducers_that_cannot_be_written(run: Callable, tmp_path: Path) -> None:
    (tmp_path / "file").write_text("kept")
    code, _, err = run(
        "source.onnx", "pads.onnx", "--data", "rows.npz", "--reproducers", str(tmp_path / "file")
    )
    assert code == 2
    assert "file" in err.splitlines()[-1]
    assert (tmp_path / "file").read_text() == "kept"


@pytest.mark.usefixtures("at_once")
def test_no_folder_is_made_where_there_is_no_fault(run: Callable, tmp_path: Path) -> None:
    assert run("source.onnx", "same.onnx", "--data", "rows.npz", "--reproducers", str(tmp_path / "r"))[0] == 0
    assert not (tmp_path / "r").exists()


# --- input that is not what it should be ---------------------------------------------------------------------------


def _other_classes(path: Path) -> None:
    model = faulty.conversion()
    proto = onnx.ModelProto.FromString(model.to_bytes())
    for tensor in proto.graph.initializer:
        if tensor.name.startswith("linear."):
            array = onnx.numpy_helper.to_array(tensor)
            tensor.CopyFrom(onnx.numpy_helper.from_array(array[:7].copy(), tensor.name))
    proto.graph.output[0].type.tensor_type.shape.dim[1].dim_value = 7
    path.write_bytes(proto.SerializeToString())


def _batch_of_four(path: Path) -> None:
    proto = onnx.ModelProto.FromString(faulty.conversion(faulty.pads).to_bytes())
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 4
    del proto.graph.value_info[:]
    path.write_bytes(proto.SerializeToString())


def _gives_nan(path: Path) -> None:
    node = helper.make_node("Log", ["input"], ["y"])
    flat = helper.make_node("Flatten", ["y"], ["logits"])
    graph = helper.make_graph(
        [node, flat],
        "net",
        [helper.make_tensor_value_info("input", TensorProto.FLOAT, ["N", 1, 8, 8])],
        [helper.make_tensor_value_info("logits", TensorProto.FLOAT, ["N", 64])],
    )
    shifted = helper.make_node("Sub", ["input", "one"], ["s"])
    node.input[0] = "s"
    graph.node.insert(0, shifted)
    graph.initializer.append(onnx.numpy_helper.from_array(np.float32(2), "one"))
    path.write_bytes(
        helper.make_model(
            graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10
        ).SerializeToString()
    )


@pytest.mark.usefixtures("at_once")
@pytest.mark.parametrize(
    ("make", "words"),
    [
        (None, "other.onnx"),
        (lambda path: path.write_bytes(b"\x08\x0a" + b"x" * 50), "other.onnx"),
        (lambda path: path.write_bytes(faulty.conversion().to_bytes()[:3000]), "other.onnx"),
        (_other_classes, "7"),
        (_batch_of_four, "4 samples"),
    ],
    ids=["missing", "rubbish", "cut", "other classes", "batch of four"],
)
def test_a_target_that_cannot_be_compared_leaves_with_2(
    run: Callable, place: Path, make: Callable[[Path], None] | None, words: str
) -> None:
    path = place / "other.onnx"
    path.unlink(missing_ok=True)
    if make is not None:
        make(path)
    code, out, err = run("source.onnx", "other.onnx", "--data", "rows.npz")
    assert (code, out) == (2, "")
    assert words in err.splitlines()[-1]


@pytest.mark.usefixtures("at_once")
def test_networks_that_have_nothing_in_common_leave_with_2(run: Callable, place: Path) -> None:
    def other_weights(graph: ir.Model) -> None:
        rng = np.random.default_rng(3)
        for value in graph.graph.initializers.values():
            if value.const_value is not None and value.const_value.size > 10:
                array = rng.standard_normal(value.const_value.shape).astype(np.float32)
                value.const_value = ir.tensor(array, name=value.name)

    faulty.write(place / "stranger.onnx", faulty.conversion(other_weights))
    code, out, err = run("source.onnx", "stranger.onnx", "--data", "rows.npz")
    assert (code, out) == (2, "")
    assert "the networks do not correspond" in err.splitlines()[-1]


@pytest.mark.usefixtures("at_once")
def test_a_source_that_gives_no_numbers_is_to_blame_itself(run: Callable, place: Path) -> None:
    _gives_nan(place / "nan.onnx")
    code, _, err = run("nan.onnx", "nan.onnx", "--data", "rows.npz")
    assert code == 2
    assert "the source's own output 'logits' is not finite" in err


@pytest.mark.usefixtures("at_once")
def test_rows_that_fit_neither_network(run: Callable, place: Path) -> None:
    np.savez(place / "wide.npz", x=np.zeros((4, 3, 9, 9), np.float32), y=np.zeros(4, np.int64))
    code, _, err = run("source.onnx", "pads.onnx", "--data", "wide.npz")
    assert code == 2
    assert "9" in err.splitlines()[-1]


@pytest.mark.parametrize(
    ("words", "message"),
    [
        (["source.onnx"], "target and path"),
        (["source.onnx", "pads.onnx", "--path", "ort:O0"], "one of the two"),
        (["source.onnx", "--path", "nonsense:O9"], "nonsense"),
        (["source.onnx", "--path", "ort:O0..O2"], "one back end at one level"),
        (["source.onnx", "pads.onnx", "--rows", "0"], "--rows"),
        (["source.onnx", "pads.onnx", "--budget", "0"], "--budget"),
        (["source.onnx", "pads.onnx", "--data", "none.npz"], "none.npz"),
        (["source.onnx", "pads.onnx", "--architecture", "cifar-resnet"], "architecture"),
    ],
    ids=lambda v: " ".join(v) if isinstance(v, list) else "",
)
def test_wrong_arguments_leave_with_2(run: Callable, words: list[str], message: str) -> None:
    code, out, err = run(*words)
    assert (code, out) == (2, "")
    assert message in err


def test_a_worker_that_is_killed_is_one_line(
    run: Callable, monkeypatch: pytest.MonkeyPatch, tmp_path: Path
) -> None:
    real = report.run_in_worker
    monkeypatch.setattr(report, "run_in_worker", lambda _, *given, **o: real("localize_traps:die", **o))
    monkeypatch.setenv("TMPDIR", str(tmp_path))
    monkeypatch.setattr("tempfile.tempdir", str(tmp_path))
    code, out, err = run("source.onnx", "pads.onnx", "--data", "rows.npz")
    assert code not in (0, 3)
    assert out == ""
    last = err.splitlines()[-1]
    assert last.startswith("dlas: ")
    assert "killed" in last or "SIGKILL" in last
    assert [p for p in tmp_path.rglob("*") if p.is_file()] == []


def test_a_back_end_is_searched(run: Callable) -> None:
    code, out, err = run("source.onnx", "--path", "ort:all", "--data", "rows.npz", "--rows", "4")
    assert (code, out) == (0, "")
    assert "source.onnx on ort:all" in err
