"""Where the pixels of a resized map come from, as ONNX Resize (opset 19) defines it."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import NamedTuple

import numpy as np

_F = np.float32


class Table(NamedTuple):
    """What each output along one axis is made of.

    Attributes:
        inputs: ``(outputs, taps)`` int64.
        weight: ``(outputs, taps)`` float32.
    """

    inputs: np.ndarray
    weight: np.ndarray


def _half_pixel(x: np.ndarray, old: int, new: int, factor: np.float32) -> np.ndarray:
    return (x + _F(0.5)) / factor - _F(0.5)


def _symmetric(x: np.ndarray, old: int, new: int, factor: np.float32) -> np.ndarray:
    centre = old / 2 * (1 - new / (float(factor) * old))
    return _F(centre) + _half_pixel(x, old, new, factor)


def _pytorch(x: np.ndarray, old: int, new: int, factor: np.float32) -> np.ndarray:
    return _half_pixel(x, old, new, factor) if new > 1 else np.zeros_like(x)


def _corners(x: np.ndarray, old: int, new: int, factor: np.float32) -> np.ndarray:
    return x * _F(old - 1) / _F(new - 1) if new > 1 else np.zeros_like(x)


COORDINATES: Mapping[str, Callable[[np.ndarray, int, int, np.float32], np.ndarray]] = {
    "half_pixel": _half_pixel,
    "half_pixel_symmetric": _symmetric,
    "pytorch_half_pixel": _pytorch,
    "align_corners": _corners,
    "asymmetric": lambda x, old, new, factor: x / factor,
}
"""Position in the input of each output: outputs, old and new length, factor; float32."""

NEAREST: Mapping[str, Callable[[np.ndarray], np.ndarray]] = {
    "round_prefer_floor": lambda x: np.ceil(x - _F(0.5)),
    "round_prefer_ceil": lambda x: np.floor(x + _F(0.5)),
    "floor": np.floor,
    "ceil": np.ceil,
}
"""Rounding of a position."""


def table(
    old: int,
    new: int,
    factor: float,
    *,
    mode: str,
    coordinates: str,
    nearest: str = "round_prefer_floor",
    cubic: float = -0.75,
    exclude_outside: bool = False,
) -> Table:
    """Inputs and weights for an axis of ``old`` pixels that becomes one of ``new``.

    Args:
        old: Length before.
        new: Length after.
        factor: By how much it grows, which is not quite new / old where that was rounded.
        mode: ``nearest``, ``linear`` or ``cubic``.
        coordinates: One of ``COORDINATES``.
        nearest: One of ``NEAREST``.
        cubic: Coefficient of the cubic kernel.
        exclude_outside: Whether pixels beyond the edge count nothing, instead of as the edge.
    """
    x = np.arange(new, dtype=_F)
    at = x if factor == 1 and new == old else COORDINATES[coordinates](x, old, new, _F(factor))
    if mode == "nearest":
        index = NEAREST[nearest](at).astype(np.int64)[:, None]
        weight = np.ones(index.shape)
    else:
        below = np.floor(at).astype(np.int64)
        part = at.astype(np.float64) - below
        if mode == "linear":
            index = below[:, None] + np.arange(2)
            weight = np.stack([1 - part, part], 1)
        else:
            index = below[:, None] + np.arange(-1, 3)
            weight = _cubic(np.abs(at.astype(np.float64)[:, None] - index), cubic)
        if exclude_outside and mode == "cubic":
            weight = np.where((index < 0) | (index >= old), 0, weight)
            weight /= weight.sum(1, keepdims=True)
    used = (weight != 0).any(0)
    index = np.clip(index, 0, old - 1)[:, used]
    return Table(np.ascontiguousarray(index), np.ascontiguousarray(weight[:, used], np.float32))


def _cubic(distance: np.ndarray, a: float) -> np.ndarray:
    """Keys, Cubic convolution interpolation for digital image processing, 1981."""
    near = ((a + 2) * distance - (a + 3)) * distance**2 + 1
    far = ((a * distance - 5 * a) * distance + 8 * a) * distance - 4 * a
    return np.where(distance <= 1, near, np.where(distance < 2, far, 0.0))
