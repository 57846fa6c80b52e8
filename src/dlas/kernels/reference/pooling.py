"""Pooling of images, as ONNX MaxPool, AveragePool (opset 19) and GlobalAveragePool define it."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.arrays import length, numbers, real, taps


def max_pool2d(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
) -> np.ndarray:
    """Largest value of each window; what lies outside the image does not count.

    Args:
        x: ``(N, C, H, W)`` float32, int8 or uint8.
        kernel: Rows and columns of the window.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right; each smaller than the window.
        dilations: Vertical, horizontal.
        ceil_mode: Whether the last window may reach beyond the padding.

    Returns:
        ``(N, C, OH, OW)`` in the dtype of ``x``.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    if not isinstance(x, np.ndarray):
        raise ShapeError(f"x is a {type(x).__name__}, expected an array")
    if x.dtype not in (np.float32, np.float64, np.int8, np.uint8):
        raise ShapeError(f"x is {x.dtype}, expected float32, int8 or uint8")
    lowest = -np.inf if x.dtype.kind == "f" else np.iinfo(x.dtype).min
    window, size = _window(x, kernel, strides, pads, dilations, ceil_mode)
    padded = _surrounded(x, size, window, pads, lowest)
    y = np.full((*x.shape[:2], *size), lowest, x.dtype)
    for _, _, seen in taps(padded, window[0], window[1], window[2], size):
        y = np.maximum(y, seen)
    return y


def average_pool2d(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
    ceil_mode: bool = False,
    count_include_pad: bool = False,
) -> np.ndarray:
    """Mean of each window.

    Args:
        x: ``(N, C, H, W)`` float32.
        kernel: Rows and columns of the window.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right; each smaller than the window.
        dilations: Vertical, horizontal.
        ceil_mode: Whether the last window may reach beyond the padding; what lies beyond never counts.
        count_include_pad: Whether the padding counts as zeros.

    Returns:
        ``(N, C, OH, OW)`` float32.

    Raises:
        ShapeError: The attribute named in the message does not fit.
    """
    values = real(x, "x", 4)
    window, size = _window(x, kernel, strides, pads, dilations, ceil_mode)
    inside = np.ones((1, 1, *x.shape[2:]))
    if count_include_pad:
        counted = np.pad(inside, _border(pads), constant_values=1)
        counted = _surrounded(counted, size, window, (0, 0, 0, 0), 0)
    else:
        counted = _surrounded(inside, size, window, pads, 0)
    padded = _surrounded(values, size, window, pads, 0)
    total, count = np.zeros((*x.shape[:2], *size)), np.zeros((1, 1, *size))
    for _, _, seen in taps(padded, window[0], window[1], window[2], size):
        total += seen
    for _, _, seen in taps(counted, window[0], window[1], window[2], size):
        count += seen
    return (total / count).astype(np.float32)


def global_average_pool(x: np.ndarray) -> np.ndarray:
    """Mean over all axes but the first two.

    Args:
        x: ``(N, C, ...)`` float32.

    Returns:
        ``(N, C, 1, ...)`` float32.

    Raises:
        ShapeError: ``x`` has no axis to average over.
    """
    values = real(x, "x")
    if x.ndim < 3 or 0 in x.shape[2:]:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected (N, C, ...) with something to average")
    return values.mean(axis=tuple(range(2, x.ndim)), keepdims=True).astype(np.float32)


_Pair = tuple[int, int]


def _window(
    x: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    dilations: Sequence[int],
    ceil_mode: bool,
) -> tuple[tuple[_Pair, _Pair, _Pair], _Pair]:
    if x.ndim != 4:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected 4 axes")
    shape = numbers(kernel, "kernel", 2, 1)
    steps = numbers(strides, "strides", 2, 1)
    border = numbers(pads, "pads", 4, 0)
    spread = numbers(dilations, "dilations", 2, 1)
    if any(border[a] >= shape[a] or border[2 + a] >= shape[a] for a in (0, 1)):
        raise ShapeError(
            f"pads = {list(border)} is not accepted: expected less than the window {list(shape)}"
        )
    size = []
    for a in (0, 1):
        extent = x.shape[2 + a]
        found = length(extent, border[a], border[2 + a], shape[a], steps[a], spread[a])
        if ceil_mode:
            room = extent + border[a] + border[2 + a] - ((shape[a] - 1) * spread[a] + 1)
            found = -(-room // steps[a]) + 1
            # A window has to start within the image or the padding before it.
            found -= (found - 1) * steps[a] >= extent + border[a]
        size.append(found)
    if min(size) < 1:
        raise ShapeError(
            f"the output would be {size[0]} x {size[1]}: a window of {list(shape)} does not fit into "
            f"{list(x.shape[2:])} with pads {list(border)}"
        )
    pairs = ((shape[0], shape[1]), (steps[0], steps[1]), (spread[0], spread[1]))
    return pairs, (size[0], size[1])


def _border(pads: Sequence[int]) -> list[tuple[int, int]]:
    return [(0, 0), (0, 0), (pads[0], pads[2]), (pads[1], pads[3])]


def _surrounded(
    x: np.ndarray, size: _Pair, window: tuple[_Pair, _Pair, _Pair], pads: Sequence[int], fill: float
) -> np.ndarray:
    """``x`` with its padding, and as much beyond it as the last window reaches."""
    border = _border(pads)
    for a in (0, 1):
        shape, step, spread = (w[a] for w in window)
        needed = (size[a] - 1) * step + (shape - 1) * spread + 1
        before, after = border[2 + a]
        border[2 + a] = (before, max(after, needed - before - x.shape[2 + a]))
    return np.pad(x, border, constant_values=fill)
