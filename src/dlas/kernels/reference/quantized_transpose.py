"""Transposed convolution of int8 as TensorFlow Lite's reference kernel computes it, to the bit: NHWC.

Only products that reach the output are computed: what the padding crops is left out before the multiplication, and
no zero is inserted.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.arrays import integer, numbers
from dlas.kernels.reference.requantize import Requantization

_EXACT_IN_FLOAT32 = 2**24 // (255 * 255)  # products of two bytes whose sum float32 still holds exactly


def transpose_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    requantization: Requantization,
    *,
    x_zero_point: int,
    size: Sequence[int],
    strides: Sequence[int] = (1, 1),
    begins: Sequence[int] = (0, 0),
) -> np.ndarray:
    """Transposed convolution: every input pixel adds its filters, scaled, to the output.

    Args:
        x: ``(N, H, W, C)`` int8.
        w: ``(K, KH, KW, C)`` int8, as TFLite stores it.
        b: ``(K,)`` int32, or None.
        requantization: From the sums to the output.
        x_zero_point: Zero point of ``x``.
        size: Rows and columns of the output.
        strides: Distance of neighbouring filters in the output; vertical, horizontal.
        begins: Rows and columns that are cropped at the top and at the left.

    Returns:
        ``(N, OH, OW, K)`` int8.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    values = integer(x, "x", [np.int8], 4) - x_zero_point
    weights = integer(w, "w", [np.int8], 4)
    if w.shape[3] != x.shape[3]:
        raise ShapeError(f"w has {w.shape[3]} channels, x has {x.shape[3]}: they must be equal")
    numbers(strides, "strides", 2, 1)
    numbers(begins, "begins", 2, 0)
    numbers(size, "size", 2, 1)
    sums = transposed_sums(values, weights, size=size, strides=strides, begins=begins)
    if b is not None:
        bias = integer(b, "b", [np.int32], 1)
        if len(bias) != len(w):
            raise ShapeError(f"b has {len(bias)} values, expected one for each of {len(w)} filters")
        sums += bias
    return requantization.apply(sums.astype(np.int32))


def transposed_sums(
    x: np.ndarray, w: np.ndarray, *, size: Sequence[int], strides: Sequence[int], begins: Sequence[int]
) -> np.ndarray:
    """The sums alone: arguments as :func:`transpose_conv2d`, ``x`` less its zero point; ``(N, OH, OW, K) int64``."""
    dtype = np.float32 if x.shape[3] <= _EXACT_IN_FLOAT32 else np.float64
    values, weights = x.astype(dtype), w.astype(dtype, copy=False)
    sums = np.zeros((len(x), *size, len(w)), np.int64)
    for i in range(w.shape[1]):
        for j in range(w.shape[2]):
            rows, to_rows = kept(x.shape[1], i - begins[0], strides[0], size[0])
            columns, to_columns = kept(x.shape[2], j - begins[1], strides[1], size[1])
            found = values[:, rows, columns] @ weights[:, i, j].T
            sums[:, to_rows, to_columns] += found.astype(np.int64)
    return sums


def kept(count: int, offset: int, stride: int, size: int) -> tuple[slice, slice]:
    """Along one axis, the inputs that a tap brings into the output, and where.

    Args:
        count: Inputs.
        offset: Where the tap puts input 0.
        stride: Distance of neighbouring inputs in the output.
        size: Outputs.
    """
    first = max(0, -(offset // stride))
    end = max(first, min(count, (size - 1 - offset) // stride + 1))
    start = first * stride + offset
    return slice(first, end), slice(start, start + (end - first) * stride, stride)
