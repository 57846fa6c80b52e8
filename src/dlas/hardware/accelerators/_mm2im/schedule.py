"""A transposed convolution cut into what the accelerator takes at a time, and how many cycles that takes.

The cycle model follows loader, mapper and drain of the hardware event by event, position by position; a test holds it
equal to the simulated RTL.
"""

from __future__ import annotations

from dataclasses import dataclass
from functools import cached_property

import numpy as np

from dlas.hardware.accelerator import DoesNotFitError
from dlas.hardware.accelerators._mm2im.geometry import ARRAY_LATENCY, DRAIN_LATENCY, LEAVING, Geometry
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.kernels.kernel import Node

HEADERS = 4  # words that configure a run
_MOST_SLOTS, _MOST_RING = 65535, 255


@dataclass(frozen=True)
class Shape:
    """A transposed convolution; pairs are vertical, horizontal.

    Attributes:
        images: Batch.
        inputs: Rows and columns of the input.
        depth: Input channels.
        channels: Output channels.
        kernel: Rows and columns.
        strides: Distance of neighbouring inputs in the output.
        begins: Rows and columns that are cropped at the top and at the left.
        outputs: Rows and columns of the output.
    """

    images: int
    inputs: tuple[int, int]
    depth: int
    channels: int
    kernel: tuple[int, int]
    strides: tuple[int, int]
    begins: tuple[int, int]
    outputs: tuple[int, int]

    @classmethod
    def of(cls, node: Node) -> Shape:
        """That of a ``QConvTranspose``."""
        (images, depth, *inputs), a = node.operand(0).shape, node.attributes
        (height, width), outputs = inputs, node.output.shape[2:]
        (kh, kw), (sh, sw), (top, left) = a["kernel_shape"], a["strides"], a["pads"][:2]
        channels = node.output.shape[1]
        return cls(
            images,
            (height, width),
            depth,
            channels,
            (kh, kw),
            (sh, sw),
            (top, left),
            (outputs[0], outputs[1]),
        )

    @classmethod
    def same(cls, channels: int, kernel: int, size: int, depth: int, stride: int) -> Shape:
        """A square layer with the padding ``SAME``, as the literature lists them."""
        out = size * stride
        begin = max((size - 1) * stride + kernel - out, 0) // 2
        square = ((kernel, kernel), (stride, stride), (begin, begin), (out, out))
        return cls(1, (size, size), depth, channels, *square)

    def reached(self, axis: int, spread: int = 1) -> np.ndarray:
        """Taps along one axis that bring each run of ``spread`` neighbouring inputs into the output, ``(runs,)``."""
        hop, begin = self.strides[axis] * spread, self.begins[axis]
        first = np.arange(-(-self.inputs[axis] // spread)) * hop - begin
        last = first + hop - self.strides[axis]
        low = np.maximum(0, -last)
        high = np.minimum(self.kernel[axis] - 1, self.outputs[axis] - 1 - first)
        return np.maximum(0, high - low + 1)

    @property
    def taps(self) -> int:
        """Pairs of an input pixel and a tap, cropped ones included."""
        return self.images * self.inputs[0] * self.inputs[1] * self.kernel[0] * self.kernel[1]

    @property
    def kept(self) -> int:
        """Pairs of an input pixel and a tap that reach the output."""
        return self.images * int(self.reached(0).sum() * self.reached(1).sum())

    @property
    def macs(self) -> int:
        """Products that reach the output."""
        return self.kept * self.depth * self.channels


@dataclass(frozen=True)
class Schedule:
    """How a layer is cut.

    Neighbouring pixels of a row, ``spread`` of them, are multiplied at once where there are fewer output channels than
    elements: each channel then has ``spread`` elements, whose sums are added on the way out.

    Attributes:
        geometry: Of the accelerator.
        shape: Of the layer.

    Raises:
        DoesNotFitError: A buffer is too small.
    """

    geometry: Geometry
    shape: Shape

    def __post_init__(self) -> None:
        g, s = self.geometry, self.shape
        if self.filter_words > g.weight_words // 2:
            raise DoesNotFitError(
                "weight buffer", 2 * BUS_BYTES * self.filter_words, BUS_BYTES * g.weight_words
            )
        if self.words > g.input_words:
            raise DoesNotFitError("input buffer", BUS_BYTES * self.words, BUS_BYTES * g.input_words)
        rows = max(min(s.kernel[0], s.outputs[0]), s.strides[0])
        if self.ring < rows:
            raise DoesNotFitError("sum buffer", 4 * rows * s.outputs[1], 4 * g.sum_words)

    @property
    def steps(self) -> int:
        """Cycles of a product of a pixel and a tap."""
        return -(-self.shape.depth // self.geometry.uf)

    @property
    def words(self) -> int:
        """Words of a pixel, or of a tap."""
        return -(-self.steps // self.geometry.steps_per_word)

    @property
    def filter_words(self) -> int:
        """Words of weights of an output channel."""
        return self.shape.kernel[0] * self.shape.kernel[1] * self.words

    @cached_property
    def spread(self) -> int:
        """Neighbouring pixels that are multiplied at once: what takes the fewest cycles."""
        g, costs = self.geometry, {}
        for spread in (1 << i for i in range(g.pe_count.bit_length())):
            if self._slots(spread):
                groups = -(-self.shape.channels // (g.pe_count // spread))
                costs[spread] = groups * int(np.maximum(self.costs(spread), spread * self.words).sum())
        return min(costs, key=lambda spread: costs[spread]) if costs else 1

    def _slots(self, spread: int) -> int:
        return min(self.geometry.bank_words(spread - 1) // self.words, _MOST_SLOTS)

    @property
    def slots(self) -> int:
        """Positions that the input banks hold."""
        return self._slots(self.spread)

    def costs(self, spread: int) -> np.ndarray:
        """Cycles of every position of an image, ``(rows, positions)``."""
        passes = np.outer(self.shape.reached(0), self.shape.reached(1, spread))
        return np.maximum(1, passes * self.steps)

    @property
    def lanes(self) -> int:
        """Output channels at a time."""
        return self.geometry.pe_count // self.spread

    @property
    def groups(self) -> int:
        """Groups of output channels; each sees all pixels once."""
        return -(-self.shape.channels // self.lanes)

    @property
    def positions(self) -> int:
        """Positions, of ``spread`` pixels, of a row."""
        return -(-self.shape.inputs[1] // self.spread)

    @property
    def ring(self) -> int:
        """Rows of the output that the sums have room for."""
        return min(self.geometry.sum_words // self.shape.outputs[1], _MOST_RING)

    @property
    def passes(self) -> int:
        """Taps that the array works off, in all groups."""
        s = self.shape
        return self.groups * s.images * int(s.reached(0).sum() * s.reached(1, self.spread).sum())

    @property
    def weight_words(self) -> int:
        """Words of weights and parameters of all groups."""
        return self.groups * self.lanes * (self.filter_words + 1)

    @property
    def input_words(self) -> int:
        """Words of pixels that are sent, once per group."""
        s = self.shape
        return self.groups * s.images * s.inputs[0] * self.positions * self.spread * self.words

    @property
    def columns(self) -> int:
        """Columns of results, those of all rows and groups."""
        return self.groups * self.shape.images * self.shape.outputs[0] * self.shape.outputs[1]

    @property
    def result_words(self) -> int:
        """Words that come back."""
        return -(-self.columns // self.geometry.columns_per_word)

    def ready(self, row: int) -> int:
        """Rows of the output that are drained once a row of the input has been worked off; the last waits for all."""
        s = self.shape
        if row == s.inputs[0] - 1:
            return s.outputs[0]
        return min(max((row + 1) * s.strides[0] - s.begins[0], 0), s.outputs[0] - 1)

    def opened(self, row: int) -> int:
        """Rows of the output, from the first, that a row of the input or one before it adds to."""
        s = self.shape
        return min(max(row * s.strides[0] - s.begins[0] + s.kernel[0], 0), s.outputs[0])

    @cached_property
    def _timeline(self) -> _Timeline:
        return _Timeline(self).run()

    def spans(self) -> list[tuple[str, str, int, int]]:
        """What each unit does when: unit, state, first cycle, last cycle; one span per group of channels."""
        return self._timeline.spans

    def buffers(self) -> dict[str, tuple[int, int]]:
        """Bytes in use and bytes there are: weights in both halves, the fullest bank of pixels, 32-bit sums."""
        g, s = self.geometry, self.shape
        resident = BUS_BYTES * g.pe_count * self.filter_words * min(self.groups, 2)
        positions, rows = min(s.inputs[0] * self.positions, self.slots), min(s.outputs[0], self.ring)
        return {
            "weights": (resident, BUS_BYTES * g.pe_count * g.weight_words),
            "inputs": (BUS_BYTES * positions * self.words, BUS_BYTES * g.bank_words(self.spread - 1)),
            "sums": (4 * g.pe_count * rows * s.outputs[1], 4 * g.pe_count * g.sum_words),
        }

    def cycles(self) -> dict[str, int]:
        """Every counter of the hardware, for a host that never hesitates."""
        found = self._timeline
        return {
            "total": found.end + DRAIN_LATENCY + 1,
            "load_weights": self.weight_words,
            "load_inputs": self.input_words,
            "load_wait": found.waited,
            "compute": self.passes * self.steps,
            "taps": self.passes,
            "post": self.columns,
            "store": self.result_words,
        }


class _Timeline:
    """When what happens, group by group; a cycle is counted from the first word."""

    def __init__(self, schedule: Schedule) -> None:
        self.s = schedule
        self.clock = HEADERS  # the cycle in which the loader takes its next word
        self.waited = 0
        self.end = -1  # last cycle of the drain, then of all
        self.spans: list[tuple[str, str, int, int]] = []
        self._ends: list[int] = []  # last cycle of every position
        self._rows: list[int] = []  # last cycle of the drain of every row of the output

    def run(self) -> _Timeline:
        """All groups."""
        s, ends = self.s, []
        costs = s.costs(s.spread).tolist()
        for group in range(s.groups):
            begun, position, row = self.clock, len(self._ends), len(self._rows)
            self._wait(ends[group - 2] + LEAVING if group >= 2 else 0)
            self.clock += 1 + s.lanes * (s.filter_words + 1) + 1
            weights = self.clock
            for _ in range(s.shape.images):
                self._image(costs)
            ends.append(self.end)
            self.spans += [
                ("loader", "weights", begun, weights - 1),
                ("loader", "inputs", weights, self.clock - 1),
                ("array", "compute", self._ends[position] - costs[0][0] + 1, self._ends[-1]),
                ("drain", "post", self._rows[row] - s.shape.outputs[1] + 1, self.end + DRAIN_LATENCY),
            ]
        return self

    def _wait(self, free: int) -> None:
        self.waited += max(0, free - self.clock)
        self.clock = max(self.clock, free)

    def _image(self, costs: list[list[int]]) -> None:
        s, ends = self.s, self._ends
        slots, words, before, whole = s.slots, s.spread * s.words, len(self._rows), 0
        clock, waited, end = self.clock, self.waited, ends[-1] if ends else -1
        for row, of_row in enumerate(costs):
            full = before + s.opened(row) - s.ring
            free = self._rows[full - 1] + 1 if full > 0 else 0
            for cost in of_row:
                if len(ends) >= slots:
                    wait = ends[-slots] + 1 - clock
                    if wait > 0:
                        waited += wait
                        clock += wait
                clock += words
                end = max(end + 1, clock, free) + cost - 1
                free = 0
                ends.append(end)
            for _ in range(whole, s.ready(row)):
                self.end = max(end + ARRAY_LATENCY + 1, self.end + 1) + s.shape.outputs[1] - 1
                self._rows.append(self.end)
            whole = s.ready(row)
        self.clock, self.waited = clock, waited
