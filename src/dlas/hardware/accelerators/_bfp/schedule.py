"""A product cut into what the accelerator takes at a time, and how many cycles that takes.

Sums of super-blocks go back to the host one by one, so a product may be cut anywhere: activations are cut to the input
buffer, first by rows, then along k. The cycle model is exact; a test holds it equal to the simulated RTL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dlas.hardware.accelerators._bfp.formats import INPUT_WORDS, SUPER_BLOCK, WireFormat
from dlas.hardware.accelerators._bfp.geometry import LATENCY, Geometry
from dlas.hardware.rtl.sizes import BUS_BYTES


@dataclass(frozen=True)
class Tile:
    """Activations that are resident together: rows ``first`` .. by super-blocks ``block`` .. of each."""

    first: int
    rows: int
    block: int
    blocks: int


@dataclass(frozen=True)
class Schedule:
    """How ``(N, K)`` activations by ``(M, K)`` weights is cut.

    Attributes:
        geometry: Of the accelerator.
        wire: Format of the weights.
        outputs: M, rows of weights.
        blocks: Super-blocks of a row, K / 256.
        inputs: N, rows of activations.
    """

    geometry: Geometry
    wire: WireFormat
    outputs: int
    blocks: int
    inputs: int

    @property
    def row_groups(self) -> int:
        """Groups of rows of weights."""
        return -(-self.outputs // self.geometry.rows)

    def tiles(self) -> Iterator[Tile]:
        """What is resident in turn; all weights of these super-blocks follow."""
        most = self.geometry.input_blocks
        blocks = min(self.blocks, most)
        rows = most // blocks
        for first in range(0, self.inputs, rows):
            for block in range(0, self.blocks, blocks):
                yield Tile(first, min(rows, self.inputs - first), block, min(blocks, self.blocks - block))

    def slots(self, tile: Tile) -> int:
        """Groups of super-blocks that a tile meets."""
        return self.row_groups * tile.blocks

    def result_words(self, tile: Tile) -> int:
        """Words that come back for a tile."""
        words = self.wire.results * self.geometry.result_words(self.wire)
        return self.slots(tile) * tile.rows * words

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the product itself, without padding."""
        return self.outputs * self.blocks * SUPER_BLOCK * self.inputs

    @property
    def weight_cycles(self) -> int:
        """Words of weights: what the bus needs at least, once per tile of rows."""
        return self._slot_words * sum(self.slots(tile) for tile in self.tiles())

    @property
    def compute_cycles(self) -> int:
        """Cycles in which the datapath works: what it needs at least."""
        return self.geometry.steps * sum(self.slots(tile) * tile.rows for tile in self.tiles())

    @property
    def bytes_in(self) -> int:
        """Bytes that the host sends, headers included."""
        sent = sum(2 + INPUT_WORDS * tile.rows * tile.blocks for tile in self.tiles())
        return BUS_BYTES * (sent + self.weight_cycles)

    @property
    def _slot_words(self) -> int:
        return self.geometry.rows * self.wire.words

    def cycles(self) -> dict[str, int]:
        """Every counter of the hardware, for a host that never hesitates."""
        followed = list(self._followed())
        return {
            "total": followed[-1].computed + LATENCY + self.geometry.result_words(self.wire),
            "load_weights": self.weight_cycles,
            "load_inputs": sum(INPUT_WORDS * tile.rows * tile.blocks for tile in self.tiles()),
            "load_wait": sum(events.waited for events in followed),
            "compute": self.compute_cycles,
            "store": sum(map(self.result_words, self.tiles())),
        }

    def spans(self) -> list[tuple[str, str, int, int]]:
        """What each unit does when: unit, state, first cycle, last cycle; per tile."""
        first_result = self.wire.period // self.geometry.groups - 1 + LATENCY
        found = []
        for events in self._followed():
            found += [
                ("loader", "inputs", events.begun, events.inputs),
                ("loader", "weights", events.inputs + 1, events.weights),
                ("datapath", "compute", events.first, events.computed),
                (
                    "results",
                    "store",
                    events.first + first_result,
                    events.computed + LATENCY + self.geometry.result_words(self.wire) - 1,
                ),
            ]
        return found

    def _followed(self) -> Iterator[_Events]:
        """Loader and sequencer, tile by tile."""
        g, load = self.geometry, self._slot_words
        clock = 0  # the cycle in which the loader takes its next word
        computed = -1  # the latest cycle in which the datapath is given something
        for tile in self.tiles():
            slots, compute = self.slots(tile), tile.rows * g.steps
            begun = max(clock, computed + 1)
            waited = begun - clock
            inputs = begun + INPUT_WORDS * tile.rows * tile.blocks
            clock = inputs + 2 + slots * load
            first = inputs + 2 + load
            computed = first - 1 + compute + (slots - 1) * max(load, compute)
            if compute > load and slots > g.slots:  # the last slot waits for the one whose place it takes
                freed = computed - g.slots * compute + 1
                waited += max(0, freed + load - clock)
                clock = max(clock, freed + load)
            yield _Events(begun, inputs, clock - 1, first, computed, waited)


@dataclass(frozen=True)
class _Events:
    """Cycles of one tile: it begins, its last inputs and weights are taken, its first and last step; and waits."""

    begun: int
    inputs: int
    weights: int
    first: int
    computed: int
    waited: int
