"""Comparisons of files: what is said besides the verdict, so that a user looks for the fault in the right place."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper

import dlas
from dlas.graph.format import load_model
from dlas.graph.signature import clipped_share
from dlas.verify.differential.compare import compare_layers

CLASSES, SIZE = 3, 8


def _save(
    path: Path, nodes: list, inputs: int, outputs: list[str], scale: float = 1.0, zero: int = 0
) -> Path:
    weights = np.random.default_rng(0).standard_normal((SIZE, CLASSES)).astype(np.float32)
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", inputs, ["N", SIZE])],
        [helper.make_tensor_value_info(name, TensorProto.FLOAT, ["N", CLASSES]) for name in outputs],
        [
            onnx.numpy_helper.from_array(weights, "w"),
            onnx.numpy_helper.from_array(np.float32(scale), "scale"),
            onnx.numpy_helper.from_array(np.int8(zero), "zero"),
        ],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, path)
    return path


def _float(path: Path) -> Path:
    return _save(path, [helper.make_node("MatMul", ["x", "w"], ["y"])], TensorProto.FLOAT, ["y"])


def _int8(path: Path, scale: float, zero: int) -> Path:
    nodes = [
        helper.make_node("DequantizeLinear", ["x", "scale", "zero"], ["real"]),
        helper.make_node("MatMul", ["real", "w"], ["y"]),
    ]
    return _save(path, nodes, TensorProto.INT8, ["y"], scale, zero)


@pytest.fixture
def rows(tmp_path: Path) -> Path:
    path = tmp_path / "rows.npz"
    x = np.random.default_rng(1).uniform(-1, 1, (60, SIZE)).astype(np.float32)
    np.savez(path, x=x, y=np.zeros(60, np.int64))
    return path


def test_an_integer_input_that_cannot_hold_the_rows_is_named(tmp_path: Path, rows: Path) -> None:
    # Calibrated for 0..1 and given -1..1: half of the values saturate, and the weights are not to blame.
    report = dlas.compare(_float(tmp_path / "a.onnx"), _int8(tmp_path / "b.onnx", 1 / 255, -128), data=rows)
    assert not report.right
    assert "int8 input holds 0 to 1" in report.paths[0].reason
    fits = dlas.compare(tmp_path / "a.onnx", _int8(tmp_path / "c.onnx", 1 / 127, 0), data=rows)
    assert "input holds" not in fits.paths[0].reason


def test_the_clipped_share_is_counted(tmp_path: Path) -> None:
    model = load_model(_int8(tmp_path / "b.onnx", 0.5, 0))
    x = np.zeros((2, SIZE), np.float32)
    x[0, :4] = 100, -100, 63.5, -64  # the grid ends at 63.5 and -64
    assert clipped_share(x, model) == (2 / 16, -64.0, 63.5)
    assert clipped_share(x, load_model(_float(tmp_path / "a.onnx")))[0] == 0


def _two(path: Path, second: str) -> Path:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["y"]), helper.make_node(second, ["y"], ["z"])]
    return _save(path, nodes, TensorProto.FLOAT, ["y", "z"])


def test_every_output_is_compared(tmp_path: Path, rows: Path) -> None:
    two = _two(tmp_path / "two.onnx", "Relu")
    same = dlas.compare(two, two, data=rows)
    assert same.right
    assert list(same.paths[0].others) == ["z"]
    other = dlas.compare(two, _two(tmp_path / "other.onnx", "Neg"), data=rows).paths[0]
    assert str(other.comparison.verdict) == "equal"  # type: ignore[union-attr]
    assert not other.verdict.right
    assert other.reason.startswith("output 'z': ")


def test_a_missing_output_is_wrong(tmp_path: Path, rows: Path) -> None:
    report = dlas.compare(_two(tmp_path / "two.onnx", "Relu"), _float(tmp_path / "a.onnx"), data=rows)
    assert not report.right
    assert report.paths[0].reason == "output 'z': it is missing"


@pytest.mark.parametrize("operator", ["Add", pytest.param("Sub", marks=pytest.mark.slow)])
def test_networks_with_several_inputs_are_fed_by_name(tmp_path: Path, operator: str) -> None:
    def save(name: str, given: list[str], operator: str) -> Path:
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", SIZE]) for n in given]
        out = [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", SIZE])]
        graph = helper.make_graph([helper.make_node(operator, ["a", "b"], ["y"])], "net", info, out)
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
            tmp_path / name,
        )
        return tmp_path / name

    source = save("a.onnx", ["a", "b"], "Sub")
    report = dlas.compare(source, save("b.onnx", ["b", "a"], operator))
    assert report.right == (operator == "Sub")


def test_outputs_that_name_no_class_can_be_wrong(tmp_path: Path) -> None:
    def save(name: str, kind: str) -> Path:
        info = [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 3, 4, 4]) for n in "xy"]
        graph = helper.make_graph([helper.make_node(kind, ["x"], ["y"])], "net", info[:1], info[1:])
        onnx.save(
            helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10),
            tmp_path / name,
        )
        return tmp_path / name

    report = dlas.compare(save("a.onnx", "Relu"), save("b.onnx", "Abs"))
    assert [str(p.verdict) for p in report.paths] == ["score-diff"]
    assert not report.right


def test_another_shape_shows_no_differences(
    tmp_path: Path, rows: Path, capsys: pytest.CaptureFixture
) -> None:
    from dlas.cli.compare import show

    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["m"]),
        helper.make_node("Concat", ["m", "m"], ["y"], axis=1),
    ]
    wide = _save(tmp_path / "wide.onnx", nodes, TensorProto.FLOAT, ["y"])
    show(dlas.compare(_float(tmp_path / "a.onnx"), wide, data=rows))
    printed = capsys.readouterr().out
    assert "shape" in printed
    assert "identical" not in printed


def test_layers_of_a_quantised_network_are_compared_in_real_values(tmp_path: Path) -> None:
    # TFLite names the codes of a quantised tensor as the float network names its values.
    path = tmp_path / "q.onnx"
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("QuantizeLinear", ["h", "scale", "zero"], ["y"]),
        helper.make_node("DequantizeLinear", ["y", "scale", "zero"], ["out"]),
    ]
    target = load_model(_save(path, nodes, TensorProto.FLOAT, ["out"], 0.1, -20))
    x = np.random.default_rng(2).uniform(-1, 1, (4, SIZE)).astype(np.float32)
    (row,) = (
        r
        for r in compare_layers(load_model(_float(tmp_path / "a.onnx")), target, {"x": x})
        if r["tensor"] == "y"
    )
    assert row["max_abs"] <= 0.0501  # half a step
    assert row["sqnr_db"] > 20


@pytest.mark.parametrize("ending", [".tflite", pytest.param(".c", marks=pytest.mark.slow)])
def test_an_output_whose_axes_the_format_turns_is_still_equal(tmp_path: Path, ending: str) -> None:
    import onnx
    from onnx import TensorProto, helper

    from dlas.verify.conversion import convert_file

    weight = np.random.default_rng(0).standard_normal((5, 3, 3, 3)).astype(np.float32)
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 1, 1, 1])],
        "map",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5, 8, 6])],
        [onnx.numpy_helper.from_array(weight, "w")],
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.save(model, tmp_path / "map.onnx")
    done = convert_file(tmp_path / "map.onnx", tmp_path / f"map{ending}")
    assert done.check is not None
    assert [str(p.verdict) for p in done.check.paths] == ["equal"]
