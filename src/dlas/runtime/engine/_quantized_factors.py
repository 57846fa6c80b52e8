"""What the integer operators of the engine are given instead of scales: multipliers, shifts, bounds and tables."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlas.kernels.reference.quantized_elementwise import _exp_of_negative
from dlas.kernels.reference.requantize import high_product, quantize_multiplier, scale_sum

ROUNDINGS = ("double", "single", "xnnpack", "onnx")
FLOATS = ("xnnpack", "onnx")  # sums times a float32 factor, halves to the even neighbour
_ADD_SHIFT = 20  # bits of head room the inputs of an addition get


@dataclass(frozen=True)
class Grid:
    """Scale, zero point and dtype of a value."""

    scale: float
    zero_point: int
    dtype: str


def bounds(y: Grid, act: tuple[float | None, float | None], rounding: str) -> tuple[int, int]:
    """Smallest and largest byte of an output whose activation lets ``act`` through."""
    limits = np.iinfo(y.dtype)
    low, high = int(limits.min), int(limits.max)
    nearest = np.rint if rounding in FLOATS else _away
    if act[0] is not None:
        low = max(low, y.zero_point + int(nearest(np.float32(act[0]) / np.float32(y.scale))))
    if act[1] is not None:
        high = min(high, y.zero_point + int(nearest(np.float32(act[1]) / np.float32(y.scale))))
    return min(low, int(limits.max)), max(high, int(limits.min))


def weighted(
    op: str, x: Grid, w_scales: np.ndarray, y: Grid, rounding: str
) -> tuple[dict[str, Any], np.ndarray | None]:
    """Attributes of an operator with weights, and its float32 factors where that is how it rounds.

    TFLite multiplies the scales in float64, but in float32 for matrices with one scale and for uint8. LiteRT's
    reference kernel of a matrix product rounds once, halves away from zero.
    """
    if rounding in FLOATS:
        factors = np.float32(x.scale) * w_scales.astype(np.float32) / np.float32(y.scale)
        return {}, factors.astype(np.float32)
    if w_scales.size == 1 and (op == "QDense" or x.dtype == "uint8"):
        reals = [float(np.float32(x.scale) * w_scales[0]) / y.scale]
    else:
        reals = [x.scale * s / y.scale for s in w_scales.astype(np.float64).tolist()]
    pairs = [quantize_multiplier(real) for real in reals]
    found = {"multipliers": tuple(p[0] for p in pairs), "shifts": tuple(p[1] for p in pairs)}
    return found | ({"rounding": "away"} if op == "QDense" and rounding == "double" else {}), None


def addition(a: Grid, b: Grid, y: Grid, rounding: str) -> dict[str, Any] | None:
    """Factors of both sides and of the sum; None for scales that XNNPACK does not take either."""
    if rounding == "xnnpack":
        ratios = [float(np.float32(side.scale) / np.float32(y.scale)) for side in (a, b)]
        if not 2**-10 <= max(ratios) < 2**8:
            return None
        shift = _ADD_SHIFT + 1 - math.frexp(max(ratios))[1]
        whole = [round(r * 2.0**shift) for r in ratios]
        return {"a_multiplier": whole[0], "b_multiplier": whole[1], "shifts": (shift,)}
    largest = 2 * max(a.scale, b.scale)
    first, second = (quantize_multiplier(side.scale / largest) for side in (a, b))
    whole = quantize_multiplier(largest / (2**_ADD_SHIFT * y.scale))
    return {
        "left_shift": _ADD_SHIFT,
        "a_multiplier": first[0],
        "a_shift": first[1],
        "b_multiplier": second[0],
        "b_shift": second[1],
        "multipliers": (whole[0],),
        "shifts": (whole[1],),
    }


def product(a: Grid, b: Grid, y: Grid, rounding: str) -> dict[str, Any]:
    """Factor of a product; the scales multiply in float32."""
    factor = float(np.float32(a.scale) * np.float32(b.scale) / np.float32(y.scale))
    if rounding == "xnnpack":
        return {"factor": factor}
    multiplier, shift = quantize_multiplier(factor)
    return {"multipliers": (multiplier,), "shifts": (shift,)}


def mean(x: Grid, y: Grid, count: int, rounding: str) -> dict[str, Any]:
    """Factor of a sum over ``count`` values, the division in it."""
    if rounding == "xnnpack":
        return {"factor": float(np.float32(x.scale) / (np.float32(y.scale) * np.float32(count)))}
    multiplier, shift = quantize_multiplier(x.scale / y.scale)
    by = min(count.bit_length() - 1, 32, 31 + shift)
    return {"multipliers": ((multiplier << by) // count,), "shifts": (shift - by,)}


def exponentials(x: Grid, rounding: str) -> np.ndarray:
    """exp(-d scale) for the 256 differences d there are: float32, or Q0.31 in int32 with -1 for what counts as 0."""
    if rounding == "xnnpack":
        return np.exp(np.float32(-x.scale) * np.arange(256, dtype=np.float32))
    multiplier, left = quantize_multiplier(min(x.scale * 2**26, 2.0**31 - 1))
    below = -math.floor(31 * 2**26 / 2**left)
    difference = -np.arange(256, dtype=np.int64)
    counted = difference >= below
    scaled = high_product(np.where(counted, difference, 0) << left, multiplier)
    return np.where(counted, _exp_of_negative(scaled), -1).astype(np.int32)


def requantization_table(
    x: Grid, y: Grid, act: tuple[float | None, float | None], rounding: str
) -> np.ndarray:
    """The output byte for every input byte, ``(256,) uint8``."""
    raw = np.arange(256, dtype=np.uint8)
    values = raw.view(x.dtype).astype(np.int64) - x.zero_point
    found = scale_sum(values, *quantize_multiplier(x.scale / y.scale), rounding)
    low, high = bounds(y, act, rounding)
    return np.clip(found + y.zero_point, low, high).astype(y.dtype).view(np.uint8)


def leaky_table(x: Grid, y: Grid, alpha: float, rounding: str) -> np.ndarray:
    """LeakyRelu for every input byte, ``(256,) uint8``: a factor for each side of zero, as TFLite rounds."""
    raw = np.arange(256, dtype=np.uint8)
    values = raw.view(x.dtype).astype(np.int64) - x.zero_point
    above = float(np.float32(x.scale) / np.float32(y.scale))
    below = float(np.float32(x.scale) * np.float32(alpha) / np.float32(y.scale))
    found = np.where(
        values >= 0,
        scale_sum(values, *quantize_multiplier(above), rounding),
        scale_sum(values, *quantize_multiplier(below), rounding),
    )
    limits = np.iinfo(y.dtype)
    return np.clip(found + y.zero_point, limits.min, limits.max).astype(y.dtype).view(np.uint8)


def tanh_table(x: Grid, y: Grid) -> np.ndarray:
    """Tanh for every input byte, ``(256,) uint8``: in float32, halves away from zero, as TFLite fills its table."""
    raw = np.arange(256, dtype=np.uint8)
    values = np.float32(x.scale) * (raw.view(x.dtype).astype(np.float32) - np.float32(x.zero_point))
    scaled = np.tanh(values) * (np.float32(1) / np.float32(y.scale))
    found = np.sign(scaled) * np.floor(np.abs(scaled) + np.float32(0.5)) + y.zero_point
    limits = np.iinfo(y.dtype)
    return np.clip(found, limits.min, limits.max).astype(y.dtype).view(np.uint8)


def _away(value: np.floating) -> int:
    """Nearest integer, halves away from zero."""
    return int(math.copysign(math.floor(abs(float(value)) + 0.5), float(value)))
