"""Softmax and normalisations, as ONNX Softmax (13), LayerNormalization (17), BatchNormalization (15) and so on."""

from __future__ import annotations

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import axis_of, real


def softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """``exp(x) / sum(exp(x))`` along one axis.

    Args:
        x: ``(...)`` float32.
        axis: Which.

    Returns:
        ``(...)`` float32.

    Raises:
        ShapeError: There is no such axis.
    """
    return np.exp(_log_softmax(x, axis)).astype(np.float32)


def log_softmax(x: np.ndarray, axis: int = -1) -> np.ndarray:
    """Logarithm of :func:`softmax`; same arguments and errors."""
    return _log_softmax(x, axis).astype(np.float32)


def _log_softmax(x: np.ndarray, axis: int) -> np.ndarray:
    values = real(x, "x")
    axis = axis_of(axis, x.ndim)
    if not x.shape[axis]:
        raise ShapeError(f"axis {axis} of x has size 0")
    shifted = values - values.max(axis=axis, keepdims=True)
    return shifted - np.log(np.exp(shifted).sum(axis=axis, keepdims=True))


def layer_norm(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray | None = None,
    *,
    axis: int = -1,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """Mean 0 and variance 1 over ``axis`` and all axes after it, then an affine map.

    Args:
        x: ``(...)`` float32.
        scale: Shape of the normalised axes, float32; anything that broadcasts to it.
        bias: The same, or None.
        axis: First normalised axis.
        epsilon: Added to the variance.

    Returns:
        ``(...)`` float32.

    Raises:
        ShapeError: There is no such axis, or ``scale`` or ``bias`` does not fit.
    """
    values = real(x, "x")
    first = axis_of(axis, x.ndim)
    y = _standardised(values, tuple(range(first, x.ndim)), epsilon)
    y = y * _fitting(scale, "scale", x.shape[first:])
    if bias is not None:
        y = y + _fitting(bias, "bias", x.shape[first:])
    return y.astype(np.float32)


def instance_norm(x: np.ndarray, scale: np.ndarray, bias: np.ndarray, *, epsilon: float = 1e-5) -> np.ndarray:
    """Mean 0 and variance 1 of each channel of each sample, then an affine map per channel.

    Args:
        x: ``(N, C, ...)`` float32.
        scale: ``(C,)`` float32.
        bias: ``(C,)`` float32.
        epsilon: Added to the variance.

    Returns:
        ``(N, C, ...)`` float32.

    Raises:
        ShapeError: The arrays do not fit.
    """
    values = real(x, "x")
    if x.ndim < 3:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected (N, C, ...) with something to average")
    y = _standardised(values, tuple(range(2, x.ndim)), epsilon)
    return (y * _channelwise(scale, "scale", x) + _channelwise(bias, "bias", x)).astype(np.float32)


def batch_norm(
    x: np.ndarray,
    scale: np.ndarray,
    bias: np.ndarray,
    mean: np.ndarray,
    variance: np.ndarray,
    *,
    epsilon: float = 1e-5,
) -> np.ndarray:
    """``scale * (x - mean) / sqrt(variance + epsilon) + bias`` with stored statistics, per channel.

    Args:
        x: ``(N, C, ...)`` float32.
        scale: ``(C,)`` float32.
        bias: ``(C,)`` float32.
        mean: ``(C,)`` float32.
        variance: ``(C,)`` float32, not negative.
        epsilon: Added to the variance.

    Returns:
        ``(N, C, ...)`` float32.

    Raises:
        ShapeError: The arrays do not fit.
        OptionError: A variance is negative beyond ``epsilon``.
    """
    values = real(x, "x")
    if x.ndim < 2:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected (N, C, ...)")
    spread = _channelwise(variance, "variance", x) + epsilon
    if (spread <= 0).any():
        raise OptionError("variance", float(spread.min() - epsilon), f"numbers > -{epsilon}")
    y = (values - _channelwise(mean, "mean", x)) / np.sqrt(spread)
    return (y * _channelwise(scale, "scale", x) + _channelwise(bias, "bias", x)).astype(np.float32)


def local_response_norm(
    x: np.ndarray, *, size: int, alpha: float = 1e-4, beta: float = 0.75, bias: float = 1.0
) -> np.ndarray:
    """Each value over a power of the squares in ``size`` channels around it (ONNX LRN).

    Args:
        x: ``(N, C, ...)`` float32.
        size: Channels summed: ``(size - 1) // 2`` before, ``size // 2`` after.
        alpha: Factor of the sum, divided by ``size``.
        beta: Exponent.
        bias: Added before the power is taken.

    Returns:
        ``(N, C, ...)`` float32.

    Raises:
        ShapeError: ``x`` has no channels.
        OptionError: ``size`` is under 1.
    """
    values = real(x, "x")
    if x.ndim < 2:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected (N, C, ...)")
    if size < 1:
        raise OptionError("size", size, "a number >= 1")
    channels = x.shape[1]
    squares = values**2
    total = np.zeros_like(values)
    for c in range(channels):
        near = slice(max(c - (size - 1) // 2, 0), min(c + size // 2, channels - 1) + 1)
        total[:, c] = squares[:, near].sum(axis=1)
    return (values / (bias + alpha / size * total) ** beta).astype(np.float32)


def _standardised(values: np.ndarray, axes: tuple[int, ...], epsilon: float) -> np.ndarray:
    centred = values - values.mean(axis=axes, keepdims=True)
    return centred / np.sqrt((centred**2).mean(axis=axes, keepdims=True) + epsilon)


def _fitting(array: np.ndarray, name: str, shape: tuple[int, ...]) -> np.ndarray:
    found = real(array, name)
    matches = zip(reversed(array.shape), reversed(shape), strict=False)
    if array.ndim > len(shape) or not all(a in (1, s) for a, s in matches):
        raise ShapeError(f"{name} has the shape {list(array.shape)}, expected one that fits {list(shape)}")
    return found


def _channelwise(array: np.ndarray, name: str, x: np.ndarray) -> np.ndarray:
    found = real(array, name, 1)
    if len(found) != x.shape[1]:
        raise ShapeError(f"{name} has {len(found)} values, expected one for each of {x.shape[1]} channels")
    return found.reshape(-1, *[1] * (x.ndim - 2))
