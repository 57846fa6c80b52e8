"""From 32-bit sums back to 8 bits, as TensorFlow Lite does it: a factor as a 31-bit fraction and a power of two.

Four roundings of the same product are in use, and differ by one step now and then:

``double``
    rounds the 64-bit product to 32 bits and then rounds the shift, halves away from zero: the reference kernels of
    TensorFlow Lite (convolutions, means, additions) and its micro runtime;
``single``
    rounds the shifted product once, halves up: runtimes built with ``TFLITE_SINGLE_ROUNDING``;
``away``
    rounds it once, halves away from zero: the fully connected layer of LiteRT 2.3's reference kernels (observed);
``xnnpack``
    multiplies in float32 and rounds halves to the even neighbour (additions: 21-bit factors, halves up): XNNPACK, which
    runs int8 networks in LiteRT unless told otherwise. Whole networks equal LiteRT 2.3's answers to the bit.

Source: ``SaturatingRoundingDoublingHighMul`` and ``RoundingDivideByPOT`` of gemmlowp, ``QuantizeMultiplier`` of TFLite.
"""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import OptionError, ShapeError

ROUNDINGS = ("double", "single", "away", "xnnpack")
_HIGHEST, _LOWEST = 2**31 - 1, -(2**31)


def quantize_multiplier(real: float) -> tuple[int, int]:
    """A factor as ``multiplier * 2**(shift - 31)``.

    Args:
        real: The factor, finite and not negative.

    Returns:
        The multiplier, 0 or 2**30 .. 2**31 - 1, and the shift, positive to the left.

    Raises:
        OptionError: The factor is negative, not finite or 2**31 and more.
    """
    if not (math.isfinite(real) and real >= 0):
        raise OptionError("multiplier", real, "a finite number >= 0")
    fraction, shift = math.frexp(real)
    multiplier = math.floor(fraction * 2**31 + 0.5)
    if multiplier == 2**31:
        multiplier, shift = multiplier // 2, shift + 1
    if shift < -31:
        return 0, 0
    if shift > 31:
        raise OptionError("multiplier", real, "a number < 2**31")
    return multiplier, shift


def high_product(a: np.ndarray, b: np.ndarray | int) -> np.ndarray:
    """Upper half of twice the product of two int32, rounded half up, saturated.

    Args:
        a: ``(...)`` int64 within int32.
        b: The same, or broadcasting to it.

    Returns:
        ``(...)`` int64 within int32.
    """
    # gemmlowp nudges by 2**30, or by 1 - 2**30 below zero, and divides towards zero: together a floor of this.
    product = np.asarray(a * np.asarray(b, np.int64))
    product += 2**30
    product >>= 31
    return np.minimum(product, _HIGHEST)


def rounding_shift(x: np.ndarray, exponent: np.ndarray | int) -> np.ndarray:
    """``x / 2**exponent``, rounded half away from zero.

    Args:
        x: ``(...)`` int64.
        exponent: 0 .. 62, one number or an array that broadcasts.

    Returns:
        ``(...)`` int64.
    """
    by = np.asarray(exponent, np.int64)
    mask = (np.int64(1) << by) - 1
    return (x >> by) + ((x & mask) > (mask >> 1) + (x < 0))


def scale_sum(
    x: np.ndarray,
    multiplier: np.ndarray | int,
    shift: np.ndarray | int,
    rounding: str = "double",
) -> np.ndarray:
    """``x * multiplier * 2**(shift - 31)`` in integer arithmetic.

    Args:
        x: ``(...)`` int64 within int32.
        multiplier: From :func:`quantize_multiplier`; one, or an array that broadcasts to ``x``.
        shift: The same.
        rounding: ``double``, ``single`` or ``away``.

    Returns:
        ``(...)`` int64 within int32.

    Raises:
        OptionError: There is no such rounding of integers.
    """
    factor, by = np.asarray(multiplier, np.int64), np.asarray(shift, np.int64)
    if rounding == "double":
        left = (
            (x << np.maximum(by, 0)).astype(np.int32).astype(np.int64)
        )  # wraps, as the shift of an int32 does
        return rounding_shift(high_product(left, factor), np.maximum(-by, 0))
    if rounding == "single":
        total = 31 - by
        return (x * factor + (np.int64(1) << (total - 1))) >> total
    if rounding == "away":
        return rounding_shift(x * factor, 31 - by)
    raise OptionError("rounding", rounding, "double, single or away")


def scale_by(x: np.ndarray, real: float, rounding: str = "double") -> np.ndarray:
    """``x * real`` in the arithmetic of one of ``ROUNDINGS``.

    Args:
        x: ``(...)`` int64 within int32.
        real: The factor, finite and not negative.
        rounding: Which.

    Returns:
        ``(...)`` int64.

    Raises:
        OptionError: The factor is out of range, or there is no such rounding.
    """
    if rounding == "xnnpack":
        return np.rint(x.astype(np.float32) * np.float32(real)).astype(np.int64)
    return scale_sum(x, *quantize_multiplier(real), rounding)


@dataclass(frozen=True)
class Requantization:
    """How the sums of a layer become its output.

    Attributes:
        multiplier: ``(K,)`` or ``(1,)`` int32: factor per output channel.
        shift: The same: powers of two.
        factor: The same in float32, for ``xnnpack``.
        zero_point: Of the output.
        low: Smallest value of the output, from its dtype and activation.
        high: Largest value of the output.
        rounding: One of ``ROUNDINGS``.
    """

    multiplier: np.ndarray
    shift: np.ndarray
    factor: np.ndarray
    zero_point: int
    low: int = -128
    high: int = 127
    rounding: str = "double"

    @classmethod
    def of(
        cls,
        x_scale: float,
        w_scale: np.ndarray | float,
        y_scale: float,
        y_zero_point: int,
        *,
        activation: str = "none",
        rounding: str = "double",
    ) -> Requantization:
        """Work out the factors of a convolution or depthwise convolution, as TFLite prepares them.

        Args:
            x_scale: Scale of the input.
            w_scale: ``(K,)`` scales of the weights, or one.
            y_scale: Scale of the output.
            y_zero_point: Zero point of the output.
            activation: ``none``, ``relu``, ``relu6`` or ``relu-n1-to-1``.
            rounding: One of ``ROUNDINGS``.

        Raises:
            OptionError: A scale is not positive, or there is no such activation.
        """
        if rounding not in ROUNDINGS:
            raise OptionError("rounding", rounding, "one of " + ", ".join(ROUNDINGS))
        scales = np.atleast_1d(np.asarray(w_scale, np.float32)).astype(np.float64)
        for name, value in (("x_scale", x_scale), ("y_scale", y_scale), ("w_scale", float(scales.min()))):
            if not (math.isfinite(value) and value > 0):
                raise OptionError(name, value, "a finite number > 0")
        x, y = float(np.float32(x_scale)), float(np.float32(y_scale))
        pairs = [quantize_multiplier(x * s / y) for s in scales.tolist()]
        low, high = activation_range(activation, y, y_zero_point)
        factors, shifts = (np.array(column, np.int32) for column in zip(*pairs, strict=True))
        factor = np.float32(x_scale) * scales.astype(np.float32) / np.float32(y_scale)
        return cls(factors, shifts, factor, y_zero_point, low, high, rounding)

    def apply(self, sums: np.ndarray) -> np.ndarray:
        """The output as int8.

        Args:
            sums: ``(..., K)`` integers within int32.

        Returns:
            ``(..., K)`` int8.

        Raises:
            ShapeError: The channels are not those of the factors.
        """
        if len(self.multiplier) not in (1, sums.shape[-1]):
            raise ShapeError(f"{len(self.multiplier)} multipliers for {sums.shape[-1]} channels")
        if self.rounding == "xnnpack":
            scaled = np.rint(sums.astype(np.float32) * self.factor).astype(np.int64)
        else:
            scaled = scale_sum(sums.astype(np.int64), self.multiplier, self.shift, self.rounding)
        return np.clip(scaled + self.zero_point, self.low, self.high).astype(np.int8)


def activation_range(activation: str, scale: float, zero_point: int) -> tuple[int, int]:
    """Smallest and largest int8 value that an output with a fused activation takes.

    Raises:
        OptionError: There is no such activation.
    """
    bounds = {
        "none": (None, None), "relu": (0.0, None), "relu6": (0.0, 6.0), "relu-n1-to-1": (-1.0, 1.0),
    }  # fmt: skip
    if activation not in bounds:
        raise OptionError("activation", activation, "one of " + ", ".join(bounds))
    low, high = bounds[activation]
    return (
        -128 if low is None else max(-128, zero_point + _away(low / scale)),
        127 if high is None else min(127, zero_point + _away(high / scale)),
    )


def _away(value: float) -> int:
    """Nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(float(np.float32(value))) + 0.5), value))
