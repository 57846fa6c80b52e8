"""Sets of levels that numbers are rounded to, each level with a code of a few bits.

One class carries every quantiser of weights and activations: uniform, powers of two and their sums, ternary, binary
(the constructors stand in ``grids.py``). A level is an integer over the largest one, so that a value is
``scale * integer / largest`` and the same codes serve a multiplier, a shifter and a table.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property
from typing import Literal

import numpy as np

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.arrays import axis_of

Rounding = Literal["linear", "log"]
Alpha = Literal["max", "mse"]

_SHRINKS = np.arange(100, 29, -1) / 100.0  # of the largest value, tried by alpha="mse"
_CHUNK = 1 << 20  # values per piece of that search
CHANNELS, DEPTH = 4, 16  # what packed weights are filled up to, as shift accelerators read them


@dataclass(frozen=True, eq=False)
class Grid:
    """Levels with their codes.

    Attributes:
        name: As the constructor is called.
        bits: Bits of a code.
        magnitudes: Absolute values of the levels as integers, ascending, without repetition: ``(n,) int64``.
        table: Integer that each code stands for, ``(2**bits,) int64``; a level may have several codes, of which the
            lowest is written.
        signed: Whether each magnitude is there with both signs.
        rounding: ``linear``: the nearest level. ``log``: the nearest logarithm, for levels without zero.
        terms: Shifts of each code without its sign bit, whose powers of two add up to the magnitude; empty where
            products are no sums of a few shifts.
    """

    name: str
    bits: int
    magnitudes: np.ndarray
    table: np.ndarray
    signed: bool = True
    rounding: Rounding = "linear"
    terms: tuple[tuple[int, ...], ...] = ()

    def __repr__(self) -> str:
        return f"<{self.name}: {len(self.levels)} levels in {self.bits} bits>"

    @property
    def top(self) -> int:
        """The integer of the largest level."""
        return int(self.magnitudes[-1])

    @property
    def has_zero(self) -> bool:
        """Whether 0 is a level."""
        return bool(self.magnitudes[0] == 0)

    @cached_property
    def integers(self) -> np.ndarray:
        """Every level as an integer, ascending, ``(levels,) int64``."""
        return (
            np.unique(np.concatenate([-self.magnitudes, self.magnitudes])) if self.signed else self.magnitudes
        )

    @property
    def levels(self) -> np.ndarray:
        """Every level on the axis where the largest is 1, ascending, ``(levels,) float64``."""
        return self.integers / self.top

    @property
    def int8_levels(self) -> np.ndarray:
        """Every level times 127, halves rounded away from zero: how 8-bit networks hold them, ``(levels,) int8``."""
        return (np.sign(self.integers) * np.floor(np.abs(self.levels) * 127 + 0.5)).astype(np.int8)

    @cached_property
    def boundaries(self) -> np.ndarray:
        """Between which magnitudes (largest 1) rounding changes, ``(n - 1,) float64``."""
        m = self.magnitudes / self.top
        return np.sqrt(m[1:] * m[:-1]) if self.rounding == "log" else (m[1:] + m[:-1]) / 2

    @cached_property
    def _codes(self) -> np.ndarray:
        """Code of every level, ``(levels,) uint8``."""
        return np.array([int(np.argmax(self.table == i)) for i in self.integers], np.uint8)

    def round(self, x: np.ndarray) -> np.ndarray:
        """Nearest level of each value as an integer; between two as near the one of larger magnitude.

        Args:
            x: ``(...)`` floats on the axis where the largest level is 1; beyond it they saturate. 0 becomes the
                smallest positive level of a grid without zero.

        Returns:
            ``(...) int64``.
        """
        found = self.magnitudes[np.searchsorted(self.boundaries, np.abs(x), side="right")]
        return np.where(x < 0, -found if self.signed else self.magnitudes[0], found)

    def project(
        self, x: np.ndarray, scale: np.ndarray | float = 1.0, axis: int | None = None
    ) -> tuple[np.ndarray, np.ndarray]:
        """Codes ``(...) uint8`` and the values they stand for ``(...) float32``.

        Args:
            x: ``(...)`` floats.
            scale: Value of the largest level: one, or ``(x.shape[axis],)``.
            axis: Axis the scales belong to; None for one scale.

        Raises:
            ShapeError: ``x`` is no array of floats, or the scales do not fit.
            OptionError: ``x`` or a scale is not finite, or a scale is negative.
        """
        check_floats(x)
        codes = self.encode(self.round(x.astype(np.float64) / _positive(scale, x.shape, axis)))
        return codes, self.decode(codes, scale, axis)

    def encode(self, integers: np.ndarray) -> np.ndarray:
        """Code of each integer level, uint8.

        Raises:
            OptionError: One is no level.
        """
        values = np.asarray(integers)
        places = np.minimum(np.searchsorted(self.integers, values), len(self.integers) - 1)
        wrong = values[self.integers[places] != values]
        if wrong.size:
            raise OptionError("value", int(wrong.reshape(-1)[0]), f"one of {self.integers.tolist()}")
        return self._codes[places]

    def decode_integers(self, codes: np.ndarray) -> np.ndarray:
        """Integer of each code: int8, or int16 where the grid goes beyond it.

        Raises:
            ShapeError: ``codes`` is no uint8.
            OptionError: A code has more than the grid's bits.
        """
        if not isinstance(codes, np.ndarray) or codes.dtype != np.uint8:
            raise ShapeError(f"codes are {getattr(codes, 'dtype', type(codes).__name__)}, expected uint8")
        if codes.size and codes.max() >= len(self.table):
            last = len(self.table) - 1
            raise OptionError("codes", int(codes.max()), f"{self.bits}-bit codes, 0 .. {last}")
        return self.integer_table[codes]

    @cached_property
    def integer_table(self) -> np.ndarray:
        """The table in the narrowest dtype that holds it, int8 or int16 (int32 beyond)."""
        fitting = (
            t for t in (np.int8, np.int16, np.int32) if np.array_equal(self.table.astype(t), self.table)
        )
        return self.table.astype(next(fitting))

    def decode(
        self, codes: np.ndarray, scale: np.ndarray | float = 1.0, axis: int | None = None
    ) -> np.ndarray:
        """Values of codes, ``(...) float32``; ``scale`` and ``axis`` as in :meth:`project`."""
        integers = self.decode_integers(codes)
        unit = _spread(np.asarray(scale, np.float32), codes.shape, axis) / np.float32(self.top)
        return integers.astype(np.float32) * unit

    def scales_of(self, x: np.ndarray, axis: int | None = None, alpha: Alpha = "max") -> np.ndarray:
        """Scale of each slice along ``axis``: its largest magnitude, or what gives the least squared error.

        Returns:
            ``(x.shape[axis],)`` or ``()``, float32; 1 for a slice that is all zero.

        Raises:
            ShapeError: ``x`` is no array of floats, or has no such axis.
            OptionError: It holds NaN or an infinity.
        """
        check_floats(x)
        rows = x.reshape(1, -1) if axis is None else np.moveaxis(x, axis_of(axis, x.ndim), 0)
        rows = rows.reshape(len(rows), -1).astype(np.float64)
        largest = np.abs(rows).max(axis=1, initial=0.0)
        scale = np.where(largest > 0, largest, 1.0)
        if alpha == "mse":
            scale = scale * self._best_shrink(rows / scale[:, None])
        return scale.astype(np.float32).reshape(() if axis is None else (-1,))

    def _best_shrink(self, rows: np.ndarray) -> np.ndarray:
        """Factor of each row's largest value, 1 here, with the least squared error, ``(rows,) float64``."""
        best, least = np.ones(len(rows)), np.full(len(rows), np.inf)
        step = max(1, _CHUNK // max(rows.shape[1], 1))
        for start in range(0, len(rows), step):
            part, place = rows[start : start + step], slice(start, start + step)
            for factor in _SHRINKS:
                error = np.square(self.round(part / factor) * (factor / self.top) - part).sum(axis=1)
                better = error < least[place]
                best[place] = np.where(better, factor, best[place])
                least[place] = np.where(better, error, least[place])
        return best

    def pack(self, codes: np.ndarray) -> np.ndarray:
        """Codes of a matrix in 32-bit words, the first code in the lowest bits.

        Args:
            codes: ``(channels, depth) uint8``.

        Returns:
            ``(channels', words) uint32``: channels filled up to a multiple of 4, depth to one of 16 (32 for an odd
            number of bits). Added codes are those of 0; where 0 is no level they are 0000, the smallest positive
            level, which does no harm because the activations that meet it are padded with zeros.

        Raises:
            ShapeError: ``codes`` is no matrix of uint8.
            OptionError: A code has more than the grid's bits.
        """
        self.decode_integers(codes)
        if codes.ndim != 2:
            raise ShapeError(f"codes have the shape {list(codes.shape)}, expected (channels, depth)")
        filler = int(self.encode(np.array(0))) if self.has_zero else 0
        deep = DEPTH if self.bits % 2 == 0 else 2 * DEPTH
        padding = ((0, -codes.shape[0] % CHANNELS), (0, -codes.shape[1] % deep))
        filled = np.pad(codes, padding, constant_values=filler)
        bits = np.unpackbits(filled[..., None], axis=-1, count=self.bits, bitorder="little")
        packed = np.packbits(bits.reshape(len(filled), -1), axis=1, bitorder="little")
        return packed.view("<u4").astype(np.uint32)

    def unpack(self, words: np.ndarray, channels: int, depth: int) -> np.ndarray:
        """Inverse of :meth:`pack`: ``(channels, depth) uint8``.

        Raises:
            ShapeError: ``words`` is no matrix of uint32, or holds fewer codes.
        """
        if not isinstance(words, np.ndarray) or words.dtype != np.uint32 or words.ndim != 2:
            raise ShapeError(
                f"words are {getattr(words, 'dtype', type(words).__name__)}, expected uint32 (n, w)"
            )
        there = words.shape[1] * 32 // self.bits
        if words.shape[0] < channels or there < depth:
            raise ShapeError(f"{words.shape[0]} x {there} codes are packed, expected {channels} x {depth}")
        data = np.ascontiguousarray(words.astype("<u4")).view(np.uint8)
        bits = np.unpackbits(data, axis=1, bitorder="little")[:, : there * self.bits]
        shifts = (1 << np.arange(self.bits)).astype(np.uint8)
        codes = (bits.reshape(len(words), there, self.bits) * shifts).sum(axis=-1, dtype=np.uint8)
        return codes[:channels, :depth]


def check_floats(x: object) -> None:
    """Raise ShapeError unless ``x`` is an array of floats, OptionError unless all are finite."""
    if not isinstance(x, np.ndarray) or x.dtype.kind != "f":
        raise ShapeError(f"w is {getattr(x, 'dtype', type(x).__name__)}, expected float32")
    if not np.isfinite(x).all():
        raise OptionError("w", "NaN or infinity", "finite weights")


def _positive(scale: np.ndarray | float, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    factors = np.asarray(scale, np.float64)
    if not (np.isfinite(factors).all() and (factors > 0).all()):
        raise OptionError("scale", "a value that is not positive and finite", "positive numbers")
    return _spread(factors, shape, axis)


def _spread(factors: np.ndarray, shape: tuple[int, ...], axis: int | None) -> np.ndarray:
    """Scales in a shape that multiplies an array of ``shape``."""
    if axis is None:
        if factors.size != 1:
            raise ShapeError(f"{factors.size} scales without an axis, expected 1")
        return factors.reshape(())
    place = axis_of(axis, len(shape))
    if factors.shape != (shape[place],):
        raise ShapeError(f"scale has the shape {list(factors.shape)}, expected [{shape[place]}]")
    spread = [1] * len(shape)
    spread[place] = -1
    return factors.reshape(spread)
