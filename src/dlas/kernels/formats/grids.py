"""The grids by name: uniform, powers of two, sums of two or three of them, ternary and binary.

A signed code is a sign bit (1: negative) above the code of the magnitude; a uniform signed code is two's complement.
"""

from __future__ import annotations

from collections.abc import Sequence
from functools import lru_cache, reduce

import numpy as np

from dlas.core.errors import OptionError
from dlas.kernels.formats.grid import Grid, Rounding

# Powers of two that the magnitude bits of a code choose from, as exponents of 1/2; None stands for 0. One group of
# bits per term, the first in the highest bits. For 3 magnitude bits these are the shifters of PoTAcc's accelerators.
_APOT_TERMS: dict[int, tuple[tuple[int | None, ...], ...]] = {
    2: ((None, 1, 2, 3),),
    3: ((None, 1, 2, 4), (None, 3)),
    4: ((None, 1, 3, 5), (None, 2, 4, 6)),
    5: ((None, 1, 3, 6), (None, 2, 4, 7), (None, 5)),
    6: ((None, 1, 4, 7), (None, 2, 5, 8), (None, 3, 6, 9)),
}
# Integers that each group of bits stands for in the 4-bit codes of PoTAcc.
_APOT_4 = ((1, 0, 4, 8), (0, 2))
_MSQ_4 = ((1, 2, 4, 0), (0, 4))


@lru_cache
def uniform(bits: int, signed: bool = True) -> Grid:
    """Evenly spaced: ``-(2**(bits-1)-1) .. 2**(bits-1)-1``, or ``0 .. 2**bits-1`` unsigned; 2 to 8 bits."""
    _within("uniform", bits, 2, 8)
    if not signed:
        values = np.arange(1 << bits)
        return Grid(f"uniform:{bits}u", bits, values, values, signed=False)
    half = 1 << (bits - 1)
    return Grid(
        f"uniform:{bits}", bits, np.arange(half), np.concatenate([np.arange(half), np.arange(-half, 0)])
    )


@lru_cache
def po2(bits: int = 4, *, zero: bool = False, rounding: Rounding = "linear", hardware: bool = True) -> Grid:
    """Powers of two, 2 to 5 bits.

    Args:
        bits: Bits of a code, the sign among them.
        zero: Code 0 stands for 0 and code e for ``2**(e-1)``; otherwise code e is ``2**e``, without 0, as in QKeras'
            ``quantized_po2``. The code there is the distance from the smallest level.
        rounding: ``linear``: the nearest value. ``log``: the nearest exponent, which is what QKeras does.
        hardware: Only as many exponents as ``bits`` hold. QKeras has one more below when no value exceeds 1; without
            ``hardware`` it is there, and a code takes one bit more.

    Raises:
        OptionError: Other bits, or logarithms where there is a zero.
    """
    _within("po2", bits, 2, 5)
    if zero and (rounding == "log" or not hardware):
        raise OptionError("po2: zero", zero, "linear rounding and hardware=True, where 0 is a level")
    count = 1 << (bits - 1)
    if zero:
        magnitudes = [0, *(1 << e for e in range(count - 1))]
    else:
        magnitudes = [1 << e for e in range(count if hardware else count + 1)]
    name = f"po2:{bits}" + ("+0" if zero else "") + ("" if hardware else "+1")
    if not hardware:
        filled = magnitudes + [magnitudes[-1]] * (2 * count - len(magnitudes))
        return _signed(name, bits + 1, filled, rounding)
    terms = tuple(() if m == 0 else (m.bit_length() - 1,) for m in magnitudes)
    return _signed(name, bits, magnitudes, rounding, terms)


@lru_cache
def apot(bits: int = 4, signed: bool = True) -> Grid:
    """Sums of powers of two (Li et al. 2020, "Additive powers-of-two quantization"), 2 to 6 magnitude bits.

    Signed weights of ``bits`` have ``bits - 1`` of them, unsigned activations ``bits``. 4-bit weights have the codes of
    PoTAcc's shift accelerators; others are numbered in ascending order.
    """
    wide = bits - 1 if signed else bits
    if wide not in _APOT_TERMS:
        accepted = "3 .. 7" if signed else "2 .. 6"
        raise OptionError("apot: bits", bits, f"{accepted} for {'signed' if signed else 'unsigned'} values")
    if signed and bits == 4:
        return _two_terms("apot:4", _APOT_4)
    terms = _APOT_TERMS[wide]
    finest = max(e for term in terms for e in term if e is not None)
    groups = [[0 if e is None else 1 << (finest - e) for e in term] for term in terms]
    sums = np.unique(reduce(lambda a, b: np.add.outer(a, b).reshape(-1), groups, np.zeros(1, np.int64)))
    sums //= np.gcd.reduce(sums)
    if not signed:
        return Grid(f"apot:{bits}u", bits, sums, sums, signed=False)
    return _signed(f"apot:{bits}", bits, sums.tolist())


@lru_cache
def msq(bits: int = 4) -> Grid:
    """Sums of two powers of two (SP2 of Chang et al. 2021, "Mix and match", HPCA), 4 bits.

    Eighths: one of 0, 1, 2, 4 plus one of 0, 4. The codes are those of PoTAcc; 4 has two, of which 100 is written.
    """
    _within("msq", bits, 4, 4)
    return _two_terms("msq:4", _MSQ_4)


@lru_cache
def ternary() -> Grid:
    """-1, 0 and 1 in 2 bits."""
    return _signed("ternary", 2, [0, 1])


@lru_cache
def binary() -> Grid:
    """-1 and 1 in 1 bit; 0 becomes 1."""
    return _signed("binary", 1, [1])


def by_name(name: str, bits: int = 4) -> Grid:
    """The grid that the method of this name rounds to: ``int4``, ``po2``, ``apot`` or ``msq``.

    Raises:
        OptionError: There is none, or not of that many bits.
    """
    makers = {"int4": uniform, "po2": po2, "apot": apot, "msq": msq}
    if name not in makers:
        raise OptionError("grid", name, "one of " + ", ".join(makers))
    return makers[name](bits)


def qkeras_po2(x: np.ndarray, bits: int = 4, max_value: float | None = None) -> np.ndarray:
    """What QKeras' ``quantized_po2`` makes of values, ``(...) float64``: the yardstick of :func:`po2`.

    The exponent is the rounded logarithm (halves to even), clipped to what ``bits`` hold: one bit is the sign of the
    number and, unless ``max_value`` is at most 1, one that of the exponent. 0 is positive and becomes the smallest.
    """
    magnitude = np.abs(np.asarray(x, np.float64))
    wide = max_value is None or max_value > 1
    lowest, highest = (
        (-(1 << (bits - 2)), (1 << (bits - 2)) - 1) if wide else (-(1 << (bits - 1)), (1 << (bits - 1)) - 1)
    )
    exponents = np.full(magnitude.shape, float(lowest))
    seen = magnitude >= 1e-7
    exponents[seen] = np.clip(np.rint(np.log2(magnitude[seen])), lowest, highest)
    values = np.exp2(exponents)
    if max_value is not None:
        values = np.minimum(values, max_value)
    return np.where(np.asarray(x) < 0, -values, values)


def _within(name: str, bits: int, low: int, high: int) -> None:
    if not low <= bits <= high:
        raise OptionError(f"{name}: bits", bits, f"{low} .. {high}" if low < high else str(low))


def _two_terms(name: str, groups: tuple[tuple[int, ...], tuple[int, ...]]) -> Grid:
    """4 bits: sign, two bits for the first term, one for the second."""
    pairs = [(first, second) for first in groups[0] for second in groups[1]]
    terms = tuple(tuple(t.bit_length() - 1 for t in pair if t) for pair in pairs)
    return _signed(name, 4, [first + second for first, second in pairs], "linear", terms)


def _signed(
    name: str,
    bits: int,
    by_code: Sequence[int],
    rounding: Rounding = "linear",
    terms: tuple[tuple[int, ...], ...] = (),
) -> Grid:
    """A grid whose highest bit is the sign, from the magnitude of each code below it."""
    values = np.array(by_code, np.int64)
    return Grid(name, bits, np.unique(values), np.concatenate([values, -values]), True, rounding, terms)
