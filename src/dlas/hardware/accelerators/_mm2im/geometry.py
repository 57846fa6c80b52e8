"""Sizes of the accelerator of transposed convolutions: one description for driver, cycle model and hardware."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.hardware.rtl.sizes import BUS_BYTES, REQUANTIZE_LATENCY

ARRAY_LATENCY = 4  # cycles from the last step of a product being read to its sum being written
LEAVING = 4  # cycles from a group's last column being read to its weights and parameters being needed no more
DRAIN_LATENCY = 2 + REQUANTIZE_LATENCY + 1  # cycles from a column being read to its word on the bus
MOST_KERNEL = 16
MOST_STRIDE = 16
MOST_SIZE = 8191  # rows or columns of an input or output


@dataclass(frozen=True)
class Geometry:
    """Processing elements side by side; each multiplies ``uf`` channels of a pixel and adds up its own outputs.

    Attributes:
        pe_count: Processing elements, a power of two.
        uf: Products per element and cycle, along the input channels.
        weight_words: Words of 128 bits that the weight buffer of an element holds, in two halves.
        input_words: Words of 128 bits of the first input bank; the others, for neighbouring pixels, have a quarter.
        sum_words: 32-bit sums that an element holds.
    """

    pe_count: int = 8
    uf: int = 16
    weight_words: int = 4096
    input_words: int = 1024
    sum_words: int = 4096

    @property
    def steps_per_word(self) -> int:
        """Steps of a product in a word of the bus."""
        return BUS_BYTES // self.uf

    @property
    def columns_per_word(self) -> int:
        """Columns of results in a word of the bus, a byte of each for every element."""
        return BUS_BYTES // self.pe_count

    @property
    def multipliers(self) -> int:
        """Products per cycle."""
        return self.pe_count * self.uf

    def bank_words(self, bank: int) -> int:
        """Words of an input bank."""
        return self.input_words if bank == 0 else self.input_words // 4
