"""Sizes of the activation quantiser: one description for its driver, its cycle model and its hardware."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.hardware.rtl.sizes import BUS_BITS

LANES = 8  # values of 16 bits in a word of the bus
SYMBOLS = 8  # residues have at most 3 bits
ENCODER_LATENCY = 3  # cycles from eight residues to their joined codes
DEQUANTIZER_LATENCY = 2  # cycles from eight codes to eight values, before the register of the bus


@dataclass(frozen=True)
class Geometry:
    """What a unit is built for.

    Attributes:
        kept: Bits of every value that are stored as they are (n).
        residual: Bits below them, stored as Huffman codes (m).
        longest: Bits of the longest code.
        values: Values of the largest channel.
        decoders: Codes that are decoded per cycle.
    """

    kept: int
    residual: int
    longest: int
    values: int
    decoders: int

    @property
    def bits(self) -> int:
        """Bits of a quantised value."""
        return self.kept + self.residual

    @property
    def quantizer_latency(self) -> int:
        """Cycles from eight values to eight codes: magnitude, first comparison, a bit each, rounding."""
        return self.bits + 2

    def rows(self, count: int) -> int:
        """Words of values; the buffers hold eight values per row."""
        return -(-count // LANES)

    def high_words(self, count: int) -> int:
        """Words of kept bits; the last row of values is filled up."""
        return -(-self.rows(count) * LANES * self.kept // BUS_BITS)

    def most_words(self, count: int) -> int:
        """Words of a stored channel at most: kept bits, the table, residues without a code."""
        return self.high_words(count) + 1 + -(-count * self.residual // BUS_BITS)
