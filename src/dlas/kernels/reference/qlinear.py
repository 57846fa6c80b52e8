"""Quantised layers as ONNX defines them: scales multiply in float32, halves go to the even neighbour."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import axis_of, integer, real
from dlas.kernels.reference.conv import correlate
from dlas.kernels.reference.dense import check_matmul

_BYTES = (np.int8, np.uint8)
Scale = float | np.ndarray
ZeroPoint = int | np.ndarray


def quantize_linear(
    x: np.ndarray, scale: Scale, zero_point: np.ndarray | np.integer, *, axis: int = 1
) -> np.ndarray:
    """``saturate(round_half_even(x / scale) + zero_point)``.

    Args:
        x: ``(...)`` float32.
        scale: One, or ``(x.shape[axis],)`` float32.
        zero_point: The same, int8 or uint8; its dtype is that of the result.
        axis: Axis the scales belong to.

    Returns:
        ``(...)`` int8 or uint8.

    Raises:
        ShapeError: The arrays do not fit.
        OptionError: A scale is not positive.
    """
    real(x, "x")
    zeros = np.asarray(zero_point)
    offset = integer(zeros, "zero_point", _BYTES)
    steps = _positive(scale)
    if np.size(steps) > 1 or np.size(offset) > 1:
        steps, offset = _along(steps, x, axis), _along(offset, x, axis)
    else:
        steps, offset = steps.reshape(()), offset.reshape(())
    return _saturated(np.rint(x.astype(np.float32) / steps).astype(np.float64) + offset, zeros.dtype)


def dequantize_linear(x: np.ndarray, scale: Scale, zero_point: ZeroPoint = 0, *, axis: int = 1) -> np.ndarray:
    """``(x - zero_point) * scale``.

    Args:
        x: ``(...)`` int8, uint8 or int32.
        scale: One, or ``(x.shape[axis],)`` float32.
        zero_point: The same, integers.
        axis: Axis the scales belong to.

    Returns:
        ``(...)`` float32.

    Raises:
        ShapeError: The arrays do not fit.
        OptionError: A scale is not positive.
    """
    values = integer(x, "x", (*_BYTES, np.int32))
    steps, offset = _positive(scale), np.asarray(zero_point, np.int64)
    if np.size(steps) > 1 or np.size(offset) > 1:
        steps, offset = _along(steps, x, axis), _along(offset, x, axis)
    return (values - offset).astype(np.float32) * steps


def conv_integer(
    x: np.ndarray,
    w: np.ndarray,
    *,
    x_zero_point: int = 0,
    w_zero_point: ZeroPoint = 0,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """Sums of a convolution, after both zero points are taken off.

    Args:
        x: ``(N, C, H, W)`` int8 or uint8.
        w: ``(K, C/groups, KH, KW)`` int8 or uint8.
        x_zero_point: What padding is filled with.
        w_zero_point: One, or ``(K,)``.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Returns:
        ``(N, K, OH, OW)`` int32.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    values = integer(x, "x", _BYTES, 4) - int(x_zero_point)
    zeros = np.asarray(w_zero_point, np.int64).reshape(-1)
    weights = integer(w, "w", _BYTES, 4)
    if len(zeros) not in (1, len(w)):
        raise ShapeError(f"w_zero_point has {len(zeros)} values, expected 1 or {len(w)}")
    sums = correlate(
        values.astype(np.float64),
        (weights - zeros[:, None, None, None]).astype(np.float64),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=groups,
    )
    return sums.astype(np.int64).astype(np.int32)


def qlinear_conv(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None = None,
    *,
    x_scale: float,
    x_zero_point: int,
    w_scale: Scale,
    w_zero_point: ZeroPoint,
    y_scale: float,
    y_zero_point: np.integer,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    groups: int = 1,
) -> np.ndarray:
    """QLinearConv (opset 10).

    Args:
        x: ``(N, C, H, W)`` int8 or uint8.
        w: ``(K, C/groups, KH, KW)`` int8 or uint8.
        b: ``(K,)`` int32 with the scale ``x_scale * w_scale``, or None.
        x_scale: Scale of ``x``.
        x_zero_point: Zero point of ``x``.
        w_scale: One, or ``(K,)``.
        w_zero_point: One, or ``(K,)``.
        y_scale: Scale of the output.
        y_zero_point: ``np.int8`` or ``np.uint8``: zero point and dtype of the output.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical, horizontal.
        groups: Independent slices of the channels.

    Returns:
        ``(N, K, OH, OW)`` int8 or uint8.

    Raises:
        ShapeError: Something does not fit; the message names it.
        OptionError: A scale is not positive.
    """
    sums = conv_integer(
        x, w, x_zero_point=x_zero_point, w_zero_point=w_zero_point, strides=strides, pads=pads,
        dilations=dilations, groups=groups,
    ).astype(np.int64)  # fmt: skip
    if b is not None:
        bias = integer(b, "b", [np.int32], 1)
        if len(bias) != len(w):
            raise ShapeError(f"b has {len(bias)} values, expected one for each of {len(w)} filters")
        sums = sums + bias[:, None, None]
    factor = _factor(x_scale, w_scale, y_scale)
    if factor.size not in (1, len(w)):
        raise ShapeError(f"w_scale has {factor.size} values, expected 1 or {len(w)}")
    return _output(sums, factor.reshape(-1, 1, 1), y_zero_point)


def matmul_integer(
    a: np.ndarray, b: np.ndarray, *, a_zero_point: ZeroPoint = 0, b_zero_point: ZeroPoint = 0
) -> np.ndarray:
    """Sums of a matrix product, after both zero points are taken off.

    Args:
        a: ``(..., M, K)`` int8 or uint8.
        b: ``(..., K, N)`` int8 or uint8.
        a_zero_point: One, or ``(M,)``.
        b_zero_point: One, or ``(N,)``.

    Returns:
        ``(..., M, N)`` int32.

    Raises:
        ShapeError: The arrays do not fit each other.
    """
    left, right = integer(a, "a", _BYTES), integer(b, "b", _BYTES)
    check_matmul(a, b)
    rows, columns = np.asarray(a_zero_point, np.int64), np.asarray(b_zero_point, np.int64)
    left = left - (rows[:, None] if rows.size > 1 else rows.reshape(()))
    right = right - (columns if columns.size > 1 else columns.reshape(()))
    return np.asarray(left.astype(np.float64) @ right.astype(np.float64)).astype(np.int64).astype(np.int32)


def qlinear_matmul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: float,
    a_zero_point: int,
    b_scale: Scale,
    b_zero_point: ZeroPoint,
    y_scale: float,
    y_zero_point: np.integer,
) -> np.ndarray:
    """QLinearMatMul (opset 10).

    Args:
        a: ``(..., M, K)`` int8 or uint8.
        b: ``(..., K, N)`` int8 or uint8.
        a_scale: Scale of ``a``.
        a_zero_point: Zero point of ``a``.
        b_scale: One, or ``(N,)``.
        b_zero_point: One, or ``(N,)``.
        y_scale: Scale of the output.
        y_zero_point: ``np.int8`` or ``np.uint8``: zero point and dtype of the output.

    Returns:
        ``(..., M, N)`` int8 or uint8.

    Raises:
        ShapeError: The arrays do not fit each other.
        OptionError: A scale is not positive.
    """
    sums = matmul_integer(a, b, a_zero_point=a_zero_point, b_zero_point=b_zero_point)
    factor = _factor(a_scale, b_scale, y_scale)
    return _output(sums, factor if factor.size > 1 else factor.reshape(()), y_zero_point)


def _factor(x_scale: Scale, w_scale: Scale, y_scale: Scale) -> np.ndarray:
    return (_positive(x_scale) * _positive(w_scale) / _positive(y_scale)).astype(np.float32)


def _output(sums: np.ndarray, factor: np.ndarray, zero_point: np.integer) -> np.ndarray:
    zero = np.asarray(zero_point)
    offset = integer(zero, "y_zero_point", _BYTES)
    scaled = np.rint(sums.astype(np.float32) * factor)
    return _saturated(scaled.astype(np.float64) + offset.reshape(()), zero.dtype)


def _saturated(values: np.ndarray, dtype: np.dtype) -> np.ndarray:
    limits = np.iinfo(dtype)
    return np.clip(values, limits.min, limits.max).astype(dtype)


def _positive(scale: Scale) -> np.ndarray:
    found = np.asarray(scale, np.float32)
    if not (np.isfinite(found).all() and (found > 0).all()):
        raise OptionError("scale", found.tolist(), "finite numbers > 0")
    return found


def _along(values: np.ndarray, x: np.ndarray, axis: int) -> np.ndarray:
    place = axis_of(axis, x.ndim)
    if values.size not in (1, x.shape[place]):
        raise ShapeError(f"{values.size} scales or zero points for {x.shape[place]} slices of axis {axis}")
    shape = [1] * x.ndim
    shape[place] = values.size
    return values.reshape(shape)
