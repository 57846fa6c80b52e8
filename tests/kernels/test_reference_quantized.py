"""int8 references: to the bit as LiteRT computes layers drawn at random, and the arithmetic of requantisation."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
import tflite_layers as tl
from tflite_layers import Value

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.reference import quantized, quantized_elementwise
from dlas.kernels.reference.requantize import (
    Requantization,
    activation_range,
    high_product,
    quantize_multiplier,
    rounding_shift,
    scale_sum,
)

pytest.importorskip("ai_edge_litert", reason="the oracle is LiteRT")


def int8(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.integers(-128, 128, shape).astype(np.int8)


def weighted(rng: np.random.Generator, op: str) -> tuple[bytes, tl.Layer, np.ndarray]:
    """A layer with weights, its file and an input; a third have scales that are powers of two, for exact halves."""
    s = tl.schema()
    batch, channels, multiplier = (int(v) for v in rng.integers(1, 4, 3))
    filters = int(rng.integers(1, 20))
    kernel = tuple(int(v) for v in rng.integers(1, 4, 2))
    size = tuple(int(v) for v in rng.integers(4, 9, 2))
    if op == "FULLY_CONNECTED":
        depth = channels = int(rng.integers(1, 40))
        x, w = int8(rng, batch, channels), int8(rng, filters, channels)
        options = s.FullyConnectedOptionsT()
        shape: tuple[int, ...] = (batch, filters)
    else:
        x = int8(rng, batch, *size, channels)
        if op == "CONV_2D":
            w, options, depth = (
                int8(rng, filters, *kernel, channels),
                s.Conv2DOptionsT(),
                math.prod(kernel) * channels,
            )
        else:
            filters, depth = channels * multiplier, math.prod(kernel)
            w, options = int8(rng, 1, *kernel, filters), s.DepthwiseConv2DOptionsT()
            options.depthMultiplier = multiplier
        options.padding = int(rng.integers(2))
        options.strideH, options.strideW = (int(v) for v in rng.integers(1, 4, 2))
        if rng.random() < 0.3 and max(kernel) * 2 <= min(size):
            options.strideH = options.strideW = 1
            options.dilationHFactor, options.dilationWFactor = 2, 1
        strides, dilations = (
            (options.strideH, options.strideW),
            (options.dilationHFactor, options.dilationWFactor),
        )
        shape = (batch, *out_size(options.padding, size, kernel, strides, dilations), filters)
    options.fusedActivationFunction = int(rng.choice([0, 0, 1, 2, 3]))
    w = np.maximum(w, -127)
    per_channel = rng.random() < 0.6 or op == "DEPTHWISE_CONV_2D"
    if rng.random() < 1 / 3:
        scales = [2.0 ** -rng.integers(6, 9, filters if per_channel else 1), 2.0**-5]
        y_scale = 2.0 ** round(math.log2(scales[1] * scales[0].mean() * math.sqrt(depth) * 90))
    else:
        scales = [rng.uniform(0.001, 0.02, filters if per_channel else 1), rng.uniform(0.01, 0.05)]
        y_scale = scales[1] * scales[0].mean() * math.sqrt(depth) * rng.uniform(50, 200)
    w_scale, x_scale = np.float32(scales[0]), np.float32([scales[1]])
    inputs: list[Value | None] = [
        Value(x, x_scale, int(rng.integers(-128, 128))),
        Value(w, w_scale, 0, True),
        Value(rng.integers(-4000, 4000, filters).astype(np.int32), x_scale * w_scale, 0, True),
    ]
    output = Value(np.zeros(shape, np.int8), np.float32([y_scale]), int(rng.integers(-128, 128)))
    content = tl.one_layer(op, [v for v in inputs if v is not None], output, options)
    return content, tl.Layer(op, options, inputs, output), x


def as_it_comes(content: bytes, x: np.ndarray) -> None:
    """The one layer equals what LiteRT makes of it by XNNPACK."""
    np.testing.assert_array_equal(tl.run_ours(content, x, "xnnpack"), tl.run_default(content, x))


def out_size(padding: int, size: Any, kernel: Any, strides: Any, dilations: Any) -> tuple[int, ...]:
    reach = [0 if padding == 0 else (k - 1) * d for k, d in zip(kernel, dilations, strict=True)]
    return tuple(-(-(n - r) // s) for n, r, s in zip(size, reach, strides, strict=True))


@pytest.mark.parametrize("op", ["CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED"])
def test_layers_with_weights_equal_litert(op):
    rng = np.random.default_rng(sum(map(ord, op)))
    for _ in range(80):
        content, layer, x = weighted(rng, op)
        assert tl.compare(content, x) == [(op, 0, layer.output.data.size)]
        np.testing.assert_array_equal(tl.compute(layer, "xnnpack"), tl.run_default(content, x))


def test_other_roundings_would_be_told_apart():
    rng = np.random.default_rng(5)
    differ = dict.fromkeys(("single", "away", "xnnpack"), 0)
    for _ in range(40):
        content, _, x = weighted(rng, "DEPTHWISE_CONV_2D")
        (found,) = tl.run_reference(content, x)
        for rounding in differ:
            differ[rounding] += int((tl.compute(found, rounding) != found.output.data).sum())
    assert min(differ.values()) > 0


def test_pools_equal_litert():
    rng, s = np.random.default_rng(1), tl.schema()
    for _ in range(60):
        op = str(rng.choice(["AVERAGE_POOL_2D", "MAX_POOL_2D"]))
        x = Value(int8(rng, int(rng.integers(1, 3)), *rng.integers(4, 9, 2), int(rng.integers(1, 6))))
        x.scale, x.zero_point = np.float32([rng.uniform(0.01, 0.1)]), int(rng.integers(-128, 128))
        o = s.Pool2DOptionsT()
        o.padding, o.fusedActivationFunction = int(rng.integers(2)), int(rng.choice([0, 1, 3]))
        o.filterHeight, o.filterWidth = (int(v) for v in rng.integers(1, 5, 2))
        o.strideH, o.strideW = (int(v) for v in rng.integers(1, 4, 2))
        size = out_size(
            o.padding, x.data.shape[1:3], (o.filterHeight, o.filterWidth), (o.strideH, o.strideW), (1, 1)
        )
        y = Value(np.zeros((len(x.data), *size, x.data.shape[3]), np.int8), x.scale, x.zero_point)
        content = tl.one_layer(op, [x], y, o)
        assert tl.compare(content, x.data) == [(op, 0, y.data.size)]
        as_it_comes(content, x.data)


def test_sums_and_products_equal_litert():
    rng, s = np.random.default_rng(2), tl.schema()
    shapes = [((2, 5, 7), (2, 5, 7)), ((1, 4, 4, 9), (1, 1, 1, 9)), ((3, 50), (50,)), ((2, 30), (2, 30))]
    for trial in range(80):
        op = "ADD" if trial % 2 else "MUL"
        o = s.AddOptionsT() if trial % 2 else s.MulOptionsT()
        o.fusedActivationFunction = int(rng.choice([0, 1, 2, 3]))
        left, right = shapes[trial // 2 % len(shapes)]
        values = [
            Value(int8(rng, *shape), np.float32([rng.uniform(0.005, 0.1)]), int(rng.integers(-128, 128)))
            for shape in (left, right)
        ]
        values[1].constant = True
        largest = float(values[0].step * values[1].step * 2e4 if op == "MUL" else 250 * values[0].step)
        y = Value(
            np.zeros(left, np.int8),
            np.float32([largest / rng.uniform(100, 500)]),
            int(rng.integers(-128, 128)),
        )
        content = tl.one_layer(op, values, y, o, version=2)
        assert tl.compare(content, values[0].data) == [(op, 0, y.data.size)]
        as_it_comes(content, values[0].data)


def test_softmax_equals_litert():
    rng, s = np.random.default_rng(3), tl.schema()
    for trial in range(80):
        o = s.SoftmaxOptionsT()
        o.beta = 1.0 if trial % 3 else float(rng.uniform(0.3, 2))
        shape = [(4, 10), (1, 1000), (2, 3, 5), (3, 1)][trial % 4]
        # LiteRT aborts where the exponentials of a row sum up to 512 and more.
        lowest = -1 if shape[-1] == 1000 else -3
        x = Value(
            int8(rng, *shape), np.float32([10 ** rng.uniform(lowest, 0.5)]), int(rng.integers(-128, 128))
        )
        y = Value(np.zeros(shape, np.int8), np.float32([1 / 256]), -128)
        content = tl.one_layer("SOFTMAX", [x], y, o, version=2)
        assert tl.compare(content, x.data) == [("SOFTMAX", 0, x.data.size)]
        as_it_comes(content, x.data)


def test_means_equal_litert():
    rng, s = np.random.default_rng(4), tl.schema()
    for trial in range(60):
        o = s.ReducerOptionsT()
        o.keepDims = bool(trial % 2)
        shape = (2, int(rng.integers(1, 9)), int(rng.integers(1, 9)), 6)
        axes = [(1, 2), (1,), (3,), (-2, 1)][trial % 4]
        x = Value(int8(rng, *shape), np.float32([rng.uniform(0.01, 0.1)]), int(rng.integers(-128, 128)))
        y_scale, zero_point = np.float32([rng.uniform(0.01, 0.1)]), int(rng.integers(-128, 128))
        size = np.zeros(shape).mean(axis=axes, keepdims=o.keepDims).shape
        y = Value(np.zeros(size, np.int8), y_scale, zero_point)
        content = tl.one_layer("MEAN", [x, Value(np.int32(axes), constant=True)], y, o, version=2)
        assert tl.compare(content, x.data) == [("MEAN", 0, y.data.size)]
        if trial % 4 == 0:  # over the image: what XNNPACK takes
            as_it_comes(content, x.data)


def test_conversions_equal_litert():
    rng, s = np.random.default_rng(6), tl.schema()
    for trial in range(40):
        scale, zero_point = (
            np.float32([2.0**-4 if trial % 2 else rng.uniform(0.01, 0.1)]),
            int(rng.integers(-128, 128)),
        )
        real = Value(np.float32(np.round(rng.normal(0, 4, 200) * 32) / 32))
        whole = Value(int8(rng, 200), scale, zero_point)
        content = tl.one_layer("QUANTIZE", [real], whole, s.QuantizeOptionsT(), version=1)
        assert tl.compare(content, real.data) == [("QUANTIZE", 0, 200)]
        as_it_comes(content, real.data)
        content = tl.one_layer("DEQUANTIZE", [whole], real, s.DequantizeOptionsT(), version=2)
        assert tl.compare(content, whole.data) == [("DEQUANTIZE", 0, 200)]
        other = Value(
            np.zeros(200, np.int8), np.float32([rng.uniform(0.01, 0.1)]), int(rng.integers(-128, 128))
        )
        content = tl.one_layer("QUANTIZE", [whole], other, s.QuantizeOptionsT(), version=2)
        assert tl.compare(content, whole.data) == [("QUANTIZE", 0, 200)]


def test_padding_holds_the_zero_point():
    found = quantized.pad(np.ones((1, 2), np.int8), [(1, 0), (0, 2)], -7)
    np.testing.assert_array_equal(found, np.int8([[-7, -7, -7, -7], [1, 1, -7, -7]]))
    with pytest.raises(ShapeError, match="1 widths for 2 axes"):
        quantized.pad(np.ones((1, 2), np.int8), [(1, 0)], 0)
    with pytest.raises(ShapeError, match="widths"):
        quantized.pad(np.ones((1, 2), np.int8), [(1, -1), (0, 0)], 0)


@pytest.mark.parametrize(
    ("real", "expected"),
    [
        (0.0, (0, 0)),
        (1.0, (2**30, 1)),
        (0.5, (2**30, 0)),
        (0.75, (3 * 2**29, 0)),
        (1 - 2**-40, (2**30, 1)),
        (3.0, (3 * 2**29, 2)),
        (2.0**-40, (0, 0)),
        (2.0**-32, (2**30, -31)),
    ],
)
def test_multiplier_of_a_factor(real, expected):
    assert quantize_multiplier(real) == expected


@pytest.mark.parametrize("real", [-1.0, math.nan, math.inf, 2.0**31])
def test_multiplier_refuses(real):
    with pytest.raises(OptionError, match="multiplier"):
        quantize_multiplier(real)


def test_roundings_of_a_shift():
    x = np.arange(-9, 10)
    expected = [math.copysign(math.floor(abs(v) / 4 + 0.5), v) for v in x]
    np.testing.assert_array_equal(rounding_shift(x, 2), expected)
    np.testing.assert_array_equal(rounding_shift(x, 0), x)


def test_high_product_saturates_and_rounds():
    low = -(2**31)
    np.testing.assert_array_equal(high_product(np.array([low, low, 2**30, 1]), np.array([low, 2**30, 2**30, 1])),
                                  [2**31 - 1, -(2**30), 2**29, 0])  # fmt: skip
    rng = np.random.default_rng(0)
    a, b = rng.integers(low, 2**31, (2, 500))
    exact = [2 * int(p) * int(q) for p, q in zip(a, b, strict=True)]
    # gemmlowp adds a half away from zero, less one for negative products, and truncates.
    expected = [(e + 2**31) // 2**32 if e >= 0 else -((-e + 2**31 - 2) // 2**32) for e in exact]
    np.testing.assert_array_equal(high_product(a, b), np.minimum(expected, 2**31 - 1))


@pytest.mark.parametrize("rounding", ["double", "single", "away"])
def test_scaling_is_near_the_real_product(rounding):
    rng = np.random.default_rng(1)
    for _ in range(200):
        real = float(2 ** rng.uniform(-12, 3))
        x = rng.integers(-(2**20), 2**20, 50)
        found = scale_sum(x, *quantize_multiplier(real), rounding)
        assert np.abs(found - x * real).max() <= 1.001
    with pytest.raises(OptionError, match="rounding"):
        scale_sum(np.arange(3), 1, 0, "up")


def test_activation_ranges():
    assert activation_range("none", 0.1, 5) == (-128, 127)
    assert activation_range("relu", 0.1, 5) == (5, 127)
    assert activation_range("relu6", 0.1, -100) == (-100, -40)
    assert activation_range("relu6", 0.01, 0) == (0, 127)
    assert activation_range("relu-n1-to-1", 0.1, 0) == (-10, 10)
    with pytest.raises(OptionError, match="activation"):
        activation_range("gelu", 0.1, 0)


def test_requantization_refuses():
    with pytest.raises(OptionError, match="w_scale"):
        Requantization.of(0.1, np.float32([0.1, 0.0]), 0.1, 0)
    with pytest.raises(OptionError, match="x_scale"):
        Requantization.of(math.nan, 0.1, 0.1, 0)
    with pytest.raises(OptionError, match="rounding"):
        Requantization.of(0.1, 0.1, 0.1, 0, rounding="up")
    with pytest.raises(ShapeError, match="2 multipliers for 3 channels"):
        Requantization.of(0.1, np.float32([0.1, 0.2]), 0.1, 0).apply(np.zeros((1, 3), np.int64))


def test_layers_refuse_what_does_not_fit():
    one = Requantization.of(0.1, 0.1, 0.1, 0)
    x = np.zeros((1, 4, 4, 3), np.int8)
    with pytest.raises(ShapeError, match="x is uint8"):
        quantized.conv2d(x.astype(np.uint8), np.zeros((2, 1, 1, 3), np.int8), None, one, x_zero_point=0)
    with pytest.raises(ShapeError, match="divisor"):
        quantized.conv2d(x, np.zeros((2, 1, 1, 2), np.int8), None, one, x_zero_point=0)
    with pytest.raises(ShapeError, match="b has 3"):
        quantized.conv2d(x, np.zeros((2, 1, 1, 3), np.int8), np.zeros(3, np.int32), one, x_zero_point=0)
    with pytest.raises(ShapeError, match="w has the shape"):
        quantized.depthwise_conv2d(x, np.zeros((1, 1, 1, 4), np.int8), None, one, x_zero_point=0)
    with pytest.raises(ShapeError, match="features"):
        quantized.fully_connected(x[0, 0], np.zeros((2, 4), np.int8), None, one, x_zero_point=0)
    with pytest.raises(ShapeError, match="padding"):
        quantized.average_pool2d(x, (1, 1), pads=(2, 0, 0, 0))
    with pytest.raises(ShapeError, match="does not fit"):
        quantized.max_pool2d(x, (5, 5))
    with pytest.raises(OptionError, match="NaN"):
        quantized_elementwise.quantize(np.float32([math.nan]), 0.1, 0)
    with pytest.raises(OptionError, match="scale"):
        quantized_elementwise.dequantize(np.int8([1]), 0.0, 0)
    with pytest.raises(ShapeError, match="broadcast"):
        quantized_elementwise.add(
            np.zeros(2, np.int8), np.zeros(3, np.int8), a_scale=1, a_zero_point=0, b_scale=1, b_zero_point=0,
            y_scale=1, y_zero_point=0,
        )  # fmt: skip


def test_means_and_pads_refuse_what_does_not_fit():
    given = {"x_scale": 0.1, "x_zero_point": 0, "y_scale": 0.1, "y_zero_point": 0}
    with pytest.raises(ShapeError, match="axis = 3"):
        quantized.mean(np.zeros((2, 3, 4), np.int8), [3], **given)
    with pytest.raises(ShapeError, match="something to average"):
        quantized.mean(np.zeros((2, 0), np.int8), [1], **given)
    with pytest.raises(ShapeError, match="x is a list"):
        quantized.pad([1], [(0, 0)], 0)
    with pytest.raises(OptionError, match="scales"):
        quantized_elementwise.add(
            np.zeros(2, np.int8), np.zeros(2, np.int8), a_scale=1e9, a_zero_point=0, b_scale=1, b_zero_point=0,
            y_scale=1, y_zero_point=0, rounding="xnnpack",
        )  # fmt: skip


def test_softmax_of_many_equal_numbers_vanishes():
    x = np.zeros((1, 1000), np.int8)
    for rounding in ("double", "xnnpack"):
        assert set(quantized_elementwise.softmax(x, x_scale=0.1, rounding=rounding).ravel().tolist()) == {
            -128
        }
