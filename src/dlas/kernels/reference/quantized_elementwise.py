"""int8 additions, products, softmax and conversions as the reference kernels of TensorFlow Lite compute them."""

from __future__ import annotations

import math

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import check_broadcast, integer, real
from dlas.kernels.reference.requantize import (
    activation_range,
    high_product,
    quantize_multiplier,
    rounding_shift,
    scale_by,
    scale_sum,
)

_ADD_SHIFT = 20  # bits of head room the inputs of an addition get


def add(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: float,
    a_zero_point: int,
    b_scale: float,
    b_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    activation: str = "none",
    rounding: str = "double",
) -> np.ndarray:
    """Sum of two arrays that broadcast.

    Args:
        a: ``(...)`` int8.
        b: ``(...)`` int8.
        a_scale: Scale of ``a``.
        a_zero_point: Zero point of ``a``.
        b_scale: Scale of ``b``.
        b_zero_point: Zero point of ``b``.
        y_scale: Scale of the output.
        y_zero_point: Zero point of the output.
        activation: ``none``, ``relu``, ``relu6`` or ``relu-n1-to-1``.
        rounding: ``double``, ``single``, ``away`` or ``xnnpack``.

    Returns:
        Broadcast shape, int8.

    Raises:
        ShapeError: The arrays are no int8 or do not broadcast.
        OptionError: A scale is not positive, or there is no such activation or rounding.
    """
    first, second = _both(a, b)
    scales = _scales(a_scale=a_scale, b_scale=b_scale, y_scale=y_scale)
    low, high = activation_range(activation, scales[2], y_zero_point)
    first, second = first - a_zero_point, second - b_zero_point
    once = rounding == "xnnpack"
    found = _add_once(first, second, scales) if once else _add_twice(first, second, scales, rounding)
    return np.clip(found + y_zero_point, low, high).astype(np.int8)


def _add_twice(a: np.ndarray, b: np.ndarray, scales: tuple[float, ...], rounding: str) -> np.ndarray:
    """Each input scaled to a common grid with 20 bits of head room, then their sum to that of the output."""
    a_scale, b_scale, y_scale = scales
    largest = 2 * max(a_scale, b_scale)
    first = scale_sum(a << _ADD_SHIFT, *quantize_multiplier(a_scale / largest), rounding)
    second = scale_sum(b << _ADD_SHIFT, *quantize_multiplier(b_scale / largest), rounding)
    total = (first + second).astype(np.int32).astype(np.int64)
    return scale_sum(total, *quantize_multiplier(largest / (2**_ADD_SHIFT * y_scale)), rounding)


def _add_once(a: np.ndarray, b: np.ndarray, scales: tuple[float, ...]) -> np.ndarray:
    """Both inputs times factors of 21 bits, one shift, halves up."""
    ratios = [float(np.float32(s) / np.float32(scales[2])) for s in scales[:2]]
    if not 2**-10 <= max(ratios) < 2**8:
        raise OptionError(
            "scales", ratios, "a largest ratio of input to output within 2**-10 .. 2**8 (XNNPACK)"
        )
    shift = _ADD_SHIFT + 1 - math.frexp(max(ratios))[1]
    first, second = (round(r * 2.0**shift) for r in ratios)
    return (a * first + b * second + (1 << (shift - 1))) >> shift


def mul(
    a: np.ndarray,
    b: np.ndarray,
    *,
    a_scale: float,
    a_zero_point: int,
    b_scale: float,
    b_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    activation: str = "none",
    rounding: str = "double",
) -> np.ndarray:
    """Product of two arrays that broadcast; arguments, result and errors as :func:`add`."""
    first, second = _both(a, b)
    scales = _scales(a_scale=a_scale, b_scale=b_scale, y_scale=y_scale)
    product = (first - a_zero_point) * (second - b_zero_point)
    factor = np.float32(scales[0]) * np.float32(scales[1]) / np.float32(scales[2])
    low, high = activation_range(activation, scales[2], y_zero_point)
    found = scale_by(product, float(factor), rounding) + y_zero_point
    return np.clip(found, low, high).astype(np.int8)


def quantize(x: np.ndarray, scale: float, zero_point: int, *, rounding: str = "double") -> np.ndarray:
    """Nearest int8; halves away from zero, with ``xnnpack`` to the even neighbour.

    Args:
        x: ``(...)`` float32.
        scale: Of the result.
        zero_point: Of the result.
        rounding: One of ``requantize.ROUNDINGS``; XNNPACK multiplies by the reciprocal of the scale.

    Returns:
        ``(...)`` int8.

    Raises:
        ShapeError: ``x`` is no array of floats.
        OptionError: The scale is not positive, or ``x`` holds NaN.
    """
    real(x, "x")
    (step,) = _scales(scale=scale)
    if np.isnan(x).any():
        raise OptionError("x", "NaN", "numbers, which alone have a nearest int8")
    values = x.astype(np.float32)
    if rounding == "xnnpack":
        nearest = np.rint(np.clip(values * (np.float32(1) / np.float32(step)), -1e6, 1e6))
    else:
        steps = np.clip(values / np.float32(step), -1e6, 1e6).astype(np.float64)
        nearest = np.copysign(np.floor(np.abs(steps) + 0.5), steps)
    return np.clip(nearest + zero_point, -128, 127).astype(np.int8)


def dequantize(x: np.ndarray, scale: float, zero_point: int) -> np.ndarray:
    """``scale * (x - zero_point)``.

    Args:
        x: ``(...)`` int8.
        scale: Of ``x``.
        zero_point: Of ``x``.

    Returns:
        ``(...)`` float32.

    Raises:
        ShapeError: ``x`` is no int8.
        OptionError: The scale is not positive.
    """
    (step,) = _scales(scale=scale)
    return (step * (integer(x, "x", [np.int8]) - zero_point)).astype(np.float32)


def requantize(
    x: np.ndarray,
    *,
    x_scale: float,
    x_zero_point: int,
    y_scale: float,
    y_zero_point: int,
    rounding: str = "double",
) -> np.ndarray:
    """The same numbers with another scale and zero point (TFLite QUANTIZE from int8 to int8).

    Args:
        x: ``(...)`` int8.
        x_scale: Scale of the input.
        x_zero_point: Zero point of the input.
        y_scale: Scale of the output.
        y_zero_point: Zero point of the output.
        rounding: ``double`` or ``single``.

    Returns:
        ``(...)`` int8.

    Raises:
        ShapeError: ``x`` is no int8.
        OptionError: A scale is not positive.
    """
    before, after = _scales(x_scale=x_scale, y_scale=y_scale)
    values = integer(x, "x", [np.int8]) - x_zero_point
    found = scale_sum(values, *quantize_multiplier(before / after), rounding)
    return np.clip(found + y_zero_point, -128, 127).astype(np.int8)


def softmax(x: np.ndarray, *, x_scale: float, beta: float = 1.0, rounding: str = "double") -> np.ndarray:
    """Softmax along the last axis in fixed-point arithmetic; the output has scale 1/256 and zero point -128.

    With ``xnnpack`` it is a table of 256 exponentials in float32, as LiteRT computes it unless told otherwise.

    Args:
        x: ``(..., C)`` int8.
        x_scale: Scale of ``x``.
        beta: Factor of the exponent.
        rounding: One of ``requantize.ROUNDINGS``.

    Returns:
        ``(..., C)`` int8.

    Raises:
        ShapeError: ``x`` is no int8 or has no last axis.
        OptionError: The scale is not positive.
    """
    values = integer(x, "x", [np.int8])
    if not x.ndim or not x.shape[-1]:
        raise ShapeError(f"x has the shape {list(x.shape)}, expected a last axis to sum over")
    (scale,) = _scales(x_scale=x_scale)
    if rounding == "xnnpack":
        return _softmax_by_table(values, scale, beta)
    # Differences as Q5.26: 5 bits before the point.
    factor = min(float(np.float32(beta)) * scale * 2**26, 2.0**31 - 1)
    multiplier, left = quantize_multiplier(factor)
    below = -math.floor(31 * 2**26 / 2**left)
    difference = values - values.max(axis=-1, keepdims=True)
    counted = difference >= below
    scaled = high_product(np.where(counted, difference, 0) << left, multiplier)
    exponentials = np.where(counted, _exp_of_negative(scaled), 0)
    total = np.where(counted, rounding_shift(exponentials, 12), 0).sum(axis=-1, keepdims=True)
    reciprocal, bits = _reciprocal(total, 12)
    found = rounding_shift(high_product(exponentials, reciprocal), bits + 31 - 8) - 128
    return np.where(counted, np.clip(found, -128, 127), -128).astype(np.int8)


def _softmax_by_table(values: np.ndarray, scale: float, beta: float) -> np.ndarray:
    steps = np.arange(256, dtype=np.float32)
    table = np.exp(np.float32(-scale) * np.float32(beta) * steps)
    exponentials = table[values.max(axis=-1, keepdims=True) - values]
    total = np.zeros(values.shape[:-1], np.float32)
    for column in range(values.shape[-1]):  # NumPy's own sum adds in another order
        total += exponentials[..., column]
    share = exponentials * (np.float32(1) / (total * np.float32(1 / 256)))[..., None]
    return np.clip(np.floor(share + np.float32(0.5)) - 128, -128, 127).astype(np.int8)


# exp(-2**k) as Q0.31, for k = -2 .. 4
_EXPONENTIALS = [min(round(math.exp(-(2.0**k)) * 2**31), 2**31 - 1) for k in range(-2, 5)]


def _exp_of_negative(a: np.ndarray) -> np.ndarray:
    """``exp(a)`` as Q0.31, of ``a <= 0`` as Q5.26: a Taylor series for the fraction, a table for each other bit."""
    quarter = 1 << 24
    fraction = (a & (quarter - 1)) - quarter  # in [-1/4, 0)
    x = (fraction << 5) + (1 << 28)  # Q0.31, centred on -1/8
    x2 = high_product(x, x)
    x3, x4 = high_product(x2, x), high_product(x2, x2)
    third = round(2**31 / 3)
    tail = rounding_shift(high_product(rounding_shift(x4, 2) + x3, third) + x2, 1)
    centre = round(math.exp(-1 / 8) * 2**31)
    result = centre + high_product(x + tail, centre)
    rest = fraction - a
    for bit, factor in enumerate(_EXPONENTIALS, 24):
        result = np.where(rest & (1 << bit), high_product(result, factor), result)
    return np.where(a == 0, 2**31 - 1, result)


def _reciprocal(x: np.ndarray, integer_bits: int) -> tuple[np.ndarray, np.ndarray]:
    """``1/x`` as Q0.31 and how many bits it is to be shifted by; Newton-Raphson, three steps."""
    width = np.array([int(v).bit_length() for v in x.ravel()], np.int64).reshape(x.shape)
    leading = 32 - width
    below_one = (x << leading) - (1 << 31)  # x = 1.f * 2**n, this is f as Q0.31
    half_sum = (below_one + (2**31 - 1) + 1) >> 1  # (1 + f) / 2
    # Start of 48/17 - 32/17 d, as Q2.29.
    y = round(48 / 17 * 2**29) + high_product(half_sum, round(-32 / 17 * 2**29))
    for _ in range(3):
        error = (1 << 29) - high_product(half_sum, y)
        y = y + _saturated(high_product(y, error) << 2)
    return _saturated(y << 1), integer_bits - leading


def _saturated(x: np.ndarray) -> np.ndarray:
    return np.clip(x, -(2**31), 2**31 - 1)


def _both(a: np.ndarray, b: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    left, right = integer(a, "a", [np.int8]), integer(b, "b", [np.int8])
    check_broadcast(a, b)
    return left, right


def _scales(**given: float) -> tuple[float, ...]:
    """Scales as float32 holds them."""
    for name, value in given.items():
        if not (math.isfinite(value) and value > 0):
            raise OptionError(name, value, "a finite number > 0")
    return tuple(float(np.float32(v)) for v in given.values())
