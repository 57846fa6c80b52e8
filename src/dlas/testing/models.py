"""Tiny networks for conformance suites: one residual CNN in the forms a back end or a method meets.

All share the same weights (drawn from the seed), take an image batch called ``image`` and give ten ``logits``:

* :func:`residual`: float32, ``(N, 3, 12, 12)``: conv, batch norm, ReLU, residual add, max pool, depthwise conv, fully
  connected.
* :func:`residual_nhwc`: the same with an ``(N, 12, 12, 3)`` input, as networks imported from TFLite have it.
* :func:`residual_half`: float16 weights and arithmetic between two casts; inputs and outputs stay float32.
* :func:`residual_quantized`: int8 in QDQ form: per-channel symmetric weights, per-tensor asymmetric activations.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
from onnx import helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlas.graph.model import OPSET, Model

SIZE = 12
CLASSES = 10
_CHANNELS = 8


def residual(seed: int = 0, *, nan: bool = False) -> Model:
    """The network in float32; with ``nan`` one weight of the last layer is not a number."""
    return Model.from_proto(_float_graph(seed, nan=nan).proto("residual"), "residual")


def residual_nhwc(seed: int = 0) -> Model:
    """The network behind a channels-last input."""
    return Model.from_proto(_float_graph(seed, nhwc=True).proto("residual-nhwc"), "residual-nhwc")


def residual_half(seed: int = 0) -> Model:
    """The network in float16, with float32 inputs and outputs."""
    return Model.from_proto(_float_graph(seed, dtype=np.float16).proto("residual-half"), "residual-half")


def residual_quantized(seed: int = 0) -> Model:
    """The network in int8 QDQ form, calibrated on :func:`images`."""
    return Model.from_proto(_quantized_graph(seed).proto("residual-int8"), "residual-int8")


def images(count: int = 1, seed: int = 1, *, nhwc: bool = False) -> np.ndarray:
    """Random inputs, ``(count, 3, 12, 12) float32`` (channels last if ``nhwc``), about -3 to 3."""
    shape = (count, SIZE, SIZE, 3) if nhwc else (count, 3, SIZE, SIZE)
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


@dataclass
class _Builder:
    """Collects nodes and weights of one graph."""

    input_shape: Sequence[Any]
    nodes: list[onnx.NodeProto] = field(default_factory=list)
    weights: list[onnx.TensorProto] = field(default_factory=list)

    def weight(self, name: str, array: np.ndarray | np.generic) -> str:
        self.weights.append(numpy_helper.from_array(np.array(array, order="C"), name))
        return name

    def node(self, op: str, inputs: Sequence[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, list(inputs), [output], name=f"{output}_{op}", **attributes))
        return output

    def proto(self, name: str, extra_outputs: Sequence[str] = ()) -> onnx.ModelProto:
        real = onnx.TensorProto.FLOAT
        graph = helper.make_graph(
            self.nodes,
            name,
            [helper.make_tensor_value_info("image", real, self.input_shape)],
            [helper.make_tensor_value_info("logits", real, ["N", CLASSES])]
            + [helper.make_tensor_value_info(o, real, None) for o in extra_outputs],
            self.weights,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        return onnx.shape_inference.infer_shapes(proto)


def _draw(seed: int) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(seed)

    def normal(*shape: int) -> np.ndarray:
        fan_in = int(np.prod(shape[1:]))
        return (rng.standard_normal(shape) * np.sqrt(2 / fan_in)).astype(np.float32)

    c = _CHANNELS
    drawn = {"w1": normal(c, 3, 3, 3), "w2": normal(c, c, 3, 3), "w3": normal(c, 1, 3, 3)}
    drawn["b3"] = rng.standard_normal(c).astype(np.float32) * np.float32(0.1)
    drawn["fc_w"] = normal(CLASSES, c)
    drawn["fc_b"] = rng.standard_normal(CLASSES).astype(np.float32) * np.float32(0.1)
    for layer in ("1", "2"):
        drawn["gamma" + layer] = rng.uniform(0.5, 1.5, c).astype(np.float32)
        drawn["beta" + layer] = rng.standard_normal(c).astype(np.float32) * np.float32(0.2)
        drawn["mean" + layer] = rng.standard_normal(c).astype(np.float32) * np.float32(0.2)
        drawn["var" + layer] = rng.uniform(0.5, 2.0, c).astype(np.float32)
    return drawn


def _float_graph(seed: int, *, dtype: type = np.float32, nhwc: bool = False, nan: bool = False) -> _Builder:
    weights = _draw(seed)
    if nan:
        weights["fc_w"][3, 0] = np.nan
    b = _Builder(["N", SIZE, SIZE, 3] if nhwc else ["N", 3, SIZE, SIZE])
    w = {name: b.weight(name, array.astype(dtype)) for name, array in weights.items()}
    half = dtype is np.float16
    x = "image"
    if nhwc:
        x = b.node("Transpose", [x], "image_nchw", perm=[0, 3, 1, 2])
    if half:
        x = b.node("Cast", [x], "image_half", to=onnx.TensorProto.FLOAT16)
    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    x = b.node("Conv", [x, w["w1"]], "conv1", **same)
    x = b.node("BatchNormalization", [x, w["gamma1"], w["beta1"], w["mean1"], w["var1"]], "bn1")
    skip = b.node("Relu", [x], "relu1")
    x = b.node("Conv", [skip, w["w2"]], "conv2", **same)
    x = b.node("BatchNormalization", [x, w["gamma2"], w["beta2"], w["mean2"], w["var2"]], "bn2")
    x = b.node("Relu", [b.node("Add", [x, skip], "sum")], "relu2")
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    x = b.node("Conv", [x, w["w3"], w["b3"]], "conv3", group=_CHANNELS, strides=[2, 2], **same)
    x = b.node("GlobalAveragePool", [b.node("Relu", [x], "relu3")], "mean")
    x = b.node("Flatten", [x], "flat")
    x = b.node("Gemm", [x, w["fc_w"], w["fc_b"]], "fc" if half else "logits", transB=1)
    if half:
        b.node("Cast", [x], "logits", to=onnx.TensorProto.FLOAT)
    return b


def _quantized_graph(seed: int) -> _Builder:
    weights = _fold(_draw(seed))
    ranges = _ranges(seed)
    b = _Builder(["N", 3, SIZE, SIZE])
    scales: dict[str, np.float32] = {}

    def activation(tensor: str) -> str:
        low, high = ranges[tensor]
        scale = np.float32((high - low) / 255)
        zero = np.clip(np.round(-128 - low / scale), -128, 127).astype(np.int8)
        pair = [b.weight(tensor + "_scale", scale), b.weight(tensor + "_zero", zero)]
        name = b.node("QuantizeLinear", [tensor, *pair], tensor + "_q")
        real = b.node("DequantizeLinear", [name, *pair], "logits" if tensor == "fc" else tensor + "_dq")
        scales[real] = scale
        return real

    def weighted(x: str, layer: str) -> list[str]:
        real = weights["w" + layer]
        rows = np.abs(real.reshape(len(real), -1)).max(axis=1)
        scale = (rows / 127).astype(np.float32)
        spread = scale.reshape(-1, *[1] * (real.ndim - 1))
        stored = np.clip(np.round(real / spread), -127, 127).astype(np.int8)
        joint = scales[x] * scale
        bias = np.round(weights["b" + layer] / joint).astype(np.int32)
        w = [b.weight(f"w{layer}_q", stored), b.weight(f"w{layer}_scale", scale)]
        c = [b.weight(f"b{layer}_q", bias), b.weight(f"b{layer}_scale", joint.astype(np.float32))]
        return [
            x,
            b.node(
                "DequantizeLinear",
                [*w, b.weight(f"w{layer}_zero", np.zeros(len(scale), np.int8))],
                f"w{layer}",
                axis=0,
            ),
            b.node(
                "DequantizeLinear",
                [*c, b.weight(f"b{layer}_zero", np.zeros(len(scale), np.int32))],
                f"b{layer}",
                axis=0,
            ),
        ]

    same = {"kernel_shape": [3, 3], "pads": [1, 1, 1, 1]}
    x = activation("image")
    x = b.node("Conv", weighted(x, "1"), "conv1", **same)
    skip = activation(b.node("Relu", [x], "relu1"))
    x = activation(b.node("Conv", weighted(skip, "2"), "conv2", **same))
    x = activation(b.node("Relu", [b.node("Add", [x, skip], "sum")], "relu2"))
    x = b.node("MaxPool", [x], "pool", kernel_shape=[2, 2], strides=[2, 2])
    # A pooled tensor keeps the scale of what was pooled.
    pair = ["relu2_scale", "relu2_zero"]
    x = b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, *pair], "pool_q"), *pair], "pool_dq")
    scales[x] = scales["relu2_dq"]
    x = b.node("Conv", weighted(x, "3"), "conv3", group=_CHANNELS, strides=[2, 2], **same)
    x = activation(b.node("Relu", [x], "relu3"))
    x = activation(b.node("GlobalAveragePool", [x], "mean"))
    x = b.node("Flatten", [x], "flat")
    pair = ["mean_scale", "mean_zero"]
    x = b.node("DequantizeLinear", [b.node("QuantizeLinear", [x, *pair], "flat_q"), *pair], "flat_dq")
    scales[x] = scales["mean_dq"]
    activation(b.node("Gemm", weighted(x, "4"), "fc", transB=1))
    return b


def _fold(drawn: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Batch norms folded into their convolutions; layers numbered 1 to 4."""
    folded = {"w3": drawn["w3"], "b3": drawn["b3"], "w4": drawn["fc_w"], "b4": drawn["fc_b"]}
    for layer in ("1", "2"):
        factor = drawn["gamma" + layer] / np.sqrt(drawn["var" + layer] + 1e-5)
        folded["w" + layer] = drawn["w" + layer] * factor.reshape(-1, 1, 1, 1)
        folded["b" + layer] = drawn["beta" + layer] - drawn["mean" + layer] * factor
    return folded


def _ranges(seed: int) -> dict[str, tuple[float, float]]:
    """Smallest and largest value of each activation on calibration images, zero included."""
    taps = {
        "relu1": "relu1",
        "bn2": "conv2",
        "relu2": "relu2",
        "relu3": "relu3",
        "mean": "mean",
        "logits": "fc",
    }
    graph = _float_graph(seed).proto("calibration", [t for t in taps if t != "logits"])
    order = [o.name for o in graph.graph.output]
    data = images(16, seed=100)
    found = {
        "image": data,
        **dict(zip(order, ReferenceEvaluator(graph).run(None, {"image": data}), strict=True)),
    }
    taps["image"] = "image"
    return {to: (min(float(found[t].min()), 0.0), max(float(found[t].max()), 0.0)) for t, to in taps.items()}
