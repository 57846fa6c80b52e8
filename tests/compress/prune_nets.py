"""A residual network of two blocks, small enough to be trained within a test."""

from __future__ import annotations

from functools import cache

import numpy as np
import onnx
from onnx import helper, numpy_helper

from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.testing import models


@cache
def blocks(width: int = 8, count: int = 3, seed: int = 0) -> Model:
    """``count`` residual blocks for ``(N, 3, 12, 12)`` images and ten classes; ``b<i>.conv1`` may lose channels."""
    random = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes: list[onnx.NodeProto] = []

    def layer(name: str, source: str, inner: int, *, relu: bool = True, stride: int = 1) -> str:
        weights[f"{name}.weight"] = random.normal(0, (2 / (9 * inner)) ** 0.5, (width, inner, 3, 3))
        norm = [f"{name}.bn.{part}" for part in ("scale", "bias", "mean", "var")]
        for part, value in zip(norm, (1.0, 0.1, 0.0, 1.0), strict=True):
            spread = random.uniform(0.8, 1.2, width) if part.endswith(("scale", "var")) else 1.0
            weights[part] = np.full(width, value) * spread
        nodes.append(
            helper.make_node(
                "Conv", [source, f"{name}.weight"], [f"{name}.out"], name, pads=[1] * 4, strides=[stride] * 2
            )
        )
        nodes.append(helper.make_node("BatchNormalization", [f"{name}.out", *norm], [f"{name}.bn"]))
        if relu:
            nodes.append(helper.make_node("Relu", [f"{name}.bn"], [f"{name}.relu"]))
        return f"{name}.relu" if relu else f"{name}.bn"

    at = layer("stem", "image", 3, stride=2)
    for block in range(count):
        inside = layer(f"b{block}.conv2", layer(f"b{block}.conv1", at, width), width, relu=False)
        nodes.append(helper.make_node("Add", [inside, at], [f"b{block}.sum"]))
        nodes.append(helper.make_node("Relu", [f"b{block}.sum"], [f"b{block}.end"]))
        at = f"b{block}.end"
    weights["fc.weight"] = random.normal(0, 1.0, (10, width))
    weights["fc.bias"] = np.zeros(10)
    nodes += [
        helper.make_node("GlobalAveragePool", [at], ["pooled"]),
        helper.make_node("Flatten", ["pooled"], ["flat"]),
        helper.make_node("Gemm", ["flat", "fc.weight", "fc.bias"], ["logits"], "fc", transB=1),
    ]
    graph = helper.make_graph(
        nodes,
        "blocks",
        [helper.make_tensor_value_info("image", 1, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", 1, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    drawn = Model.from_proto(onnx.shape_inference.infer_shapes(proto), "blocks")
    logits = predict(drawn, models.images(200, seed=9))
    # Untrained networks give nearly the same answer to everything: that is taken off, and the rest made large.
    weights["fc.weight"] *= 1 / logits.std(0)[:, None]
    weights["fc.bias"] = -logits.mean(0) / logits.std(0)
    del graph.initializer[:]
    graph.initializer.extend(numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items())
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "blocks")


@cache
def rows(count: int = 200, seed: int = 2) -> Dataset:
    """Images labelled by :func:`blocks` itself, so that there is something to lose."""
    x = models.images(count, seed=seed)
    return Dataset("tiny", x, predict(blocks(), x).argmax(1).astype(np.int64))


@cache
def unusual() -> Model:
    """Two branches joined by a Concat, a grouped, a depthwise and two convolutions that share one weight."""
    random = np.random.default_rng(5)
    shapes = {
        "stem": (8, 3, 3, 3),
        "left": (4, 8, 3, 3),
        "right": (8, 1, 3, 3),  # depthwise
        "mixed": (12, 6, 3, 3),  # in two groups, of the 4 + 8 channels before it
        "into": (6, 12, 1, 1),
        "shared": (6, 6, 3, 3),
        "last": (10, 6, 1, 1),
    }
    weights = {f"{n}.weight": random.normal(0, (2 / np.prod(s[1:])) ** 0.5, s) for n, s in shapes.items()}
    nodes: list[onnx.NodeProto] = []

    def conv(name: str, source: str, *, weight: str = "", group: int = 1, relu: bool = True) -> str:
        kernel = shapes[weight or name][2]
        nodes.append(
            helper.make_node(
                "Conv",
                [source, f"{weight or name}.weight"],
                [f"{name}.out"],
                name,
                pads=[kernel // 2] * 4,
                group=group,
            )
        )
        if relu:
            nodes.append(helper.make_node("Relu", [f"{name}.out"], [f"{name}.relu"]))
        return f"{name}.relu" if relu else f"{name}.out"

    stem = conv("stem", "image")
    left, right = conv("left", stem), conv("right", stem, group=8)
    nodes.append(helper.make_node("Concat", [left, right], ["joined"], "join", axis=1))
    into = conv("into", conv("mixed", "joined", group=2))
    once = conv("once", into, weight="shared")
    twice = conv("twice", once, weight="shared")
    last = conv("last", twice, relu=False)
    nodes.append(helper.make_node("GlobalAveragePool", [last], ["pooled"]))
    nodes.append(helper.make_node("Flatten", ["pooled"], ["logits"]))
    graph = helper.make_graph(
        nodes,
        "unusual",
        [helper.make_tensor_value_info("image", 1, ["N", 3, 12, 12])],
        [helper.make_tensor_value_info("logits", 1, ["N", 10])],
        [numpy_helper.from_array(a.astype(np.float32), n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "unusual")
