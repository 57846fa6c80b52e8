"""Weights that are powers of two, as 4-bit codes: bit 3 is the sign, bits 2..0 the exponent.

With ``zero`` (the default) exponent field 0 is the value 0 and field e is ``2**(e-1)``: 0, ±1 .. ±64, which fit an
int8 operand. Without it field e is ``2**e``: ±1 .. ±128, the code of QKeras' ``quantized_po2(4)``. A kernel looks the
value up (a byte shuffle) or shifts the activation by the exponent.
"""

from __future__ import annotations

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import axis_of

SIGN = 8


def po2_table(zero: bool = True) -> np.ndarray:
    """Value of each of the 16 codes: ``(16,)`` int8, or int16 without zero, as 128 is no int8."""
    magnitudes = [0, *(1 << e for e in range(7))] if zero else [1 << e for e in range(8)]
    values = [*magnitudes, *(-m for m in magnitudes)]
    return np.array(values, np.int8 if zero else np.int16)


def quantize_po2(
    w: np.ndarray, *, axis: int | None = None, zero: bool = True
) -> tuple[np.ndarray, np.ndarray]:
    """Nearest power of two of each weight; the largest of a slice becomes the largest code.

    Args:
        w: ``(...)`` float32.
        axis: Axis whose slices have a scale each; None for one scale.
        zero: Whether 0 is among the values.

    Returns:
        Codes, ``(...)`` uint8, and scales, float32, of the shape ``(w.shape[axis],)`` or ``()``:
        ``w ~ scale * po2_table(zero)[codes]``. Among two neighbours as near the smaller is taken.

    Raises:
        ShapeError: ``w`` is no array of floats, or has no such axis.
        OptionError: ``w`` holds NaN or an infinity.
    """
    if not isinstance(w, np.ndarray) or w.dtype.kind != "f":
        raise ShapeError(f"w is {getattr(w, 'dtype', type(w).__name__)}, expected float32")
    if not np.isfinite(w).all():
        raise OptionError("w", "NaN or infinity", "finite weights")
    place = None if axis is None else axis_of(axis, w.ndim)
    others = tuple(a for a in range(w.ndim) if a != place)
    magnitudes = po2_table(zero)[:SIGN].astype(np.float64)
    largest = np.abs(w).max(axis=others, keepdims=True, initial=0.0).astype(np.float64)
    scale = np.where(largest > 0, largest / magnitudes[-1], 1.0).astype(np.float32)
    steps = np.abs(w) / scale.astype(np.float64)
    codes = np.searchsorted((magnitudes[1:] + magnitudes[:-1]) / 2, steps).astype(np.uint8)
    # Where 0 is no value, -0.0 and 0.0 both become the smallest positive one.
    codes |= np.where((w < 0) & (magnitudes[codes] > 0), SIGN, 0).astype(np.uint8)
    return codes, scale.reshape(() if place is None else (-1,))


def dequantize_po2(
    codes: np.ndarray, scale: np.ndarray | float, *, axis: int | None = None, zero: bool = True
) -> np.ndarray:
    """Inverse of :func:`quantize_po2` up to rounding.

    Args:
        codes: ``(...)`` uint8 within 0 .. 15.
        scale: One, or ``(codes.shape[axis],)``.
        axis: Axis the scales belong to; None for one scale.
        zero: As given when they were made.

    Returns:
        ``(...)`` float32.

    Raises:
        ShapeError: ``codes`` is no uint8, or the scales do not fit.
        OptionError: A code is over 15.
    """
    values = decode_po2(codes, zero=zero)
    factors = np.asarray(scale, np.float32)
    if axis is None:
        if factors.size != 1:
            raise ShapeError(f"{factors.size} scales without an axis, expected 1")
        return values.astype(np.float32) * factors.reshape(())
    place = axis_of(axis, codes.ndim)
    if factors.shape != (codes.shape[place],):
        raise ShapeError(f"scale has the shape {list(factors.shape)}, expected [{codes.shape[place]}]")
    shape = [1] * codes.ndim
    shape[place] = -1
    return values.astype(np.float32) * factors.reshape(shape)


def decode_po2(codes: np.ndarray, *, zero: bool = True) -> np.ndarray:
    """Value of each code: int8, or int16 without zero.

    Raises:
        ShapeError: ``codes`` is no uint8.
        OptionError: A code is over 15.
    """
    if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8:
        raise ShapeError(f"codes are {getattr(codes, 'dtype', type(codes).__name__)}, expected uint8")
    if codes.size and codes.max() > 15:
        raise OptionError("codes", int(codes.max()), "4-bit codes, 0 .. 15")
    return po2_table(zero)[codes]


def encode_po2(values: np.ndarray, *, zero: bool = True) -> np.ndarray:
    """Code of each value, uint8; of the two codes of 0 the one without sign.

    Raises:
        OptionError: A value is no power of two in range.
    """
    table = po2_table(zero)
    known = {int(v): code for code, v in reversed(list(enumerate(table)))}
    found, places = np.unique(np.asarray(values), return_inverse=True)
    wrong = [v for v in found.tolist() if v not in known]
    if wrong:
        raise OptionError("value", wrong[0], f"one of {sorted(known)}")
    codes = np.array([known[v] for v in found.tolist()], np.uint8)
    return codes[places].reshape(np.shape(values))
