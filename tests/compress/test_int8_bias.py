"""Bias correction of int8: the closed form, every operator with a bias, and the edges."""

from __future__ import annotations

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import methods
from dlas.data.dataset import Dataset
from dlas.graph.model import Model

RNG = np.random.default_rng(11)


def weights(*shape: int) -> np.ndarray:
    return RNG.normal(0, 0.4, shape).astype(np.float32)


def net(nodes, shape, out_shape, constants, opset: int = 18) -> Model:
    graph = helper.make_graph(
        [helper.make_node(op, i, [o], name=f"n{k}", **a) for k, (op, i, o, a) in enumerate(nodes)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, out_shape)],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return Model.from_proto(proto, "net")


def rows(*shape: int, count: int = 48) -> Dataset:
    """Rows after a ReLU, so that an error of the weights has a mean."""
    return Dataset(
        "rows", np.abs(np.random.default_rng(3).normal(0.5, 1, (count, *shape))).astype(np.float32)
    )


def int8(model: Model, data: Dataset, **options) -> Model:
    made = methods.get("int8")(calibration="min-max", **options).apply(model, data)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    return made


def dequantized(model: Model, layer: str, index: int) -> np.ndarray:
    """A constant input of a layer, in float."""
    node = next(n for n in model.ir.graph if n.name == layer)
    codes, scale = (model.initializers[v.name] for v in node.inputs[index].producer().inputs[:2])
    shape = [-1, *[1] * (codes.ndim - 1)] if scale.ndim else []
    return codes.astype(np.float64) * scale.reshape(shape)


def before_rounding(model: Model, layer: str, x: np.ndarray) -> np.ndarray:
    """A layer's output, in float arithmetic, before it is rounded to its own grid."""
    proto = model.to_proto()
    name = next(n for n in proto.graph.node if n.name == layer).output[0]
    if name not in [o.name for o in proto.graph.output]:
        proto.graph.output.append(onnx.ValueInfoProto(name=name))
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    step = session.get_inputs()[0].shape[0]
    step = step if isinstance(step, int) else len(x)
    return np.concatenate([session.run([name], {"x": x[i : i + step]})[0] for i in range(0, len(x), step)])


def channel_means(y: np.ndarray) -> np.ndarray:
    return y.astype(np.float64).mean(axis=(0, *range(2, y.ndim)))


def test_one_layer_gets_exactly_its_mean_error() -> None:
    w, b = weights(4, 3, 1, 1), weights(4)
    model = net([("Conv", ["x", "w", "b"], "y", {})], ["N", 3, 5, 5], ["N", 4, 5, 5], {"w": w, "b": b})
    data = rows(3, 5, 5)
    made = int8(model, data, per_channel=False, activations="int8")
    quantize = next(n for n in made.ir.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == "x")
    scale, zero = (made.initializers[v.name].astype(np.float64) for v in quantize.inputs[1:])
    x = data.samples.astype(np.float64)
    coded = (np.clip(np.rint(data.samples / np.float32(scale)) + zero, -128, 127) - zero) * scale
    matrix, coarse = w[:, :, 0, 0].astype(np.float64), dequantized(made, "n0", 1)[:, :, 0, 0]
    expected = matrix @ x.mean(axis=(0, 2, 3)) - coarse @ coded.mean(axis=(0, 2, 3))
    step = np.abs(coarse).max() / 127 * scale  # one code of the bias
    assert np.abs(expected).max() > 3 * step
    np.testing.assert_allclose(dequantized(made, "n0", 2) - b, expected, atol=0.51 * step + 1e-6)


LAYERS = {
    "conv": ("Conv", {"pads": [1, 1, 1, 1]}, (6, 4, 3, 3), 6, (4, 6, 6), (6, 6, 6)),
    "grouped": ("Conv", {"group": 2, "strides": [2, 2]}, (6, 2, 3, 3), 6, (4, 7, 7), (6, 3, 3)),
    "depthwise": ("Conv", {"group": 4}, (4, 1, 3, 3), 4, (4, 6, 6), (4, 4, 4)),
    "one-dimensional": ("Conv", {}, (6, 4, 3), 6, (4, 9), (6, 7)),
    "transposed": ("ConvTranspose", {"strides": [2, 2]}, (4, 6, 2, 2), 6, (4, 4, 4), (6, 8, 8)),
    "grouped transposed": ("ConvTranspose", {"group": 2}, (4, 3, 2, 2), 6, (4, 4, 4), (6, 5, 5)),
    "gemm": ("Gemm", {}, (12, 6), 6, (12,), (6,)),
    "gemm, transB": ("Gemm", {"transB": 1}, (6, 12), 6, (12,), (6,)),
}


@pytest.mark.parametrize("bias", [True, False])
@pytest.mark.parametrize("case", LAYERS)
def test_the_second_layer_keeps_its_mean(case: str, bias: bool) -> None:
    op, attributes, shape, channels, given, made = LAYERS[case]
    constants = {"w": weights(*shape), "scale": np.float32([0.9])}
    if bias:
        constants["b"] = weights(channels)
    inputs = ["r", "w", "b"] if bias else ["r", "w"]
    model = net(
        [("Mul", ["x", "scale"], "m", {}), ("Relu", ["m"], "r", {}), (op, inputs, "y", attributes)],
        ["N", *given], ["N", *made], constants,
    )  # fmt: skip
    data = rows(*given)
    wanted = channel_means(before_rounding(model, "n2", data.samples))
    off = {}
    for correct in (False, True):
        found = int8(model, data, per_channel=False, bias_correction=correct)
        off[correct] = np.abs(channel_means(before_rounding(found, "n2", data.samples)) - wanted).max()
    assert off[True] < 0.1 * off[False]


@pytest.mark.parametrize("batch", ["N", 1, 5])
@pytest.mark.parametrize("opset", [13, 18])
def test_error_does_not_add_up_over_layers(batch: str | int, opset: int) -> None:
    depth = 5
    constants = {f"w{i}": weights(8, 8, 3, 3) / 3 for i in range(depth)} | {
        f"b{i}": weights(8) for i in range(depth)
    }
    nodes = []
    for i in range(depth):
        source, last = ("x" if i == 0 else f"r{i - 1}"), i == depth - 1
        nodes.append(("Conv", [source, f"w{i}", f"b{i}"], "y" if last else f"c{i}", {"pads": [1, 1, 1, 1]}))
        nodes += [] if last else [("Relu", [f"c{i}"], f"r{i}", {})]
    model = net(nodes, [batch, 8, 6, 6], [batch, 8, 6, 6], constants, opset)
    data = rows(8, 6, 6, count=60)
    layer = f"n{2 * depth - 2}"
    wanted = channel_means(before_rounding(model, layer, data.samples))
    off = {}
    for correct in (False, True):
        found = int8(model, data, per_channel=False, bias_correction=correct)
        off[correct] = np.abs(channel_means(before_rounding(found, layer, data.samples)) - wanted).max()
    assert off[True] < 0.3 * off[False]


def test_all_zero_weights_have_no_error() -> None:
    b = weights(4)
    model = net(
        [("Conv", ["x", "w", "b"], "y", {})],
        ["N", 3, 4, 4], ["N", 4, 4, 4], {"w": np.zeros((4, 3, 1, 1), np.float32), "b": b},
    )  # fmt: skip
    made, plain = (int8(model, rows(3, 4, 4), bias_correction=c) for c in (True, False))
    assert made.to_bytes().count(b"_corrected") > 0
    np.testing.assert_allclose(dequantized(made, "n0", 2), dequantized(plain, "n0", 2), rtol=1e-6)
    np.testing.assert_allclose(dequantized(made, "n0", 2), b, atol=1e-3)


def test_an_overflow_behind_a_clip_leaves_the_bias_finite() -> None:
    model = net(
        [("Conv", ["x", "w", "b"], "c", {}), ("Clip", ["c", "low", "high"], "y", {})],
        ["N", 3, 4, 4], ["N", 2, 4, 4],
        {"w": np.full((2, 3, 1, 1), 3e38, np.float32), "b": np.zeros(2, np.float32),
         "low": np.float32(0), "high": np.float32(6)},
    )  # fmt: skip
    made = int8(model, rows(3, 4, 4))
    assert np.isfinite(dequantized(made, "n0", 2)).all()


def test_a_matrix_product_without_bias_is_left_alone() -> None:
    model = net([("MatMul", ["x", "w"], "y", {})], ["N", 5, 6], ["N", 5, 3], {"w": weights(6, 3)})
    made, plain = (int8(model, rows(5, 6), bias_correction=c) for c in (True, False))
    assert made.to_proto().graph == plain.to_proto().graph


def test_plan_counts_the_bias_that_is_added() -> None:
    model = net([("Conv", ["x", "w"], "y", {})], ["N", 3, 4, 4], ["N", 8, 4, 4], {"w": weights(8, 3, 1, 1)})
    planned = {
        c: methods.get("int8")(bias_correction=c).plan(model).expected["weight_bytes"].value
        for c in (True, False)
    }
    assert planned[True] - planned[False] == 8 * 4 + 8 * 8
