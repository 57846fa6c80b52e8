"""Quantised operators in one node, decoded: ONNX Runtime gives the same answers for both forms, up to a step."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.model import Model
from dlas.graph.qoperators import decoded, has_contrib_operators
from dlas.hardware.accelerator import accelerator_for
from dlas.kernels.extension import native
from dlas.runtime.backend import backend_for
from dlas.runtime.offload import Offloaded

MS = "com.microsoft"
RNG = np.random.default_rng(0)
S, S2, Z, Z8 = np.float32(0.05), np.float32(0.07), np.uint8(120), np.int8(0)
WEIGHT = RNG.integers(-100, 100, (6, 4, 3, 3)).astype(np.int8)
DENSE = RNG.integers(-100, 100, (5, 12)).astype(np.int8)
MANY = (0.01 * RNG.random(6) + 0.002).astype(np.float32)
ZEROS = np.zeros(6, np.int8)
BIAS = RNG.integers(-2000, 2000, 6).astype(np.int32)

# Operator: domain, shapes of the inputs, operands after each input, operands after all, attributes.
IMAGE, ROWS = (2, 4, 8, 8), (3, 12)
CASES: dict[str, tuple[str, str, list[tuple[int, ...]], list[Any], dict[str, Any]]] = {
    "conv": ("", "QLinearConv", [IMAGE], [S, Z, WEIGHT, np.float32(0.01), Z8, S2, Z, BIAS], {"pads": [1] * 4}),
    "conv per channel": ("", "QLinearConv", [IMAGE], [S, Z, WEIGHT, MANY, ZEROS, S2, Z], {"strides": [2, 2]}),
    "matmul": ("", "QLinearMatMul", [ROWS], [S, Z, DENSE.T.copy(), np.float32(0.01), Z8, S2, Z], {}),
    "gemm": (MS, "QGemm", [ROWS], [S, Z, DENSE, MANY[:5], ZEROS[:5], BIAS[:5], S2, Z], {"transB": 1, "alpha": 0.5}),
    "gemm to real numbers": (MS, "QGemm", [ROWS], [S, Z, DENSE, np.float32(0.01), Z8], {"transB": 1}),
    "add": (MS, "QLinearAdd", [IMAGE, IMAGE], [S, Z, "input", S2, np.uint8(90), np.float32(0.1), Z], {}),
    "mul": (MS, "QLinearMul", [IMAGE, IMAGE], [S, Z, "input", S2, np.uint8(90), np.float32(0.3), Z], {}),
    "sigmoid": (MS, "QLinearSigmoid", [IMAGE], [S, Z, np.float32(1 / 256), np.uint8(0)], {}),
    "leaky relu": (MS, "QLinearLeakyRelu", [IMAGE], [S, Z, S2, Z], {"alpha": 0.2}),
    "softmax": (MS, "QLinearSoftmax", [ROWS], [S, Z, np.float32(1 / 256), np.uint8(0)], {"axis": -1, "opset": 13}),
    "average": (MS, "QLinearAveragePool", [IMAGE], [S, Z, S2, Z], {"kernel_shape": [2, 2], "strides": [2, 2]}),
    "global average": (MS, "QLinearGlobalAveragePool", [IMAGE], [S, Z, S2, Z], {}),
}  # fmt: skip


def network(name: str) -> onnx.ModelProto:
    domain, op, shapes, operands, attributes = CASES[name]
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, s) for i, s in enumerate(shapes)]
    names, stored, fed = ["x0"], [], 1
    for i, operand in enumerate(operands):
        if isinstance(operand, str):
            names.append(f"x{fed}")
            fed += 1
            continue
        stored.append(numpy_helper.from_array(np.asarray(operand), f"c{i}"))
        names.append(f"c{i}")
    kind = TensorProto.FLOAT if "real" in name else TensorProto.UINT8
    node = helper.make_node(op, names, ["y"], domain=domain, name="it", **attributes)
    outputs = [helper.make_tensor_value_info("y", kind, None)]
    graph = helper.make_graph([node], "g", inputs, outputs, stored)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    return helper.make_model(graph, opset_imports=imports, ir_version=9)


def answers(model: bytes, shapes: list[tuple[int, ...]]) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    rng = np.random.default_rng(1)
    feed = {f"x{i}": rng.integers(0, 256, s).astype(np.uint8) for i, s in enumerate(shapes)}
    return onnxruntime.InferenceSession(model, options).run(None, feed)[0]


@pytest.mark.parametrize("name", CASES)
def test_both_forms_answer_alike(name: str) -> None:
    proto, shapes = network(name), CASES[name][2]
    model = Model.from_proto(proto)
    plain = decoded(model)
    kinds = {node.op_type for node in plain.ir.graph}
    assert CASES[name][1] not in kinds
    assert {"DequantizeLinear"} < kinds
    assert [v.name for v in plain.ir.graph.outputs] == ["y"]
    assert plain.ir.graph.outputs[0].shape is not None
    ours, theirs = answers(plain.to_bytes(), shapes), answers(proto.SerializeToString(), shapes)
    assert ours.dtype == theirs.dtype
    if ours.dtype == np.float32:
        np.testing.assert_allclose(ours, theirs, rtol=1e-5, atol=1e-4)
    else:
        assert np.ptp(theirs) > 10
        assert np.abs(ours.astype(int) - theirs.astype(int)).max() <= 1


def test_parts_side_by_side_are_decoded_one_by_one() -> None:
    shapes = [(1, 2, 4), (1, 3, 4)]
    inputs = [helper.make_tensor_value_info(f"x{i}", TensorProto.UINT8, s) for i, s in enumerate(shapes)]
    stored = [numpy_helper.from_array(np.asarray(v), n) for n, v in (("s", S), ("z", Z), ("t", S2))]
    node = helper.make_node(
        "QLinearConcat", ["t", "z", "x0", "s", "z", "x1", "t", "z"], ["y"], domain=MS, axis=1
    )
    output = helper.make_tensor_value_info("y", TensorProto.UINT8, None)
    graph = helper.make_graph([node], "g", inputs, [output], stored)
    imports = [helper.make_opsetid("", 17), helper.make_opsetid(MS, 1)]
    proto = helper.make_model(graph, opset_imports=imports, ir_version=9)
    ours = answers(decoded(Model.from_proto(proto)).to_bytes(), shapes)
    np.testing.assert_array_equal(ours, answers(proto.SerializeToString(), shapes))


def test_what_cannot_be_decoded_stays() -> None:
    """A scale that the network computes, and channels that come last."""
    proto = network("global average")
    proto.graph.node[0].attribute.append(helper.make_attribute("channels_last", 1))
    assert decoded(Model.from_proto(proto)).ir.graph[0].op_type == "QLinearGlobalAveragePool"
    proto = network("add")
    proto.graph.initializer.remove(next(t for t in proto.graph.initializer if t.name == "c0"))
    proto.graph.input.append(helper.make_tensor_value_info("c0", TensorProto.FLOAT, []))
    model = Model.from_proto(proto)
    assert decoded(model) is model
    assert has_contrib_operators(model)
    assert not has_contrib_operators(Model.from_proto(network("conv")))


@pytest.mark.skipif(native() is None, reason="the native kernels were not built")
def test_engine_and_accelerator_take_a_network_of_such_operators() -> None:
    """A convolution and a sum with the input: ONNX Runtime's contrib operators have no shapes of their own."""
    proto = network("conv")
    proto.graph.initializer[2].CopyFrom(numpy_helper.from_array(WEIGHT[:4], "c2"))
    proto.graph.initializer[7].CopyFrom(numpy_helper.from_array(BIAS[:4], "c7"))
    proto.graph.node[0].output[0] = "h"
    stored = {t.name for t in proto.graph.initializer}
    assert {"c0", "c1", "c5", "c6"} <= stored
    total = ["h", "c5", "c6", "x0", "c0", "c1", "c5", "c6"]
    proto.graph.node.append(helper.make_node("QLinearAdd", total, ["y"], domain=MS, name="sum"))
    proto.graph.output[0].CopyFrom(helper.make_tensor_value_info("y", TensorProto.UINT8, IMAGE))
    model = Model.from_proto(proto)
    x = {"x0": np.random.default_rng(1).integers(0, 256, IMAGE).astype(np.uint8)}
    wanted = answers(proto.SerializeToString(), [IMAGE])
    with backend_for("engine:policy=rules").compile(model, batch=2) as executable:
        assert np.abs(executable.run(x)["y"].astype(int) - wanted.astype(int)).max() <= 1
    offloaded = Offloaded(model, accelerator_for("vm:units=1"), batch=2)
    try:
        assert [(layer.op, layer.reason) for layer in offloaded.layers] == [("QConv", "")]
        assert np.abs(offloaded.run(x)["y"].astype(int) - wanted.astype(int)).max() <= 1
    finally:
        offloaded.close()
