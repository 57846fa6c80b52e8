"""Sizes of a matrix-product accelerator: one description for its driver, its cycle model and its hardware."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.hardware.rtl.sizes import BUS_BYTES, REQUANTIZE_LATENCY

READ_LATENCY = (
    2  # cycles from an address to its operand at the array: the buffer, and a register close to the array
)
ROWS_PER_PARAMETERS = 4  # output channels whose biases, multipliers and shifts fill three words of the bus


@dataclass(frozen=True)
class Geometry:
    """Units side by side, each with ``rows`` x ``columns`` sums and ``depth`` products into each of them per cycle.

    A word of the input holds ``columns`` pixels by ``depth`` bytes, a step of the weights ``rows`` output channels by
    ``depth`` codes.

    Attributes:
        units: Units; each has weights of its own, the input goes to all of them.
        rows: Output channels of a unit.
        columns: Pixels.
        depth: Products into a sum per cycle.
        array_latency: Cycles from the last step at the array to the sums of row 0.
        weight_bits: Bits of a weight's code, 8 or 4.
        weight_words: Words of 128 bits that the weight buffer of a unit holds, in two halves.
        input_words: Words of 128 bits that the input buffer holds.
        channel_slots: Output channels of a unit whose parameters fit, in two halves.
        skew: Cycles between the first and the last finished sum of a row, which is read when all are; none of the next
            pass may be finished before.
    """

    units: int
    rows: int
    columns: int
    depth: int
    array_latency: int
    weight_bits: int = 8
    weight_words: int = 4096
    input_words: int = 8192
    channel_slots: int = 1024
    skew: int = 1

    @property
    def steps_per_word(self) -> int:
        """Steps of weights in a word of the bus."""
        return 8 * BUS_BYTES // (self.rows * self.depth * self.weight_bits)

    @property
    def rows_per_word(self) -> int:
        """Rows of results in a word of the bus."""
        return BUS_BYTES // self.columns

    @property
    def multipliers(self) -> int:
        """Products per cycle."""
        return self.units * self.rows * self.columns * self.depth

    @property
    def words_per_pass(self) -> int:
        """Words of results of one pass of all units."""
        return self.units * self.rows // self.rows_per_word

    def steps(self, depth: int) -> int:
        """Steps of a sum over ``depth`` products."""
        return -(-depth // self.depth)

    @property
    def latency(self) -> int:
        """Cycles from the last step of a pass being read to its last word on the bus."""
        return READ_LATENCY + self.array_latency + self.rows - 1 + REQUANTIZE_LATENCY + 1 + self.units - 1

    @property
    def leaving(self) -> int:
        """Cycles from the end of a tile to its weights and parameters being needed no more."""
        return READ_LATENCY + self.array_latency + self.rows

    def interval(self, steps: int) -> int:
        """Cycles from one pass to the next: what the array, the way back to bytes and the bus need at least."""
        return max(steps, self.rows, self.words_per_pass, self.skew)
