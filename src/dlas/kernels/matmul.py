"""Products with packed low-bit weights as functions; the native kernel where it is built, else NumPy."""

from __future__ import annotations

from typing import Any

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.extension import native
from dlas.kernels.formats.int4 import PackedInt4
from dlas.kernels.kernel import Context, Node, Operand
from dlas.kernels.reference.lowbit import matmul_w4a8 as reference
from dlas.kernels.single import Bench

__all__ = ["matmul_w4a8", "w4a8_node"]

_GROUP_STEP = 8  # groups that the native kernel has are multiples of it
_MOST_ROWS = 131072


def matmul_w4a8(
    a: np.ndarray,
    packed: PackedInt4,
    scales: np.ndarray | None = None,
    zero_point: int = 0,
    bias: np.ndarray | None = None,
    *,
    group_size: int | None = None,
    threads: int = 1,
) -> np.ndarray:
    """``(a - zero_point) @ w``, exact in int32 or scaled to float32.

    Args:
        a: ``(M, K)`` int8 or uint8.
        packed: ``(K, N)`` weights from :func:`dlas.kernels.formats.int4.pack_w4`.
        scales: ``(N,)`` float32, or ``(K / group_size, N)`` with groups; None for the sums as they are.
        zero_point: Of ``a``.
        bias: ``(N,)``, int32 without scales and float32 with them; or None.
        group_size: Rows of the weights that share a scale per column; None for all.
        threads: Threads of the native kernel; results do not depend on it.

    Returns:
        ``(M, N)`` int32 without scales, float32 with them.

    Raises:
        ShapeError: An array does not fit.
        OptionError: ``group_size`` does not divide K, or is given without scales.
    """
    checked = _first_row(a)
    if checked is None or not len(a) or native() is None or not _native_can(packed, group_size):
        return reference(a, packed, scales, zero_point=zero_point, bias=bias, group_size=group_size)
    # The reference says what is wrong with the arguments; on one row that costs little.
    reference(checked, packed, scales, zero_point=zero_point, bias=bias, group_size=group_size)
    if not -(2**15) < zero_point < 2**15:
        raise ShapeError(f"zero_point = {zero_point} is not accepted: expected one of an 8-bit dtype")
    from dlas.kernels.layers.dense.w4a8 import W4A8

    node = w4a8_node(a, packed, scales, zero_point, bias, group_size=group_size)
    arrays = [np.ascontiguousarray(a), *[None] * 4]
    return Bench(W4A8(), node, arrays, Context.here(threads)).run()[0]


def w4a8_node(
    a: np.ndarray,
    packed: PackedInt4,
    scales: np.ndarray | None = None,
    zero_point: int = 0,
    bias: np.ndarray | None = None,
    *,
    zeros: np.ndarray | None = None,
    group_size: int | None = None,
) -> Node:
    """The node ``MatMulW4A8`` of a product; ``a`` may be float32 here, and ``zeros`` are the codes that mean 0."""
    attributes: dict[str, Any] = {
        "K": packed.k,
        "N": packed.n,
        "group_size": group_size or 0,
        "zero_point": int(zero_point),
    }
    if packed.table is not None:
        attributes["table"] = [int(v) for v in packed.table]
    inputs: list[Operand | None] = [Operand(a.shape, a.dtype.name), Operand.of(packed.data)]
    for extra, dtype in ((scales, np.float32), (zeros, np.uint8), (bias, None)):
        inputs.append(None if extra is None else Operand.of(np.ascontiguousarray(extra, dtype)))
    result = Operand((*a.shape[:-1], packed.n), "int32" if scales is None else "float32")
    return Node("MatMulW4A8", "matmul_w4a8", attributes, tuple(inputs), (result,))


def _native_can(packed: PackedInt4, group_size: int | None) -> bool:
    return packed.k <= _MOST_ROWS and (group_size is None or group_size % _GROUP_STEP == 0)


def _first_row(a: np.ndarray) -> np.ndarray | None:
    """A row of ``a`` to check the other arguments with; None where ``a`` itself is wrong."""
    return a[:1] if isinstance(a, np.ndarray) and a.ndim == 2 and a.dtype in (np.int8, np.uint8) else None
