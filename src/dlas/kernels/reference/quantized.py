"""int8 layers as the reference kernels of TensorFlow Lite compute them, to the bit: NHWC, weights per channel.

Weights are symmetric (zero point 0). The functions take what a file declares, scales and zero points; factors that
are prepared once come from :class:`dlas.kernels.reference.requantize.Requantization`.
"""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.errors import ShapeError
from dlas.kernels.arrays import EXACT, axis_of, integer, length, numbers, taps
from dlas.kernels.reference.conv import correlate
from dlas.kernels.reference.requantize import Requantization, quantize_multiplier, scale_by, scale_sum


def conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    requantization: Requantization,
    *,
    x_zero_point: int,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> np.ndarray:
    """Convolution; as many groups as the channels of ``x`` hold those of ``w``.

    Args:
        x: ``(N, H, W, C)`` int8.
        w: ``(K, KH, KW, C/groups)`` int8.
        b: ``(K,)`` int32, or None.
        requantization: From the sums to the output.
        x_zero_point: What padding is filled with.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical, horizontal.

    Returns:
        ``(N, OH, OW, K)`` int8.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    values = integer(x, "x", [np.int8], 4) - x_zero_point
    weights = integer(w, "w", [np.int8], 4)
    if not w.shape[3] or x.shape[3] % w.shape[3]:
        raise ShapeError(f"w has {w.shape[3]} channels, expected a divisor of the {x.shape[3]} channels of x")
    sums = correlate(
        values.transpose(0, 3, 1, 2).astype(np.float64),
        weights.transpose(0, 3, 1, 2).astype(np.float64),
        strides=strides,
        pads=pads,
        dilations=dilations,
        groups=x.shape[3] // w.shape[3],
    )
    return requantization.apply(_biased(sums.transpose(0, 2, 3, 1), b))


def depthwise_conv2d(
    x: np.ndarray,
    w: np.ndarray,
    b: np.ndarray | None,
    requantization: Requantization,
    *,
    x_zero_point: int,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    dilations: Sequence[int] = (1, 1),
) -> np.ndarray:
    """Convolution of each channel with filters of its own.

    Args:
        x: ``(N, H, W, C)`` int8.
        w: ``(1, KH, KW, C*M)`` int8: M filters for channel 0, then those of channel 1, and so on.
        b: ``(C*M,)`` int32, or None.
        requantization: From the sums to the output.
        x_zero_point: What padding is filled with.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        dilations: Vertical, horizontal.

    Returns:
        ``(N, OH, OW, C*M)`` int8.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    integer(x, "x", [np.int8], 4)
    integer(w, "w", [np.int8], 4)
    if w.shape[0] != 1 or not x.shape[-1] or w.shape[3] % x.shape[-1]:
        raise ShapeError(
            f"w has the shape {list(w.shape)}, expected (1, KH, KW, a multiple of {x.shape[-1]})"
        )
    return conv2d(
        x,
        w.transpose(3, 1, 2, 0),
        b,
        requantization,
        x_zero_point=x_zero_point,
        strides=strides,
        pads=pads,
        dilations=dilations,
    )


def fully_connected(
    x: np.ndarray, w: np.ndarray, b: np.ndarray | None, requantization: Requantization, *, x_zero_point: int
) -> np.ndarray:
    """Product with a matrix.

    Args:
        x: ``(N, I)`` int8.
        w: ``(O, I)`` int8.
        b: ``(O,)`` int32, or None.
        requantization: From the sums to the output; see :func:`fully_connected_requantization`.
        x_zero_point: Zero point of ``x``.

    Returns:
        ``(N, O)`` int8.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    values, weights = integer(x, "x", [np.int8], 2) - x_zero_point, integer(w, "w", [np.int8], 2)
    if x.shape[1] != w.shape[1]:
        raise ShapeError(f"x has {x.shape[1]} features, w has {w.shape[1]}: they must be equal")
    return requantization.apply(_biased(values.astype(np.float64) @ weights.T.astype(np.float64), b))


def fully_connected_requantization(
    x_scale: float,
    w_scale: np.ndarray | float,
    y_scale: float,
    y_zero_point: int,
    *,
    activation: str = "none",
    rounding: str = "double",
) -> Requantization:
    """As :meth:`Requantization.of`; with one scale for all weights TFLite multiplies the scales in float32."""
    if np.size(w_scale) == 1:
        w_scale = float(np.asarray(w_scale).reshape(()))
        product = float(np.float32(x_scale) * np.float32(w_scale))
        return Requantization.of(
            product, 1.0, y_scale, y_zero_point, activation=activation, rounding=rounding
        )
    return Requantization.of(
        x_scale, w_scale, y_scale, y_zero_point, activation=activation, rounding=rounding
    )


def average_pool2d(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    low: int = -128,
    high: int = 127,
) -> np.ndarray:
    """Mean of what each window sees of the image, halves away from zero; scale and zero point stay.

    Args:
        x: ``(N, H, W, C)`` int8.
        kernel: Rows and columns of the window.
        strides: Vertical, horizontal.
        pads: Top, left, bottom, right.
        low: Smallest value of the output.
        high: Largest value of the output.

    Returns:
        ``(N, OH, OW, C)`` int8.

    Raises:
        ShapeError: Something does not fit; the message names it.
    """
    values = integer(x, "x", [np.int8], 4)
    total = _windows(values, kernel, strides, pads, 0, np.add)
    count = _windows(np.ones((1, *x.shape[1:3], 1), np.int64), kernel, strides, pads, 0, np.add)
    if not count.all():
        raise ShapeError(f"pads = {list(pads)}: a window of {list(kernel)} lies wholly within the padding")
    half = count // 2
    mean = np.where(total > 0, (total + half) // count, -((-total + half) // count))
    return np.clip(mean, low, high).astype(np.int8)


def max_pool2d(
    x: np.ndarray,
    kernel: Sequence[int],
    *,
    strides: Sequence[int] = (1, 1),
    pads: Sequence[int] = (0, 0, 0, 0),
    low: int = -128,
    high: int = 127,
) -> np.ndarray:
    """Largest value of each window; arguments, result and errors as :func:`average_pool2d`."""
    found = _windows(integer(x, "x", [np.int8], 4), kernel, strides, pads, -128, np.maximum)
    return np.clip(found, low, high).astype(np.int8)


def mean(
    x: np.ndarray,
    axes: Sequence[int],
    *,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    keep_dims: bool = False,
    rounding: str = "double",
) -> np.ndarray:
    """Mean over some axes, with the division folded into the factor.

    Args:
        x: ``(...)`` int8.
        axes: Which.
        x_scale: Scale of the input.
        x_zero_point: Zero point of the input.
        y_scale: Scale of the output.
        y_zero_point: Zero point of the output.
        keep_dims: Whether the axes stay, with size 1.
        rounding: One of ``requantize.ROUNDINGS``.

    Returns:
        int8, without ``axes`` or with them at size 1.

    Raises:
        ShapeError: ``x`` is no int8 or has no such axis, or there is nothing to average.
    """
    values = integer(x, "x", [np.int8])
    over = tuple({axis_of(a, x.ndim): None for a in axes})
    count = int(np.prod([x.shape[a] for a in over]))
    if not count:
        raise ShapeError(
            f"x has the shape {list(x.shape)}, expected something to average over the axes {over}"
        )
    sums = values.sum(axis=over, keepdims=keep_dims) - x_zero_point * count
    if rounding == "xnnpack":
        factor = np.float32(x_scale) / (np.float32(y_scale) * np.float32(count))
        found = scale_by(sums, float(factor), rounding)
    else:
        multiplier, shift = quantize_multiplier(float(np.float32(x_scale)) / float(np.float32(y_scale)))
        by = min(count.bit_length() - 1, 32, 31 + shift)
        found = scale_sum(sums, (multiplier << by) // count, shift - by, rounding)
    return np.clip(found + y_zero_point, -128, 127).astype(np.int8)


def pad(x: np.ndarray, widths: Sequence[tuple[int, int]], zero_point: int) -> np.ndarray:
    """Surround an array with its zero point.

    Args:
        x: ``(...)`` int8.
        widths: What comes before and after, per axis.
        zero_point: Of ``x``.

    Returns:
        int8, larger.

    Raises:
        ShapeError: There are not as many widths as axes, or one is negative.
    """
    integer(x, "x", [np.int8])
    for before_after in widths:
        numbers(before_after, "widths", 2, 0)
    if len(widths) != x.ndim:
        raise ShapeError(f"{len(widths)} widths for {x.ndim} axes")
    return np.pad(x, widths, constant_values=zero_point)


def _biased(sums: np.ndarray, b: np.ndarray | None) -> np.ndarray:
    """Exact sums as int64, with the bias, wrapped to 32 bits."""
    if sums.size and max(sums.max(), -sums.min()) >= EXACT:
        raise ShapeError("the sums leave the range that float64 holds exactly")
    total = sums.astype(np.int64)
    if b is not None:
        bias = integer(b, "b", [np.int32], 1)
        if len(bias) != sums.shape[-1]:
            raise ShapeError(f"b has {len(bias)} values, expected one for each of {sums.shape[-1]} channels")
        total = total + bias
    return total.astype(np.int32).astype(np.int64)


def _windows(
    values: np.ndarray,
    kernel: Sequence[int],
    strides: Sequence[int],
    pads: Sequence[int],
    fill: int,
    combine: np.ufunc,
) -> np.ndarray:
    shape, steps = numbers(kernel, "kernel", 2, 1), numbers(strides, "strides", 2, 1)
    border = numbers(pads, "pads", 4, 0)
    rows, columns = (
        length(values.shape[1 + a], border[a], border[2 + a], shape[a], steps[a], 1) for a in (0, 1)
    )
    if min(rows, columns) < 1:
        raise ShapeError(f"the output would be {rows} x {columns}: a window of {list(shape)} does not fit")
    padded = np.pad(
        values.transpose(0, 3, 1, 2),
        ((0, 0), (0, 0), (border[0], border[2]), (border[1], border[3])),
        constant_values=fill,
    )
    found = None
    for _, _, seen in taps(padded, (shape[0], shape[1]), (steps[0], steps[1]), (1, 1), (rows, columns)):
        found = seen if found is None else combine(found, seen)
    assert found is not None
    return found.transpose(0, 2, 3, 1)
