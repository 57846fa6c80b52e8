"""Networks that have a site for every mutation of the graph."""

from __future__ import annotations

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dlas.graph.model import Model

ROWS = 6


def kitchen(seed: int = 0) -> Model:
    """One network with pooling at edges, Pad, Concat, Sub, Clip, LeakyRelu, Resize, Reshape and MatMul with a bias."""
    rng = np.random.default_rng(seed)
    weights: list[onnx.TensorProto] = []

    def w(name: str, array: np.ndarray) -> str:
        weights.append(numpy_helper.from_array(array, name))
        return name

    def real(*shape: int) -> np.ndarray:
        return rng.standard_normal(shape).astype(np.float32)

    def node(op: str, inputs: list[str], output: str, **attributes: object) -> onnx.NodeProto:
        return helper.make_node(op, inputs, [output], **attributes)  # without names: they must be given

    nodes = [
        node("Conv", ["image", w("w1", real(4, 3, 3, 3)), w("b1", real(4))], "c1", pads=[1, 1, 1, 1]),
        node("LeakyRelu", ["c1"], "a1", alpha=0.1),
        node("AveragePool", ["a1"], "p1", kernel_shape=[3, 3], strides=[1, 1], pads=[1, 1, 1, 1]),
        node("Sub", ["a1", "p1"], "edges"),
        node("Concat", ["edges", "p1"], "both", axis=1),
        node("Pad", ["both", w("pads", np.array([0, 0, 0, 1, 0, 0, 1, 0]))], "padded"),
        node("Conv", ["padded", w("w2", real(4, 8, 3, 3))], "c2"),
        node("Clip", ["c2", w("low", np.float32(-1)), w("high", np.float32(5))], "a2"),
        node("MaxPool", ["a2"], "p2", kernel_shape=[3, 3], strides=[2, 2], dilations=[1, 1]),
        node(
            "Resize",
            ["p2", "", w("twice", np.array([1, 1, 2, 2], np.float32))],
            "large",
            mode="linear",
        ),
        node("MaxPool", ["a2"], "p3", kernel_shape=[2, 2], strides=[2, 2]),
        node("ReduceMean", ["p3", w("axes", np.array([2, 3]))], "means", keepdims=0),
        node("Flatten", ["large"], "flat"),
        node("MatMul", ["flat", w("w3", real(256, 4))], "m3"),
        node("Add", ["m3", w("b3", real(4))], "scores"),
        node("Add", ["scores", "means"], "logits"),
    ]
    graph = helper.make_graph(
        nodes,
        "kitchen",
        [helper.make_tensor_value_info("image", 1, ["N", 3, 10, 10])],
        [helper.make_tensor_value_info("logits", 1, ["N", 4])],
        weights,
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    return Model.from_proto(proto, "kitchen")


def kitchen_rows(seed: int = 1) -> np.ndarray:
    """Inputs of :func:`kitchen`, ``(6, 3, 10, 10) float32``."""
    return np.random.default_rng(seed).standard_normal((ROWS, 3, 10, 10)).astype(np.float32)
