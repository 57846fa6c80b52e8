"""The block formats on their way to the accelerator: which words they become, and what the hardware must know of them.

The halves that scale a block stay with the host, which combines the integer sums in float32. What is left of a
super-block of 256 weights fills whole words of the bus: a plane of low bits, a plane of high bits, a word of scales and
minima, each with its bytes in the order in which ggml stores them.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass

import numpy as np

from dlas.hardware.rtl.sizes import BUS_BYTES

SUPER_BLOCK = 256
SUB_BLOCK = 16  # weights that one word of activations meets
INPUT_WORDS = 18  # of a super-block of activations: 16 of codes, 2 of their sums by sub-block


@dataclass(frozen=True)
class WireFormat:
    """One block format as the accelerator sees it.

    Attributes:
        name: ggml's word for it.
        number: Field of an instruction.
        low: First byte and number of words of the low bits.
        high: The same of the high bits; no words where a code has only low ones.
        scales: First byte and number of bytes of scales and minima.
        code_bits: Bits of a code as a signed number.
        minima: Whether minima are subtracted.
        period: Sub-blocks that one result sums.
        block_bytes: Bytes in which ggml stores 256 weights.
    """

    name: str
    number: int
    low: tuple[int, int]
    high: tuple[int, int]
    scales: tuple[int, int]
    code_bits: int
    minima: bool
    period: int
    block_bytes: int

    @property
    def words(self) -> int:
        """Words of a super-block on the bus."""
        return self.low[1] + self.high[1] + bool(self.scales[1])

    @property
    def results(self) -> int:
        """Results of a super-block."""
        return SUPER_BLOCK // SUB_BLOCK // self.period

    def pack(self, blocks: np.ndarray) -> np.ndarray:
        """``(..., KB * block bytes)`` uint8 to the words of each super-block, ``(..., KB, words, 16)`` uint8."""
        split = blocks.reshape(*blocks.shape[:-1], -1, self.block_bytes)
        if self.name == "Q8_0":  # eight blocks of 32, each behind its half
            codes = split.reshape(*split.shape[:-1], 8, 34)[..., 2:]
            return np.ascontiguousarray(codes).reshape(*split.shape[:-1], self.words, BUS_BYTES)
        words = np.zeros((*split.shape[:-1], self.words * BUS_BYTES), np.uint8)
        place = 0
        for start, count in (self.low, self.high):
            words[..., place : place + BUS_BYTES * count] = split[..., start : start + BUS_BYTES * count]
            place += BUS_BYTES * count
        start, count = self.scales
        words[..., place : place + count] = split[..., start : start + count]
        return words.reshape(*split.shape[:-1], self.words, BUS_BYTES)


WIRE_FORMATS: Mapping[str, WireFormat] = {
    kind.name: kind
    for kind in (
        WireFormat("Q2_K", 2, (16, 4), (0, 0), (0, 16), 3, True, 16, 84),
        WireFormat("Q3_K", 3, (32, 4), (0, 2), (96, 12), 3, False, 16, 110),
        WireFormat("Q4_K", 4, (16, 8), (0, 0), (4, 12), 5, True, 16, 144),
        WireFormat("Q5_K", 5, (48, 8), (16, 2), (4, 12), 6, True, 16, 176),
        WireFormat("Q6_K", 6, (0, 8), (128, 4), (192, 16), 6, False, 16, 210),
        WireFormat("Q8_0", 8, (0, 16), (0, 0), (0, 0), 8, False, 2, 272),
    )
}
