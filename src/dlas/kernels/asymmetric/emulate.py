"""Bit-true 8-bit by 4-bit matrix products with 16-bit accumulators, and how often those overflow.

The instruction: A is 2x8 of 8 bits, B 8x4 of 4 bits, C 2x4 of 16 bits. The 8 products of a dot product are summed
exactly and added to the accumulator, strictly in increasing k; K is filled with zeros to a multiple of 8.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.formats.int4 import check_codes

DEPTH = 8  # products an instruction sums
ACCUMULATORS = ("wrap", "sat", "int32")
_LOW, _HIGH = -(2**15), 2**15 - 1


@dataclass(frozen=True)
class OverflowStats:
    """What became of the 16-bit accumulators; shares are fractions.

    Attributes:
        updates: Additions to an accumulator, one per output and group of 8 products.
        overflows: Additions whose exact result leaves 16 bits.
        outputs: Elements of the result.
        any_overflow: Outputs with at least one such addition.
        final_overflow: Outputs where the exact total between two spills leaves 16 bits.
        wrong: Outputs that differ from the exact product.
        spills: Times an accumulator was added into 32 bits, over all outputs.
        largest: Largest magnitude that an addition came to, before it was wrapped or clipped.
    """

    updates: int
    overflows: int
    outputs: int
    any_overflow: int
    final_overflow: int
    wrong: int
    spills: int
    largest: int

    @property
    def overflow_rate(self) -> float:
        """Share of the additions that overflow."""
        return self.overflows / self.updates

    @property
    def any_rate(self) -> float:
        """Share of the outputs that overflow on the way."""
        return self.any_overflow / self.outputs

    @property
    def final_rate(self) -> float:
        """Share of the outputs whose totals do not fit."""
        return self.final_overflow / self.outputs

    @property
    def wrong_rate(self) -> float:
        """Share of the outputs that are wrong."""
        return self.wrong / self.outputs

    def __add__(self, other: OverflowStats) -> OverflowStats:
        """Of two products together, as over the layers of a network."""
        summed = {
            name: getattr(self, name) + getattr(other, name)
            for name in self.__dataclass_fields__
            if name != "largest"
        }
        return OverflowStats(**summed, largest=max(self.largest, other.largest))


def emulate(
    a: np.ndarray, w: np.ndarray, accumulator: str = "wrap", spill: int | None = None
) -> tuple[np.ndarray, OverflowStats]:
    """Product of 8-bit activations and 4-bit weights as the instruction computes it.

    Args:
        a: ``(M, K)`` int8 or uint8.
        w: ``(K, N)`` integers within -8 .. 7.
        accumulator: ``wrap`` (modulo 2**16), ``sat`` (clipped to 16 bits) or ``int32`` (exact, the yardstick).
        spill: Add the accumulators into 32 bits every so many k and start again at 0; a multiple of 8. None: once.

    Returns:
        ``(M, N)`` int32, and what the accumulators went through.

    Raises:
        ShapeError: ``a`` or ``w`` has another shape or dtype, K or N is 0, or they do not fit.
        OptionError: A weight lies outside 4 bits, or there is no such accumulator or spill distance.
    """
    left, right = _checked(a, w, accumulator, spill)
    blocks = left.shape[1] // DEPTH
    per_spill = blocks if spill is None else spill // DEPTH
    total = np.zeros((len(a), w.shape[1]), np.int64)
    held, window = np.zeros_like(total), np.zeros_like(total)
    ever, final = np.zeros(total.shape, bool), np.zeros(total.shape, bool)
    overflows = spills = largest = 0
    for block in range(blocks):
        at = slice(block * DEPTH, (block + 1) * DEPTH)
        added = (left[:, at] @ right[at]).astype(np.int64)
        exact = held + added
        window += added
        out = (exact < _LOW) | (exact > _HIGH)
        overflows += int(out.sum())
        ever |= out
        largest = max(largest, int(np.abs(exact).max(initial=0)))
        held = _kept(exact, accumulator)
        if (block + 1) % per_spill == 0 or block + 1 == blocks:
            total += held
            final |= (window < _LOW) | (window > _HIGH)
            spills += total.size
            held, window = np.zeros_like(total), np.zeros_like(total)
    found = total.astype(np.int32)
    exact_total = (left @ right).astype(np.int64).astype(np.int32)
    stats = OverflowStats(
        updates=blocks * found.size,
        overflows=overflows,
        outputs=found.size,
        any_overflow=int(ever.sum()),
        final_overflow=int(final.sum()),
        wrong=int((found != exact_total).sum()),
        spills=spills,
        largest=largest,
    )
    return found, stats


def safe_depth(a: np.ndarray | np.dtype | type, largest_weight: int = 8) -> int:
    """Number of products that can never leave 16 bits, rounded down to a multiple of 4.

    Args:
        a: Activations or their dtype, int8 or uint8.
        largest_weight: Largest magnitude of a weight, 1 .. 8.

    Returns:
        28 for int8 and 16 for uint8 by full 4-bit weights; 36 and 16 where weights stay within -7 .. 7.

    Raises:
        OptionError: There is no such dtype or magnitude.
    """
    dtype = np.dtype(a.dtype if isinstance(a, np.ndarray) else a)
    if dtype not in (np.int8, np.uint8):
        raise OptionError("a", dtype.name, "int8 or uint8")
    if not 1 <= largest_weight <= 8:
        raise OptionError("largest_weight", largest_weight, "a number within 1 .. 8")
    worst = (128 if dtype == np.int8 else 255) * largest_weight
    return _HIGH // worst // 4 * 4


def _kept(exact: np.ndarray, accumulator: str) -> np.ndarray:
    if accumulator == "wrap":
        return exact.astype(np.int16).astype(np.int64)
    return np.clip(exact, _LOW, _HIGH) if accumulator == "sat" else exact


def _checked(
    a: np.ndarray, w: np.ndarray, accumulator: str, spill: int | None
) -> tuple[np.ndarray, np.ndarray]:
    """Both operands as float64 (their sums are exact in it), K filled to a multiple of 8."""
    if not isinstance(a, np.ndarray) or a.ndim != 2 or a.dtype not in (np.int8, np.uint8):
        found = f"{a.dtype} {list(a.shape)}" if isinstance(a, np.ndarray) else type(a).__name__
        raise ShapeError(f"a is {found}, expected a matrix (M, K) of int8 or uint8")
    check_codes(w)
    if 0 in a.shape:
        raise ShapeError(f"a has the shape {list(a.shape)}, expected M >= 1 and K >= 1")
    if a.shape[1] != w.shape[0]:
        raise ShapeError(f"a has {a.shape[1]} columns, w has {w.shape[0]} rows: they must be equal")
    if accumulator not in ACCUMULATORS:
        raise OptionError("accumulator", accumulator, "one of " + ", ".join(ACCUMULATORS))
    if spill is not None and (isinstance(spill, bool) or spill < DEPTH or spill % DEPTH):
        raise OptionError("spill", spill, f"a multiple of {DEPTH}, or None")
    extra = -a.shape[1] % DEPTH
    left = np.pad(a.astype(np.float64), ((0, 0), (0, extra)))
    return left, np.pad(w.astype(np.float64), ((0, extra), (0, 0)))
