"""Products of 8-bit activations with packed weights of 4 bits."""

from __future__ import annotations

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import integer, real
from dlas.kernels.formats.int4 import PackedInt4, unpack_w4


def matmul_w4a8(
    a: np.ndarray,
    packed: PackedInt4,
    scales: np.ndarray | None = None,
    *,
    zero_point: int = 0,
    bias: np.ndarray | None = None,
    group_size: int | None = None,
) -> np.ndarray:
    """``(a - zero_point) @ w``, exact in int32 or scaled to float32.

    Args:
        a: ``(M, K)`` int8 or uint8.
        packed: ``(K, N)`` weights from :func:`dlas.kernels.formats.int4.pack_w4`.
        scales: ``(N,)`` float32, or ``(K / group_size, N)`` with groups; None for the sums as they are.
        zero_point: Of ``a``.
        bias: ``(N,)``, int32 without scales and float32 with them; or None.
        group_size: Rows of the weights that share a scale per column; None for all.

    Returns:
        ``(M, N)`` int32 without scales, float32 with them.

    Raises:
        ShapeError: An array does not fit.
        OptionError: ``group_size`` does not divide K, or is given without scales.
    """
    values, weights = integer(a, "a", [np.int8, np.uint8], 2) - int(zero_point), unpack_w4(packed)
    if a.shape[1] != packed.k:
        raise ShapeError(f"a has {a.shape[1]} columns, the weights have {packed.k} rows: they must be equal")
    size = packed.k if group_size is None else group_size
    if size < 1 or packed.k % size:
        raise OptionError("group_size", group_size, f"a divisor of K = {packed.k}")
    if scales is None:
        if group_size is not None:
            raise OptionError("group_size", group_size, "None where there are no scales")
        total = values @ weights.astype(np.int64)
        if bias is not None:
            total = total + _row(integer(bias, "bias", [np.int32], 1), "bias", packed.n)
        return total.astype(np.int32)
    factors = real(scales, "scales")
    expected = (packed.n,) if group_size is None else (packed.k // size, packed.n)
    if factors.shape != expected:
        raise ShapeError(f"scales have the shape {list(factors.shape)}, expected {list(expected)}")
    groups = values.reshape(len(a), -1, size).transpose(1, 0, 2) @ weights.astype(np.int64).reshape(
        -1, size, packed.n
    )
    y = (groups * factors.reshape(-1, 1, packed.n)).sum(axis=0)
    if bias is not None:
        y = y + _row(real(bias, "bias", 1), "bias", packed.n)
    return y.astype(np.float32)


def _row(values: np.ndarray, name: str, count: int) -> np.ndarray:
    if len(values) != count:
        raise ShapeError(f"{name} has {len(values)} values, expected one for each of {count} columns")
    return values
