"""Small networks that the engine's tests share."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.model import Model


def model_of(nodes, inputs, outputs, constants, name="net") -> Model:
    """A Model from nodes; inputs and outputs as name to shape."""
    graph = helper.make_graph(
        nodes,
        name,
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in inputs.items()],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, s) for n, s in outputs.items()],
        [numpy_helper.from_array(v, n) for n, v in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    onnx.checker.check_model(proto)
    return Model.from_proto(proto, name)


def residual(channels: int = 16, size: int = 12, seed: int = 0) -> Model:
    """Image -> conv, relu -> two residual blocks, the second with stride and an option-A shortcut -> pool -> dense."""
    rng = np.random.default_rng(seed)

    def weight(*shape):
        return (rng.standard_normal(shape) / np.sqrt(np.prod(shape[1:]))).astype(np.float32)

    c = channels
    constants = {
        "w0": weight(c, 3, 3, 3), "b0": weight(c), "w1": weight(c, c, 3, 3), "b1": weight(c),
        "w2": weight(c, c, 3, 3), "w3": weight(2 * c, c, 3, 3), "w4": weight(2 * c, 2 * c, 3, 3),
        "w5": weight(10, 2 * c), "b5": weight(10),
        "starts": np.array([0, 0]), "ends": np.array([2**40, 2**40]), "axes": np.array([2, 3]),
        "steps": np.array([2, 2]),
        "pads": np.array([0, c // 2, 0, 0, 0, c - c // 2, 0, 0]), "rows": np.array([2, 3]),
    }  # fmt: skip
    conv = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    nodes = [
        helper.make_node("Conv", ["x", "w0", "b0"], ["a0"], "stem", **conv),
        helper.make_node("Relu", ["a0"], ["a"], "stem_relu"),
        helper.make_node("Conv", ["a", "w1", "b1"], ["b0_"], "first", **conv),
        helper.make_node("Relu", ["b0_"], ["b"], "first_relu"),
        helper.make_node("Conv", ["b", "w2"], ["c0"], "second", **conv),
        helper.make_node("Add", ["c0", "a"], ["c1"], "sum"),
        helper.make_node("Relu", ["c1"], ["c"], "sum_relu"),
        helper.make_node("Conv", ["c", "w3"], ["d0"], "third", strides=[2, 2], **conv),
        helper.make_node("Clip", ["d0", "low", "high"], ["d"], "third_clip"),
        helper.make_node("Conv", ["d", "w4"], ["e0"], "fourth", **conv),
        helper.make_node("Slice", ["c", "starts", "ends", "axes", "steps"], ["s"], "slice"),
        helper.make_node("Pad", ["s", "pads"], ["p"], "pad"),
        helper.make_node("Add", ["p", "e0"], ["e1"], "sum2"),
        helper.make_node("Relu", ["e1"], ["e"], "sum2_relu"),
        helper.make_node("ReduceMean", ["e", "rows"], ["m"], "mean", keepdims=0),
        helper.make_node("Gemm", ["m", "w5", "b5"], ["y"], "dense", transB=1),
    ]
    constants |= {"low": np.float32(0), "high": np.float32(6)}
    return model_of(nodes, {"x": [1, 3, size, size]}, {"y": [1, 10]}, constants, "residual")


def right_answers(model: Model, inputs) -> dict[str, np.ndarray]:
    """What ONNX Runtime without optimisation says."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return dict(zip([o.name for o in session.get_outputs()], session.run(None, dict(inputs)), strict=True))


def relative_error(found: np.ndarray, right: np.ndarray) -> float:
    """Largest difference over the largest value."""
    return float(np.abs(found - right).max() / max(np.abs(right).max(), 1e-30))
