"""A matrix product cut into what an accelerator takes at a time, and how many cycles that takes.

The cycle model follows loader and sequencer of the hardware event by event, tile by tile; a test holds it equal to the
simulated RTL.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

from dlas.hardware.accelerator import DoesNotFitError
from dlas.hardware.accelerators._gemm.geometry import ROWS_PER_PARAMETERS, Geometry
from dlas.hardware.rtl.sizes import BUS_BYTES

_PARAMETER_BYTES = 3 * BUS_BYTES // ROWS_PER_PARAMETERS  # of an output channel


@dataclass(frozen=True)
class Schedule:
    """How ``(pixels, depth) x (depth, channels)`` is cut.

    Attributes:
        geometry: Of the accelerator.
        pixels: Rows of the left matrix.
        depth: Length of each sum.
        channels: Columns of the right matrix: output channels.
    """

    geometry: Geometry
    pixels: int
    depth: int
    channels: int

    def __post_init__(self) -> None:
        g, half = self.geometry, self.geometry.weight_words // 2
        if self.words > half:
            raise DoesNotFitError("weight buffer", 32 * self.words, 16 * g.weight_words)
        if self.steps > g.input_words:
            raise DoesNotFitError("input buffer", 16 * self.steps, 16 * g.input_words)

    @property
    def steps(self) -> int:
        """Cycles of a pass."""
        return self.geometry.steps(self.depth)

    @property
    def interval(self) -> int:
        """Cycles from pass to pass."""
        return self.geometry.interval(self.steps)

    @property
    def words(self) -> int:
        """Words of weights of a block in a unit."""
        return -(-self.steps // self.geometry.steps_per_word)

    @property
    def tiles(self) -> int:
        """Tiles of pixels."""
        return -(-self.pixels // self.geometry.columns)

    @property
    def slots(self) -> int:
        """Tiles that the input buffer holds."""
        return min(self.geometry.input_words // self.steps, 65535)

    @property
    def blocks(self) -> int:
        """Blocks of output channels, each as wide as all units."""
        return -(-self.channels // (self.geometry.units * self.geometry.rows))

    @property
    def groups(self) -> list[int]:
        """Blocks that are resident together, in turn; each group sees all pixels once."""
        g = self.geometry
        most = min(g.weight_words // 2 // self.words, g.channel_slots // 2 // g.rows)
        return [min(most, self.blocks - first) for first in range(0, self.blocks, most)]

    def group_words(self, blocks: int) -> int:
        """Words of weights and parameters of a group."""
        g = self.geometry
        return blocks * g.units * (self.words + 3 * g.rows // ROWS_PER_PARAMETERS)

    @property
    def input_words(self) -> int:
        """Words of pixels that are sent, once per group."""
        return len(self.groups) * self.tiles * self.steps

    @property
    def result_words(self) -> int:
        """Words that come back."""
        return self.tiles * self.blocks * self.geometry.words_per_pass

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the product itself, without padding."""
        return self.pixels * self.depth * self.channels

    def cycles(self) -> dict[str, int]:
        """Every counter of the hardware, for a host that never hesitates."""
        groups = list(self._followed())
        last_step = groups[-1].computed - (self.interval - self.steps)
        passes = self.tiles * self.blocks
        return {
            "total": last_step + self.geometry.latency + 1,
            "load_weights": sum(map(self.group_words, self.groups)),
            "load_inputs": self.input_words,
            "load_wait": sum(group.waited for group in groups),
            "compute": passes * self.steps,
            "post": passes * self.geometry.rows,
            "store": self.result_words,
        }

    def spans(self) -> list[tuple[str, str, int, int]]:
        """What each unit does when: unit, state, first cycle, last cycle; one span per group of blocks."""
        found = []
        for group in self._followed():
            found += [
                ("loader", "weights", group.begun, group.weights - 1),
                ("loader", "inputs", group.weights, group.inputs - 1),
                ("array", "compute", group.first, group.computed),
                ("results", "post", group.first + self.steps, group.computed + self.geometry.latency),
            ]
        return found

    def buffers(self) -> dict[str, tuple[int, int]]:
        """Bytes in use and bytes there are: weights of all units in both halves, and tiles of pixels."""
        g, resident = self.geometry, sum(self.groups[:2])
        tiles = min(self.tiles, self.slots)
        return {
            "weights": (BUS_BYTES * g.units * resident * self.words, BUS_BYTES * g.units * g.weight_words),
            "inputs": (BUS_BYTES * tiles * self.steps, BUS_BYTES * g.input_words),
            "parameters": (
                _PARAMETER_BYTES * g.units * resident * g.rows,
                _PARAMETER_BYTES * g.units * g.channel_slots,
            ),
        }

    def _followed(self) -> Iterator[_Group]:
        """Loader and sequencer, event by event."""
        clock = 1  # the cycle in which the loader takes its next word; the first one configures
        ends: list[int] = []  # last cycle of every tile
        group_ends: list[int] = []
        end = 0
        for number, blocks in enumerate(self.groups):
            begun, waited = clock, 0
            free = group_ends[number - 2] + self.geometry.leaving + 1 if number >= 2 else 0
            waited += max(0, free - clock)
            clock = weights = max(clock, free) + 1 + self.group_words(blocks) + 1
            first = max(end, clock + self.steps - 1) + 1
            for _ in range(self.tiles):
                free = ends[len(ends) - self.slots] + 1 if len(ends) >= self.slots else 0
                waited += max(0, free - clock)
                clock = max(clock, free) + self.steps
                end = max(end, clock - 1) + blocks * self.interval
                ends.append(end)
            group_ends.append(end)
            yield _Group(begun, weights, clock, first, end, waited)


@dataclass(frozen=True)
class _Group:
    """Cycles of one group: its section begins, its weights are there, its pixels are; its first and last step."""

    begun: int
    weights: int
    inputs: int
    first: int
    computed: int
    waited: int
