"""ONNX's quantised layers: to the bit as ONNX Runtime computes them."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_oracle import run_node

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.reference import qlinear


def whole(rng: np.random.Generator, dtype: type, *shape: int) -> np.ndarray:
    limits = np.iinfo(dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(dtype)


def test_qlinear_conv_equals_onnxruntime():
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 200:
        kinds = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)]
        x_type, w_type = kinds[rng.integers(3)]
        groups = int(rng.choice([1, 1, 2, 3]))
        per_group, filters = int(rng.integers(1, 6)), groups * int(rng.integers(1, 6))
        kernel = [int(v) for v in rng.integers(1, 4, 2)]
        strides, dilations = ([int(v) for v in rng.integers(1, 5 - 2 * t, 2)] for t in (0, 1))
        pads = [int(v) for v in rng.integers(0, 3, 4)]
        size = [int(v) for v in rng.integers(1, 9, 2)]
        if any(size[a] + pads[a] + pads[2 + a] < (kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)):
            continue
        tried += 1
        per_channel = bool(rng.integers(2))
        count = filters if per_channel else 1
        x = whole(rng, x_type, int(rng.integers(1, 3)), groups * per_group, *size)
        w = whole(rng, w_type, filters, per_group, *kernel)
        zeros = np.zeros(count, w_type) if per_channel or w_type == np.int8 else whole(rng, w_type, 1)
        w_scale = rng.uniform(0.001, 0.02, count).astype(np.float32)
        x_scale = np.float32(rng.uniform(0.01, 0.05))
        y_scale = np.float32(x_scale * w_scale.mean() * np.sqrt(per_group * np.prod(kernel)) * 100)
        if tried % 3 == 0:  # exact halves
            w_scale, x_scale, y_scale = np.full(count, 2.0**-7, np.float32), np.float32(0.5), np.float32(0.25)
        x_zero, y_zero = whole(rng, x_type, 1)[0], whole(rng, x_type, 1)[0]
        b = rng.integers(-4000, 4000, filters).astype(np.int32) if tried % 2 else None
        if not per_channel:
            w_scale, zeros = w_scale.reshape(()), zeros.reshape(())
        found = qlinear.qlinear_conv(
            x, w, b, x_scale=x_scale, x_zero_point=x_zero, w_scale=w_scale, w_zero_point=zeros, y_scale=y_scale,
            y_zero_point=y_zero, strides=strides, pads=pads, dilations=dilations, groups=groups,
        )  # fmt: skip
        given = {
            "x": x, "xs": np.asarray(x_scale), "xz": np.asarray(x_zero), "w": w, "ws": w_scale, "wz": zeros,
            "ys": np.asarray(y_scale), "yz": np.asarray(y_zero), "b": b,
        }  # fmt: skip
        asked = {"strides": strides, "pads": pads, "dilations": dilations, "group": groups}
        (expected,) = run_node("QLinearConv", given, **asked)
        assert found.dtype == expected.dtype
        np.testing.assert_array_equal(found, expected)


def test_qlinear_matmul_equals_onnxruntime():
    rng = np.random.default_rng(1)
    for _ in range(200):
        a_type, b_type = [(np.uint8, np.uint8), (np.uint8, np.int8), (np.int8, np.int8)][rng.integers(3)]
        m, k, n = (int(v) for v in rng.integers(1, 30, 3))
        lead = [(), (2,), (2, 3)][rng.integers(3)]
        a, b = whole(rng, a_type, *lead, m, k), whole(rng, b_type, k, n)
        a_scale, b_scale = (np.float32(v) for v in rng.uniform(0.01, 0.05, 2))
        y_scale = np.float32(a_scale * b_scale * np.sqrt(k) * 4000)
        a_zero, b_zero, y_zero = whole(rng, a_type, 1)[0], whole(rng, b_type, 1)[0], whole(rng, a_type, 1)[0]
        found = qlinear.qlinear_matmul(
            a, b, a_scale=a_scale, a_zero_point=a_zero, b_scale=b_scale, b_zero_point=b_zero, y_scale=y_scale,
            y_zero_point=y_zero,
        )  # fmt: skip
        given = {
            "a": a, "as": np.asarray(a_scale), "az": np.asarray(a_zero), "b": b, "bs": np.asarray(b_scale),
            "bz": np.asarray(b_zero), "ys": np.asarray(y_scale), "yz": np.asarray(y_zero),
        }  # fmt: skip
        np.testing.assert_array_equal(found, run_node("QLinearMatMul", given)[0])
        sums = run_node("MatMulInteger", {k: given[k] for k in ("a", "b", "az", "bz")})[0]
        ours = qlinear.matmul_integer(a, b, a_zero_point=a_zero, b_zero_point=b_zero)
        np.testing.assert_array_equal(ours, sums)


def test_matmul_integer_takes_zero_points_per_column():
    rng = np.random.default_rng(2)
    a, b, zeros = whole(rng, np.uint8, 4, 7), whole(rng, np.int8, 7, 5), whole(rng, np.int8, 5)
    expected = run_node("MatMulInteger", {"a": a, "b": b, "az": np.array(9, np.uint8), "bz": zeros})[0]
    np.testing.assert_array_equal(qlinear.matmul_integer(a, b, a_zero_point=9, b_zero_point=zeros), expected)


@pytest.mark.parametrize("dtype", [np.int8, np.uint8])
def test_conversions_equal_onnxruntime(dtype):
    rng = np.random.default_rng(3)
    x = (np.round(rng.normal(0, 4, (3, 5, 40)) * 32) / 32).astype(np.float32)
    for axis, scale in (
        (1, np.float32(2.0**-4)),
        (1, rng.uniform(0.02, 0.1, 5)),
        (2, rng.uniform(0.02, 0.1, 40)),
    ):
        step = np.asarray(scale, np.float32)
        zero = whole(rng, dtype, *step.shape) if step.ndim else np.asarray(dtype(7))
        given = {"x": x, "s": step, "z": zero}
        q = qlinear.quantize_linear(x, step, zero, axis=axis)
        np.testing.assert_array_equal(q, run_node("QuantizeLinear", given, axis=axis)[0])
        back = qlinear.dequantize_linear(q, step, zero, axis=axis)
        np.testing.assert_array_equal(back, run_node("DequantizeLinear", {**given, "x": q}, axis=axis)[0])


def test_what_does_not_fit_is_named():
    x, w = np.zeros((1, 4, 5, 5), np.uint8), np.zeros((6, 4, 3, 3), np.int8)
    given = {"x_scale": 0.1, "x_zero_point": 0, "w_scale": 0.1, "w_zero_point": 0, "y_scale": 0.1}
    for change, error, named in [
        ({"w_scale": np.float32([0.1, 0.2])}, ShapeError, "w_scale has 2 values"),
        ({"w_zero_point": np.zeros(5)}, ShapeError, "w_zero_point has 5"),
        ({"y_scale": 0.0}, OptionError, "scale"),
        ({"x_scale": float("nan")}, OptionError, "scale"),
        ({"y_zero_point": np.int32(0)}, ShapeError, "y_zero_point is int32"),
        ({"groups": 3}, ShapeError, "groups = 3"),
    ]:
        with pytest.raises(error, match=named):
            qlinear.qlinear_conv(x, w, **{"y_zero_point": np.uint8(0), **given, **change})
    with pytest.raises(ShapeError, match="b has 5"):
        qlinear.qlinear_conv(x, w, np.zeros(5, np.int32), y_zero_point=np.uint8(0), **given)
    with pytest.raises(ShapeError, match="x is float32"):
        qlinear.conv_integer(x.astype(np.float32), w)
    with pytest.raises(ShapeError, match="scales or zero points"):
        qlinear.quantize_linear(np.zeros((2, 3), np.float32), np.ones(2, np.float32), np.zeros(2, np.int8))
