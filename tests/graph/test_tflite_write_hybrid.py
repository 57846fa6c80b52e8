"""Dynamic range in tflite: int8 weights straight into float operators, as LiteRT's hybrid kernels take them."""

from __future__ import annotations

from collections import Counter
from dataclasses import dataclass

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model
from dlas.graph.formats.tflite import from_bytes, to_bytes
from dlas.graph.formats.tflite.flat import enum_names, parse, schema
from dlas.graph.model import OPSET, Model
from dlas.graph.reference import predict
from dlas.testing.models import images, residual, residual_quantized

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
RNG = np.random.default_rng(5)


def run(data: bytes, x: np.ndarray, reference: bool) -> np.ndarray:
    """First output for each row, in the file's own layout."""
    kind = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    machine = interpreter.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    machine.allocate_tensors()
    found = []
    for row in x:
        machine.set_tensor(machine.get_input_details()[0]["index"], np.ascontiguousarray(row[None]))
        machine.invoke()
        found.append(machine.get_tensor(machine.get_output_details()[0]["index"]).copy())
    return np.concatenate(found)


def versions(data: bytes) -> dict[str, set[int]]:
    """Operator versions stated in the file."""
    model = schema().ModelT.InitFromPackedBuf(data, 0)
    names, found = enum_names("BuiltinOperator"), {}
    for code in model.operatorCodes:
        found.setdefault(names[code.builtinCode], set()).add(code.version)
    return found


@dataclass
class Case:
    nodes: list[onnx.NodeProto]
    shape: list[int]
    weight: np.ndarray
    axis: int | None
    kind: str
    version: int


def node(op: str, **attributes) -> onnx.NodeProto:
    return helper.make_node(op, ["x", "real", "b"] if op != "MatMul" else ["x", "real"], ["y"], **attributes)


def spread(*shape: int, axis: int = 0) -> np.ndarray:
    """Weights whose channels differ in size by a factor of 30."""
    size = [1] * len(shape)
    size[axis] = shape[axis]
    return (RNG.standard_normal(shape) * np.geomspace(0.1, 3, shape[axis]).reshape(size)).astype(np.float32)


C4 = [1, 4, 9, 11]
CASES = {
    "conv": Case([node("Conv", pads=[1] * 4)], C4, spread(6, 4, 3, 3), 0, "CONV_2D", 5),
    "conv one scale": Case([node("Conv", pads=[1] * 4)], C4, spread(6, 4, 3, 3), None, "CONV_2D", 2),
    "conv strided": Case([node("Conv", strides=[2, 2])], C4, spread(6, 4, 3, 3), 0, "CONV_2D", 5),
    "conv dilated": Case([node("Conv", dilations=[2, 2])], C4, spread(6, 4, 3, 3), 0, "CONV_2D", 5),
    "depthwise": Case([node("Conv", group=4)], C4, spread(4, 1, 3, 3), 0, "DEPTHWISE_CONV_2D", 6),
    "depthwise x2": Case([node("Conv", group=4)], C4, spread(8, 1, 3, 3), 0, "DEPTHWISE_CONV_2D", 6),
    # The depthwise kernel reads a scale per channel whatever the file says: one scale must be written as many.
    "depthwise one scale": Case([node("Conv", group=4)], C4, spread(4, 1, 3, 3), None, "DEPTHWISE_CONV_2D", 6),
    "gemm": Case([node("Gemm", transB=1)], [1, 12], spread(7, 12), 0, "FULLY_CONNECTED", 12),
    "gemm not turned": Case([node("Gemm")], [1, 12], spread(12, 7, axis=1), 1, "FULLY_CONNECTED", 12),
    "gemm one scale": Case([node("Gemm", transB=1)], [1, 12], spread(7, 12), None, "FULLY_CONNECTED", 3),
    "matmul": Case([node("MatMul")], [1, 5, 12], spread(12, 7, axis=1), 1, "FULLY_CONNECTED", 12),
}  # fmt: skip


def build(case: Case) -> Model:
    axis, weight = case.axis, case.weight
    others = tuple(i for i in range(weight.ndim) if i != axis) if axis is not None else None
    scale = (np.abs(weight).max(others) / 127).astype(np.float32)
    size = [1] * weight.ndim
    if axis is not None:
        size[axis] = -1
    codes = np.clip(np.rint(weight / scale.reshape(size if axis is not None else ())), -127, 127).astype(
        np.int8
    )
    units = weight.shape[1 if case.nodes[0].op_type == "Gemm" and axis == 1 else 0]
    constants = {"w": codes, "s": scale, "z": np.zeros(scale.shape, np.int8)}
    constants["b"] = RNG.standard_normal(units).astype(np.float32)
    decode = helper.make_node(
        "DequantizeLinear", ["w", "s", "z"], ["real"], **({} if axis is None else {"axis": axis})
    )
    graph = helper.make_graph(
        [decode, *case.nodes],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, case.shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True), "net")


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = float(np.square(wanted - got).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float(np.square(wanted).sum()) / noise)


@pytest.mark.parametrize("name", CASES)
def test_both_sets_of_kernels_take_it(name: str) -> None:
    case = CASES[name]
    model = build(case)
    data, notes = to_bytes(model)
    assert any("rounds the activations" in n for n in notes)
    network = parse(data, name)
    assert "DEQUANTIZE" not in {op.kind for op in network.operations}
    layer = next(op for op in network.operations if op.kind == case.kind)
    assert network.tensors[layer.inputs[1]].dtype == "int8"
    assert versions(data)[case.kind] == {case.version}
    x = np.random.default_rng(2).standard_normal((3, *case.shape[1:])).astype(np.float32)
    # Fully optimised, ONNX Runtime rounds the activations of some matrix products as well.
    wanted = np.concatenate([predict(model, row[None], level="basic") for row in x])
    flat = len(case.shape) != 4
    for reference in (True, False):
        got = run(data, x if flat else x.transpose(0, 2, 3, 1), reference)
        found = db(wanted, got if flat else got.transpose(0, 3, 1, 2))
        assert 30 < found < 100, reference  # near, and rounded: the integer kernel did the work


@pytest.mark.parametrize("name", CASES)
def test_reading_gives_the_same_form(name: str) -> None:
    data, _ = to_bytes(build(CASES[name]))
    back = from_bytes(data, "back")
    assert any("dynamic-range" in n for n in back.history[-1].notes)
    again, _ = to_bytes(back)
    first, second = parse(data, "first"), parse(again, "second")
    kinds = [Counter(op.kind for op in n.operations if op.kind != "RESHAPE") for n in (first, second)]
    assert kinds[0] == kinds[1]
    weights = [
        sorted(t.data.tobytes() for t in n.tensors if t.dtype == "int8" and t.data is not None)
        for n in (first, second)
    ]
    assert weights[0] == weights[1]
    assert weights[0]


def test_compress_writes_a_quarter_of_the_bytes() -> None:
    model = residual()
    small = compress_model(model, "dynamic-int8:min_elements=0")
    data, _ = to_bytes(small)
    kinds = Counter(op.kind for op in parse(data, "small").operations)
    assert kinds["DEQUANTIZE"] == kinds["QUANTIZE"] == 0
    x = images(4)
    wanted = predict(model, x)
    for reference in (True, False):
        assert 25 < db(wanted, run(data, x.transpose(0, 2, 3, 1), reference)) < 60


def test_integer_layers_with_float_results_keep_their_numbers() -> None:
    # Here the activations are int8 already: rounding them again at run time would lose what they say.
    data, notes = to_bytes(residual_quantized())
    assert not any("rounds the activations" in n for n in notes)
    assert "DEQUANTIZE" in {op.kind for op in parse(data, "int8").operations}


def test_the_oldest_runtime_is_stated() -> None:
    def stated(data: bytes) -> bytes:
        model = schema().ModelT.InitFromPackedBuf(data, 0)
        entry = next(e for e in model.metadata if e.name == b"min_runtime_version")
        return bytes(model.buffers[entry.buffer].data)

    assert stated(to_bytes(build(CASES["conv"]))[0]) == b"2.4.0".ljust(16, b"\0")
    assert stated(to_bytes(build(CASES["gemm"]))[0]) == b"2.17.0".ljust(16, b"\0")
    assert stated(to_bytes(residual())[0]) == b"1.6.0".ljust(16, b"\0")
