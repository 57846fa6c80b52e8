"""Transposed convolution of int8: to the bit as LiteRT's reference kernel computes layers drawn at random."""

from __future__ import annotations

import numpy as np
import pytest
import tflite_layers as tl
from int8_cases import Factors, random_bytes
from tflite_layers import Value

from dlas.core.errors import ShapeError
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv_transpose2d
from dlas.kernels.reference.quantized_transpose import transpose_conv2d
from dlas.kernels.reference.requantize import Requantization
from dlas.kernels.single import Bench


def transposed(rng: np.random.Generator) -> tuple[bytes, np.ndarray, int]:
    """A file with one TRANSPOSE_CONV, an input, and the number of its outputs."""
    s = tl.schema()
    batch, channels, filters = int(rng.integers(1, 3)), int(rng.integers(1, 20)), int(rng.integers(1, 12))
    kernel, size = rng.integers(1, 6, 2).tolist(), rng.integers(1, 7, 2).tolist()
    o = s.TransposeConvOptionsT()
    o.padding = int(rng.integers(2))
    o.strideH, o.strideW = strides = rng.integers(1, 4, 2).tolist()
    natural = [(n - 1) * d + k for n, d, k in zip(size, strides, kernel, strict=True)]
    out = natural if o.padding else [n * d for n, d in zip(size, strides, strict=True)]
    shape = [batch, *out, filters]
    w_scale = np.float32(rng.uniform(0.001, 0.02, filters))
    x_scale = np.float32([rng.uniform(0.01, 0.05)])
    spread = x_scale[0] * w_scale.mean() * np.sqrt(channels * np.prod(kernel) / np.prod(strides))
    inputs = [
        Value(np.array(shape, np.int32), constant=True),
        Value(rng.integers(-127, 128, (filters, *kernel, channels)).astype(np.int8), w_scale, 0, True),
        Value(random_bytes(rng, (batch, *size, channels), "int8"), x_scale, int(rng.integers(-128, 128))),
        Value(rng.integers(-4000, 4000, filters).astype(np.int32), x_scale * w_scale, 0, True),
    ]
    y_scale = np.float32([spread * rng.uniform(50, 200)])
    output = Value(np.zeros(shape, np.int8), y_scale, int(rng.integers(-128, 128)))
    return tl.one_layer("TRANSPOSE_CONV", inputs, output, o), inputs[2].data, output.data.size


def test_it_equals_litert():
    pytest.importorskip("ai_edge_litert", reason="the oracle is LiteRT")
    rng = np.random.default_rng(0)
    for _ in range(80):
        content, x, count = transposed(rng)
        (layer,) = tl.run_reference(content, x)
        assert tl.compare(content, x) == [("TRANSPOSE_CONV", 0, count)]
        assert layer.inputs[1] is not None
        kernel, strides = layer.inputs[1].data.shape[1:3], (layer.options.strideH, layer.options.strideW)
        if all(k >= s for k, s in zip(kernel, strides, strict=True)):  # XNNPACK takes no others
            np.testing.assert_array_equal(tl.compute(layer, "xnnpack"), tl.run_default(content, x))


@pytest.mark.parametrize("rounding", ["double", "single", "xnnpack"])
@pytest.mark.parametrize("dtype", ["int8", "uint8"])
def test_the_kernel_is_the_reference(dtype: str, rounding: str):
    rng = np.random.default_rng(1)
    kernel = kernels.get("int8-conv-transpose")()
    for _ in range(20):
        depth, channels = rng.integers(1, 12, 2).tolist()
        size, taps, strides = rng.integers(1, 6, (3, 2)).tolist()
        pads = [int(rng.integers(0, k)) for k in taps]
        out = [(n - 1) * s + k - p for n, s, k, p in zip(size, strides, taps, pads, strict=True)]
        x = random_bytes(rng, (2, depth, *size), dtype)
        w = rng.integers(-127, 128, (depth, channels, *taps)).astype(np.int8)
        bias = rng.integers(-500, 500, channels).astype(np.int32) if rng.random() < 0.7 else None
        factors = Factors(rng, channels, 100.0 * depth, dtype, rounding)
        zero = int(rng.integers(0, 100))
        attributes = factors.attributes | {
            "kernel_shape": tuple(taps), "strides": tuple(strides), "dilations": (1, 1),
            "pads": (*pads, 0, 0), "group": 1, "x_zero_point": zero,
        }  # fmt: skip
        operands = [Operand(x.shape, dtype), Operand.of(w), *factors.inputs(bias)]
        node = Node(
            "QConvTranspose", "up", attributes, tuple(operands), (Operand((2, channels, *out), dtype),)
        )
        real = conv_transpose2d(
            (x.astype(np.int32) - zero).astype(np.float32),
            w.astype(np.float32),
            strides=strides,
            pads=(*pads, 0, 0),
        )
        sums = np.rint(real).astype(np.int64).transpose(0, 2, 3, 1) + (0 if bias is None else bias)
        given = [x, *(None for _ in operands[1:])]
        (found,) = Bench(kernel, node, given, Context()).run()
        np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), factors.apply(sums))


def test_what_the_kernel_refuses():
    kernel = kernels.get("int8-conv-transpose")()
    x, w = Operand((1, 2, 3, 3), "int8"), Operand.of(np.zeros((2, 2, 3, 3), np.int8))

    def node(x: Operand = x, w: Operand = w, **more: object) -> Node:
        attributes = {"group": 1, "dilations": (1, 1)} | more
        return Node("QConvTranspose", "up", attributes, (x, w), (Operand((1, 2, 5, 5), "int8"),))

    assert kernel.refuses(node(), Context()) == ""
    assert "int8 or uint8" in kernel.refuses(node(x=Operand((1, 2, 3, 3))), Context())
    assert "constant" in kernel.refuses(node(w=Operand((2, 2, 3, 3), "int8")), Context())
    assert "group" in kernel.refuses(node(group=2), Context())


def test_what_does_not_fit_is_said():
    factors = Requantization.of(0.1, 0.1, 0.1, 0)
    x, w = np.zeros((1, 3, 3, 2), np.int8), np.zeros((4, 3, 3, 2), np.int8)
    with pytest.raises(ShapeError, match="channels"):
        transpose_conv2d(x, w[..., :1], None, factors, x_zero_point=0, size=(3, 3))
    with pytest.raises(ShapeError, match="one for each of 4 filters"):
        transpose_conv2d(x, w, np.zeros(3, np.int32), factors, x_zero_point=0, size=(3, 3))
    assert transpose_conv2d(x, w, None, factors, x_zero_point=0, size=(9, 7)).shape == (1, 9, 7, 4)
