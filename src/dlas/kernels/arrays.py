"""Checks of arrays and the geometry of windows, shared by the NumPy side of the kernels."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import ShapeError

EXACT = 2.0**53
"""Integers up to here are exact in float64, so that a product of integers may be left to the float64 BLAS."""


def real(array: np.ndarray, name: str, rank: int | None = None) -> np.ndarray:
    """``array`` as float64.

    Raises:
        ShapeError: It is no array of floats, or has another rank.
    """
    _ranked(array, name, rank)
    if array.dtype.kind != "f":
        raise ShapeError(f"{name} is {array.dtype}, expected float32")
    return array.astype(np.float64)


def integer(
    array: np.ndarray, name: str, dtypes: Sequence[type | np.dtype], rank: int | None = None
) -> np.ndarray:
    """``array`` as int64.

    Raises:
        ShapeError: Its dtype is none of ``dtypes``, or it has another rank.
    """
    _ranked(array, name, rank)
    if array.dtype not in [np.dtype(d) for d in dtypes]:
        raise ShapeError(f"{name} is {array.dtype}, expected {' or '.join(np.dtype(d).name for d in dtypes)}")
    return array.astype(np.int64)


def _ranked(array: object, name: str, rank: int | None) -> None:
    if not isinstance(array, np.ndarray):
        raise ShapeError(f"{name} is a {type(array).__name__}, expected an array")
    if rank is not None and array.ndim != rank:
        raise ShapeError(f"{name} has the shape {list(array.shape)}, expected {rank} axes")


def numbers(values: Sequence[int], name: str, count: int, low: int) -> tuple[int, ...]:
    """``count`` whole numbers, none under ``low``.

    Raises:
        ShapeError: There are more or fewer, or one is no whole number or too small.
    """
    found = tuple(values)
    if len(found) != count:
        raise ShapeError(f"{name} = {list(found)} has {len(found)} numbers, expected {count}")
    if any(isinstance(v, bool) or not isinstance(v, int | np.integer) or v < low for v in found):
        raise ShapeError(f"{name} = {list(found)} is not accepted: expected whole numbers >= {low}")
    return tuple(int(v) for v in found)


def check_broadcast(a: np.ndarray, b: np.ndarray) -> None:
    """Raise ShapeError unless two arrays broadcast."""
    try:
        np.broadcast_shapes(a.shape, b.shape)
    except ValueError:
        raise ShapeError(f"shapes {list(a.shape)} and {list(b.shape)} do not broadcast") from None


def axis_of(axis: int, rank: int) -> int:
    """``axis`` counted from the front; raises ShapeError where the array has no such axis."""
    if isinstance(axis, bool) or not isinstance(axis, int | np.integer) or not -rank <= axis < rank:
        raise ShapeError(f"axis = {axis} is not accepted: the array has {rank} axes")
    return int(axis) % rank


def length(size: int, before: int, after: int, kernel: int, stride: int, dilation: int) -> int:
    """Number of positions of a window along one axis, rounded down; under 1 where it does not fit."""
    return (size + before + after - ((kernel - 1) * dilation + 1)) // stride + 1


def taps(
    padded: np.ndarray, kernel: tuple[int, int], strides: tuple[int, int], dilations: tuple[int, int],
    shape: tuple[int, int],
):  # fmt: skip
    """Yield ``(i, j, view)``: for each tap of the window, what it sees at every position, ``(..., OH, OW)``."""
    rows, columns = shape
    for i in range(kernel[0]):
        for j in range(kernel[1]):
            top, left = i * dilations[0], j * dilations[1]
            yield (
                i,
                j,
                padded[
                    ...,
                    top : top + (rows - 1) * strides[0] + 1 : strides[0],
                    left : left + (columns - 1) * strides[1] + 1 : strides[1],
                ],
            )
