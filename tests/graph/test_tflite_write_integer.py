"""Operators between QuantizeLinear nodes: written as integers where a kernel exists, and right to a step."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.formats.tflite import from_bytes, read_layouts, to_bytes
from dlas.graph.formats.tflite.flat import parse
from dlas.graph.model import OPSET, Model
from dlas.graph.reference import Reference

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
C4 = [1, 4, 6, 8]


def node(op: str, inputs: str, output: str = "r", **attributes) -> onnx.NodeProto:
    return helper.make_node(op, inputs.split(), output.split(), **attributes)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def f32(*values: float) -> np.ndarray:
    return np.array(values, np.float32)


# Operators from "a" (and "b", both on grids) to "r"; the grid of the result.
CASES = {
    "resize linear": ([node("Resize", "a none scales", mode="linear")],
                      {"none": f32(), "scales": f32(1, 1, 2, 2)}, (0.03, 3)),
    "resize align corners": ([node("Resize", "a none scales", mode="linear",
                                   coordinate_transformation_mode="align_corners")],
                             {"none": f32(), "scales": f32(1, 1, 2, 2)}, (0.02, 0)),
    "resize nearest": ([node("Resize", "a none scales", mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric")],
                       {"none": f32(), "scales": f32(1, 1, 2, 2)}, (0.03, 3)),
    "prelu": ([node("PRelu", "a slopes")], {"slopes": f32(0.1, 0.25, -0.3, 0.5).reshape(4, 1, 1)}, (0.03, 3)),
    "leaky relu": ([node("LeakyRelu", "a", alpha=0.1)], {}, (0.03, 3)),
    "global average": ([node("GlobalAveragePool", "a")], {}, (0.01, 1)),
    "mean channels": ([node("ReduceMean", "a axes", keepdims=0)], {"axes": i64(1)}, (0.02, 1)),
    "reduce max": ([node("ReduceMax", "a axes", keepdims=1)], {"axes": i64(1)}, (0.03, 3)),
    "reduce max regrid": ([node("ReduceMax", "a axes", keepdims=0)], {"axes": i64(2)}, (0.02, -9)),
    "reduce min": ([node("ReduceMin", "a axes", keepdims=1)], {"axes": i64(2, 3)}, (0.03, 3)),
    "max": ([node("Max", "a b")], {}, (0.03, 0)),
    "min": ([node("Min", "a b")], {}, (0.03, 0)),
    "clip": ([node("Clip", "a low high")], {"low": np.float32(-0.6), "high": np.float32(0.9)}, (0.03, 3)),
    "clip regrid": ([node("Clip", "a low high")], {"low": np.float32(-0.6), "high": np.float32(0.9)}, (0.01, -60)),
    "abs": ([node("Abs", "a")], {}, (0.015, -128)),
    "exp": ([node("Exp", "a")], {}, (0.2, -128)),
    "log softmax": ([node("LogSoftmax", "a", axis=3)], {}, (16 / 256, 127)),
    "softmax": ([node("Softmax", "a", axis=1)], {}, (1 / 256, -128)),
    "sigmoid": ([node("Sigmoid", "a")], {}, (1 / 256, -128)),
    "hard swish": ([node("HardSwish", "a")], {}, (0.03, -110)),
    "elu": ([node("Elu", "a")], {}, (0.02, -70)),
    "gelu": ([node("Gelu", "a")], {}, (0.02, -120)),
    "add": ([node("Add", "a b")], {}, (0.05, 0)),
    "sub": ([node("Sub", "a b")], {}, (0.05, 0)),
    "mul": ([node("Mul", "a b")], {}, (0.08, 0)),
    "concat": ([node("Concat", "a b", axis=1)], {}, (0.03, 0)),
    "where": ([node("Where", "which a b")], {"which": np.arange(192).reshape(C4) % 3 == 0}, (0.03, 0)),
    "pad": ([node("Pad", "a pads")], {"pads": i64(0, 0, 1, 1, 0, 0, 2, 0)}, (0.03, 3)),
    "reflect": ([node("Pad", "a pads", mode="reflect")], {"pads": i64(0, 0, 1, 1, 0, 0, 2, 0)}, (0.03, 3)),
    "slice": ([node("Slice", "a from to axes by")],
              {"from": i64(1, 0), "to": i64(4, 8), "axes": i64(1, 3), "by": i64(1, 2)}, (0.03, 3)),
    "space to depth": ([node("SpaceToDepth", "a", blocksize=2)], {}, (0.03, 3)),
    "max pool": ([node("MaxPool", "a", kernel_shape=[2, 2], strides=[2, 2])], {}, (0.03, 3)),
    "average pool": ([node("AveragePool", "a", kernel_shape=[2, 2], strides=[2, 2])], {}, (0.03, 3)),
    "matmul": ([node("Transpose", "b", "t", perm=[0, 1, 3, 2]), node("MatMul", "a t")], {}, (0.2, 0)),
}  # fmt: skip
A, B = (0.03, 3), (0.025, -7)


def build(name: str) -> Model:
    nodes, constants, result = CASES[name]
    stored = {}
    for label, (scale, zero) in (("a", A), ("b", B), ("r", result)):
        stored |= {f"{label}_scale": np.float32(scale), f"{label}_zero": np.int8(zero)}
    wanted = {n for made in nodes for n in made.input}
    ends, chain = [], []
    for label in ("a", "b"):
        if label in wanted:
            ends.append(helper.make_tensor_value_info(f"{label}_in", TensorProto.FLOAT, C4))
            chain += [
                node("QuantizeLinear", f"{label}_in {label}_scale {label}_zero", f"{label}_q"),
                node("DequantizeLinear", f"{label}_q {label}_scale {label}_zero", label),
            ]
    chain += [
        *nodes,
        node("QuantizeLinear", "r r_scale r_zero", "r_q"),
        node("DequantizeLinear", "r_q r_scale r_zero", "y"),
    ]
    graph = helper.make_graph(
        chain,
        "net",
        ends,
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in (constants | stored).items()],
    )
    opset = 20 if any(n.op_type == "Gelu" for n in nodes) else OPSET
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=10)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True), "net")


def feeds(model: Model) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(4)
    return {s.name: rng.normal(0, 1.2, [int(d) for d in s.shape]).astype(np.float32) for s in model.inputs}


def run(data: bytes, inputs: dict[str, np.ndarray], reference: bool) -> np.ndarray:
    kind = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    machine = interpreter.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    machine.allocate_tensors()
    layouts = read_layouts(data)
    for d in machine.get_input_details():
        machine.set_tensor(
            d["index"], np.ascontiguousarray(inputs[d["name"]].transpose(layouts["inputs"][d["name"]]))
        )
    machine.invoke()
    (out,) = machine.get_output_details()
    return machine.get_tensor(out["index"]).transpose(np.argsort(layouts["outputs"][out["name"]]))


@pytest.mark.parametrize("name", CASES)
def test_integer_and_right(name: str) -> None:
    model = build(name)
    data, notes = to_bytes(model)
    assert not any("in float" in n for n in notes)
    network = parse(data, name)
    inside = [op for op in network.operations if op.kind not in ("QUANTIZE", "DEQUANTIZE")]
    assert inside
    for op in inside:
        dtypes = {network.tensors[i].dtype for i in (*op.inputs, *op.outputs)}
        assert "float32" not in dtypes, op.kind
    assert sum(op.kind == "DEQUANTIZE" for op in network.operations) == 1
    inputs = feeds(model)
    with Reference(model, level="disable") as reference:
        wanted = reference.run(inputs)["y"]
    scale = CASES[name][2][0]
    # The slopes of a PRelu are rounded to 8 bits, and what is summed or regridded is rounded twice.
    steps = 3.01 if name in ("matmul", "log softmax", "resize align corners") else 1.01
    for kernels in (False,) if name == "elu" else (True, False):  # LiteRT has no reference kernel of ELU
        got = run(data, inputs, kernels)
        assert got.shape == wanted.shape
        assert np.abs(got - wanted).max() <= steps * scale, kernels
    assert np.ptp(wanted) > 10 * scale  # something was computed


@pytest.mark.parametrize("name", CASES)
def test_read_again(name: str) -> None:
    model = build(name)
    data, _ = to_bytes(model)
    back = from_bytes(data, "back")
    inputs, layouts = feeds(model), read_layouts(data)
    turned = {k: np.ascontiguousarray(v.transpose(layouts["inputs"][k])) for k, v in inputs.items()}
    with Reference(model, level="disable") as first, Reference(back, level="disable") as second:
        wanted = first.run(inputs)["y"].transpose(layouts["outputs"]["y"])
        assert np.abs(second.run(turned)["y"] - wanted).max() <= 1.01 * CASES[name][2][0]


def test_argmax_reads_integers() -> None:
    nodes = [
        node("QuantizeLinear", "x s z", "q"), node("DequantizeLinear", "q s z", "a"),
        node("ArgMax", "a", "y", axis=1, keepdims=0),
    ]  # fmt: skip
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 4, 6, 8])],
        [helper.make_tensor_value_info("y", TensorProto.INT64, [1, 6, 8])],
        [numpy_helper.from_array(np.float32(0.03), "s"), numpy_helper.from_array(np.int8(3), "z")],
    )  # fmt: skip
    model = Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    )
    data, _ = to_bytes(model)
    assert "DEQUANTIZE" not in {op.kind for op in parse(data, "net").operations}
    x = np.random.default_rng(0).standard_normal((1, 4, 6, 8)).astype(np.float32)
    with Reference(model) as reference:
        wanted = reference.run({"x": x})["y"]
    assert np.array_equal(run(data, {"x": x}, True), wanted)
    assert np.array_equal(run(data, {"x": x}, False), wanted)
