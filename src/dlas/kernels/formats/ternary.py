"""Weights of -1, 0 and 1 times a scale, found by least squares, four to a byte.

The scale of a slice and its codes are found in turns, five times by default: a weight becomes ±1 where it is at least
half the scale, and the scale the mean size of those weights (the ``ternary`` quantiser of QKeras, Coelho et al. 2021,
"Automatic heterogeneous quantization of deep neural networks for low-latency inference on the edge").
"""

from __future__ import annotations

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import axis_of
from dlas.kernels.formats.grid import check_floats

ITERATIONS = 5


def ternarize(
    w: np.ndarray, *, axis: int | None = None, iterations: int = ITERATIONS
) -> tuple[np.ndarray, np.ndarray]:
    """Codes and scales of an array.

    Args:
        w: ``(...)`` floats.
        axis: Axis whose slices have a scale each; None for one scale.
        iterations: Turns of the search.

    Returns:
        Codes ``(...) int8`` of -1, 0 and 1, and scales ``(w.shape[axis],)`` or ``() float32``; ``w ~ scale * codes``.
        A slice of zeros has scale 0.

    Raises:
        ShapeError: ``w`` is no array of floats, or has no such axis.
        OptionError: ``w`` holds NaN or an infinity, or there is not one turn.
    """
    check_floats(w)
    if iterations < 1:
        raise OptionError("iterations", iterations, "a number >= 1")
    place = None if axis is None else axis_of(axis, w.ndim)
    others = tuple(a for a in range(w.ndim) if a != place)
    size = np.abs(w.astype(np.float64))
    scale = 2 / 3 * size.max(axis=others, keepdims=True, initial=0.0)
    chosen = np.zeros(w.shape, bool)
    for _ in range(iterations):
        chosen = (size >= scale / 2) & (size > 0)
        count = chosen.sum(axis=others, keepdims=True)
        scale = (size * chosen).sum(axis=others, keepdims=True) / np.maximum(count, 1)
    codes = (np.sign(w) * chosen).astype(np.int8)
    return codes, scale.astype(np.float32).reshape(() if place is None else (-1,))


def pack_ternary(codes: np.ndarray) -> np.ndarray:
    """Two bits each in two's complement, the first code in the lowest bits: ``(ceil(n / 4),) uint8``, filled with 0.

    Raises:
        OptionError: A code is none of -1, 0 and 1.
    """
    flat = np.asarray(codes).reshape(-1)
    if flat.size and (flat.min() < -1 or flat.max() > 1):
        wrong = flat[(flat < -1) | (flat > 1)][0]
        raise OptionError("codes", int(wrong), "-1, 0 or 1")
    fields = np.zeros(-(-flat.size // 4) * 4, np.uint8)
    fields[: flat.size] = flat.astype(np.int8).view(np.uint8) & 3
    return (fields.reshape(-1, 4) << np.array([0, 2, 4, 6], np.uint8)).sum(1, dtype=np.uint8)


def unpack_ternary(packed: np.ndarray, count: int) -> np.ndarray:
    """Inverse of :func:`pack_ternary`: ``(count,) int8``.

    Raises:
        ShapeError: ``packed`` is no uint8, or holds fewer codes.
        OptionError: It holds a field that stands for no code.
    """
    if not isinstance(packed, np.ndarray) or packed.dtype != np.uint8 or packed.size * 4 < count:
        raise ShapeError(f"{np.size(packed)} bytes of {getattr(packed, 'dtype', '?')} for {count} codes")
    fields = (packed.reshape(-1, 1) >> np.array([0, 2, 4, 6], np.uint8)) & 3
    flat = fields.reshape(-1)[:count]
    if (flat == 2).any():
        raise OptionError("packed", "a field of 10", "00, 01 and 11: 0, 1 and -1")
    return np.where(flat == 3, -1, flat).astype(np.int8)
