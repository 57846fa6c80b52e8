"""Sizes of the block floating-point accelerator: one description for driver, cycle model and hardware."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.hardware.accelerators._bfp.formats import SUB_BLOCK, SUPER_BLOCK, WIRE_FORMATS, WireFormat

LATENCY = 7  # cycles from a step being read to the first word of its result on the bus


@dataclass(frozen=True)
class Geometry:
    """``rows`` rows of weights side by side, each multiplying ``lanes`` codes per cycle with the same activations.

    Attributes:
        lanes: Products per row and cycle, 16 or 32.
        rows: Rows of weights.
        slots: Groups of ``rows`` super-blocks that the weight buffer holds.
        input_blocks: Super-blocks of activations that the input buffer holds.
        formats: Block formats that are built.
    """

    lanes: int
    rows: int
    slots: int
    input_blocks: int
    formats: tuple[str, ...]

    @property
    def wires(self) -> tuple[WireFormat, ...]:
        """The formats that are built."""
        return tuple(WIRE_FORMATS[name] for name in self.formats)

    @property
    def groups(self) -> int:
        """Sub-blocks per cycle."""
        return self.lanes // SUB_BLOCK

    @property
    def steps(self) -> int:
        """Cycles of a pass: of a group of super-blocks by one super-block of activations."""
        return SUPER_BLOCK // self.lanes

    @property
    def multipliers(self) -> int:
        """Products per cycle."""
        return self.lanes * self.rows

    @property
    def low_words(self) -> int:
        """Words of low bits that a super-block takes in the weight buffer."""
        return max(wire.low[1] for wire in self.wires)

    @property
    def high_words(self) -> int:
        """Words of high bits that a super-block takes in the weight buffer."""
        return max(wire.high[1] for wire in self.wires)

    @property
    def code_bits(self) -> int:
        """Bits of a code that every format fits in."""
        return max(wire.code_bits for wire in self.wires)

    @property
    def has_minima(self) -> bool:
        """Whether a format that is built has minima."""
        return any(wire.minima for wire in self.wires)

    @property
    def has_scales(self) -> bool:
        """Whether a format that is built has integer scales."""
        return any(wire.scales[1] for wire in self.wires)

    def result_words(self, wire: WireFormat) -> int:
        """Words of one result: a sum per row, and beside it the minima where there are any."""
        return -(-self.rows * (2 if wire.minima else 1) // 4)
