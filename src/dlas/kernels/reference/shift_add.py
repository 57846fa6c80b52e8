"""Convolution by shifts and additions: what an accelerator for sums of powers of two computes, bit for bit."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.formats.grid import Grid


def shift_products(x: np.ndarray, codes: np.ndarray, grid: Grid) -> np.ndarray:
    """``x`` times what ``codes`` stand for, element by element, without a multiplication.

    Args:
        x: Integers, broadcast against ``codes``.
        codes: uint8, of a grid whose levels are sums of powers of two.
        grid: With ``terms``.

    Returns:
        int64. Code "-0" gives 0.

    Raises:
        OptionError: The grid has no shifts, or a code has more than its bits.
    """
    if not grid.terms:
        raise OptionError("grid", grid.name, "one of few shifts: po2, apot:4, msq:4")
    grid.decode_integers(codes)
    longest = max(len(t) for t in grid.terms)
    shifts = np.array([[*t, *[0] * (longest - len(t))] for t in grid.terms])
    used = np.array([[i < len(t) for i in range(longest)] for t in grid.terms])
    low = codes & (len(grid.terms) - 1)
    wide = np.asarray(x, np.int64)
    total = np.zeros(np.broadcast_shapes(wide.shape, codes.shape), np.int64)
    for place in range(longest):
        total = total + np.where(used[low, place], wide << shifts[low, place], 0)
    return np.where(codes >= len(grid.terms), -total, total)


def conv2d_shift_add(
    x: np.ndarray,
    codes: np.ndarray,
    grid: Grid,
    *,
    zero_point: int = 0,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
) -> np.ndarray:
    """Sums of a convolution of 8-bit activations by coded weights.

    Args:
        x: ``(N, C, H, W) int8``.
        codes: ``(O, C, kh, kw) uint8``.
        grid: What they are codes of.
        zero_point: Of ``x``; padding stands for it, so that it adds nothing whatever the weight.
        strides: Of rows and columns.
        pads: Top, left, bottom, right.

    Returns:
        ``(N, O, OH, OW) int32``, in units of ``grid``'s integers.

    Raises:
        ShapeError: The shapes do not fit.
        OptionError: As :func:`shift_products`.
    """
    if x.dtype != np.int8 or x.ndim != 4 or codes.ndim != 4 or x.shape[1] != codes.shape[1]:
        raise ShapeError(
            f"x is {x.dtype} {list(x.shape)} and codes {list(codes.shape)}, expected int8 (N, C, H, W) and (O, C, h, w)"
        )
    top, left, bottom, right = pads
    centred = np.pad(x.astype(np.int64) - zero_point, ((0, 0), (0, 0), (top, bottom), (left, right)))
    kh, kw = codes.shape[2:]
    if centred.shape[2] < kh or centred.shape[3] < kw:
        raise ShapeError(f"a kernel of {kh} x {kw} on {centred.shape[2]} x {centred.shape[3]} padded values")
    windows = np.lib.stride_tricks.sliding_window_view(centred, (kh, kw), axis=(2, 3))
    windows = windows[:, :, :: strides[0], :: strides[1]]  # N, C, OH, OW, kh, kw
    n, _, oh, ow = windows.shape[:4]
    columns = windows.transpose(0, 2, 3, 1, 4, 5).reshape(n, oh, ow, -1)
    sums = np.stack([shift_products(columns, c.reshape(-1), grid).sum(axis=-1) for c in codes], axis=1)
    return sums.astype(np.int32)
