"""What the activation quantiser computes, in NumPy: a channel of int16 values to its stored form and back.

With ``S = 2**(n + m - 1)`` and the peak ``M`` (the largest magnitude, at least 1), a value becomes
``q = clamp(ceil(x * S / M - 1/2), -S, S - 1)``: the exact quotient, rounded as the published unit does, ``round(v) =
ceil(v - 0.5)``. (:mod:`dlas.kernels.formats.dqa` rounds halves to even instead.) Nothing is approximated: the hardware
divides bit by bit, with shifts and subtractions. ``q >> m`` is stored as it is, ``q & (2**m - 1)`` as a Huffman code.
Back comes ``y = ceil(M * q / S - 1/2)`` (int16), of ``q = ((q >> m) << m) + residue``. The published experiment
reconstructs with ``M / 2**(n + m - 4) * (high + residue)`` instead, which is no inverse (its inputs 0 .. 6 come back as
0, 7.5, 6, 3, 10.5, 9, 15) and is not built here.

Tables and payloads are those of :mod:`dlas.kernels.formats.huffman`. A table whose longest code is too long is made
anew from halved counts (each rounded up), until it fits. Residues that a code would not shorten are stored without one:
all lengths of the table are 0.
"""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.errors import DataError
from dlas.hardware.accelerators._dqa.geometry import LANES, Geometry
from dlas.hardware.rtl.sizes import BUS_BITS
from dlas.kernels.formats import huffman

_TABLE_BITS, _PEAK_BITS, _LENGTH_BITS = 24, 16, 32


@dataclass(frozen=True, eq=False)
class Stored:
    """A channel as it is stored.

    Attributes:
        count: Values.
        peak: Largest magnitude, at least 1.
        lengths: ``(8,) uint8``: the code table; all 0 for residues without a code.
        high: Kept bits, ``(words, 2) uint64``.
        payload: Codes of the residues, ``(words, 2) uint64``.
        payload_bits: Bits of the payload: the sum of the code lengths.
    """

    count: int
    peak: int
    lengths: np.ndarray
    high: np.ndarray
    payload: np.ndarray
    payload_bits: int

    def bits(self, kept: int) -> int:
        """Bits that are stored, side information included, filling left out."""
        return self.count * kept + self.payload_bits + self.side_bits

    @property
    def side_bits(self) -> int:
        """Bits beside values: the code table, the peak, the length of the payload."""
        return _TABLE_BITS + _PEAK_BITS + _LENGTH_BITS

    @property
    def packed_lengths(self) -> int:
        """The code table in 24 bits, the first length lowest."""
        return sum(int(length) << 3 * s for s, length in enumerate(self.lengths))

    def words(self) -> np.ndarray:
        """As on the bus, ``(W, 2) uint64``: kept bits, table, payload."""
        whole = (
            self.packed_lengths | self.peak << _TABLE_BITS | self.payload_bits << (_TABLE_BITS + _PEAK_BITS)
        )
        table = np.array([[whole & (2**64 - 1), whole >> 64]], np.uint64)
        return np.concatenate([self.high, table, self.payload])

    @classmethod
    def of_words(cls, words: np.ndarray, count: int, geometry: Geometry) -> Stored:
        """Inverse of :meth:`words`; words behind the payload are left out.

        Raises:
            DataError: Too few words, or a table, peak or length that no channel has.
        """
        first = geometry.high_words(count)
        if len(words) <= first:
            raise DataError(f"{len(words)} words for {count} values", "the stream is truncated")
        whole = int(words[first, 0]) | int(words[first, 1]) << 64
        lengths = huffman.checked_lengths(np.array([whole >> 3 * s & 7 for s in range(huffman.SYMBOLS)]))
        peak = whole >> _TABLE_BITS & 0xFFFF
        size = whole >> (_TABLE_BITS + _PEAK_BITS) & 0xFFFF_FFFF
        end = first + 1 + -(-size // BUS_BITS)
        if not 1 <= peak <= 1 << 15 or size > count * geometry.residual or end > len(words):
            raise DataError(f"a channel of peak {peak} with {size} bits of codes", "the stream is damaged")
        if lengths.max() > geometry.longest or lengths[1 << geometry.residual :].any():
            raise DataError(f"code lengths {lengths.tolist()}, not made by this unit", "the same options")
        return cls(count, peak, lengths, words[:first].copy(), words[first + 1 : end].copy(), size)


def quantize(values: np.ndarray, bits: int) -> tuple[np.ndarray, int]:
    """Codes ``(V,) int32`` of ``bits`` bits of a channel ``(V,) int16``, and its peak."""
    wide, scale = values.astype(np.int64), 1 << (bits - 1)
    peak = max(int(np.abs(wide).max(initial=0)), 1)
    codes = -((peak - 2 * scale * wide) // (2 * peak))
    return np.clip(codes, -scale, scale - 1).astype(np.int32), peak


def dequantize(codes: np.ndarray, peak: int, bits: int) -> np.ndarray:
    """Values ``(V,) int16`` of codes."""
    half = 1 << (bits - 2)
    return ((codes.astype(np.int64) * peak + half - 1) >> (bits - 1)).astype(np.int16)


def code_table(counts: np.ndarray, longest: int) -> tuple[np.ndarray, int]:
    """Code lengths ``(8,) uint8`` of at most ``longest`` bits, and how often the table was made."""
    weights = counts.astype(np.int64)
    for attempts in range(1, 64):
        lengths = huffman.code_lengths(weights)
        if lengths.max() <= longest:
            return lengths, attempts
        weights = (weights + 1) >> 1
    raise AssertionError("8 equal counts need 3 bits")


def residue_counts(codes: np.ndarray, residual: int) -> np.ndarray:
    """How often each residue occurs, ``(8,) int64``."""
    return np.bincount(codes & ((1 << residual) - 1), minlength=huffman.SYMBOLS)


def encode(codes: np.ndarray, peak: int, geometry: Geometry) -> Stored:
    """Codes ``(V,) int32`` as they are stored."""
    g, count = geometry, len(codes)
    filled = np.zeros(g.rows(count) * LANES, np.int32)
    filled[:count] = codes >> g.residual
    high = ((filled[:, None] >> np.arange(g.kept)) & 1).astype(np.uint8).reshape(-1)
    residues = codes & ((1 << g.residual) - 1)
    counts = residue_counts(codes, g.residual)
    lengths, _ = code_table(counts, g.longest)
    if huffman.payload_bits(counts, lengths) < count * g.residual:
        payload = huffman.encode(residues, lengths)
    else:
        lengths, payload = np.zeros(huffman.SYMBOLS, np.uint8), huffman.encode(residues, plain_lengths(g))
    return Stored(count, peak, lengths, _words(high), _words(payload), len(payload))


def decode(stored: Stored, geometry: Geometry) -> np.ndarray:
    """The codes ``(V,) int32`` of a stored channel.

    Raises:
        DataError: The payload does not end where it says.
    """
    g = geometry
    lengths = stored.lengths if stored.lengths.any() else plain_lengths(g)
    payload = np.unpackbits(stored.payload.view(np.uint8).reshape(-1), bitorder="little")
    residues, used = huffman.decode(payload[: stored.payload_bits], lengths, stored.count)
    if used != stored.payload_bits:
        raise DataError(
            f"the codes take {used} bits, {stored.payload_bits} are said", "the stream is damaged"
        )
    bits = np.unpackbits(stored.high.view(np.uint8).reshape(-1), bitorder="little")
    kept = bits[: stored.count * g.kept].reshape(-1, g.kept).astype(np.int32)
    high = kept @ (1 << np.arange(g.kept, dtype=np.int32))
    high -= (kept[:, -1] << g.kept).astype(np.int32)
    return (high << g.residual) | residues


def plain_lengths(geometry: Geometry) -> np.ndarray:
    """The table that stands for no code: every residue in as many bits as it has."""
    lengths = np.zeros(huffman.SYMBOLS, np.uint8)
    lengths[: 1 << geometry.residual] = geometry.residual
    return lengths


def _words(bits: np.ndarray) -> np.ndarray:
    """Bits to words, ``(W, 2) uint64``, the first lowest, filled up with zeros."""
    filled = np.zeros(-(-len(bits) // BUS_BITS) * BUS_BITS, np.uint8)
    filled[: len(bits)] = bits
    return np.packbits(filled, bitorder="little").view(np.uint64).reshape(-1, 2)
