"""What transposed convolution costs on the same array by other mappings: formulas, kind to those mappings.

All of them have the elements, buffers, bus and clock of the accelerator, and overlap loading, multiplying and storing.

Input-oriented mapping (IOM): a matrix product of the filters, one row per output channel and tap, with the pixels, one
column each. Cropped taps are multiplied as well. The products leave as 32-bit partial sums; adding them up (col2im) and
going back to bytes is left to the CPU. Rows are laid over the elements without gaps (``dense``), or each element keeps
to one output channel, as those of the accelerator do.

Zero insertion: an ordinary convolution over the input with zeros between its pixels and around it, output pixel by
output pixel, bytes on the way out.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.schedule import Shape
from dlas.hardware.rtl.sizes import BUS_BYTES

_SUM_BYTES = 4


@dataclass(frozen=True)
class Processor:
    """The CPU beside the accelerator, for what a mapping leaves to it (estimates, not measurements).

    The defaults stand for one core of a Cortex-A9 at 650 MHz beside an accelerator at 200 MHz (PYNQ-Z1), its 64-bit
    path to the first cache the limit: 128 bits are loaded twice and stored once for four partial sums; an output is
    loaded, multiplied, shifted, narrowed and stored. Misses of the caches are not counted.

    Attributes:
        cycles_per_sum: Of the CPU, to add a partial sum to its output.
        cycles_per_output: Of the CPU, to bring a sum back to a byte.
        clock_ratio: Cycles of the CPU per cycle of the accelerator.
    """

    cycles_per_sum: float = 1.5
    cycles_per_output: float = 3.0
    clock_ratio: float = 650 / 200

    def cycles(self, sums: int, outputs: int) -> int:
        """In cycles of the accelerator."""
        return round((sums * self.cycles_per_sum + outputs * self.cycles_per_output) / self.clock_ratio)


@dataclass(frozen=True)
class Iom:
    """Cycles of the input-oriented mapping.

    Attributes:
        array: Multiplying and loading; as if partial sums left at once and cost nothing.
        accelerator: The same, with the partial sums on the bus.
        cpu: What the CPU adds afterwards (estimated).
    """

    array: int
    accelerator: int
    cpu: int

    @property
    def total(self) -> int:
        """From the first word in to the last byte of the output."""
        return self.accelerator + self.cpu


def iom(geometry: Geometry, shape: Shape, processor: Processor | None = None, *, dense: bool = True) -> Iom:
    """The input-oriented mapping of a layer; see the module."""
    g, taps = geometry, shape.kernel[0] * shape.kernel[1]
    pixels = shape.images * shape.inputs[0] * shape.inputs[1]
    rows, steps = shape.channels * taps, -(-shape.depth // g.uf)
    blocks = -(-rows // g.pe_count) if dense else -(-shape.channels // g.pe_count) * taps
    words = -(-steps // g.steps_per_word)
    resident = max(1, g.weight_words // 2 // words)
    groups = [min(resident, blocks - first) for first in range(0, blocks, resident)]
    found = []
    for per_sum in (0, _SUM_BYTES):
        total = groups[0] * g.pe_count * words
        for number, group in enumerate(groups):
            following = groups[number + 1] if number + 1 < len(groups) else 0
            load = pixels * words + following * g.pe_count * words
            store = pixels * min(group * g.pe_count, rows) * per_sum // BUS_BYTES
            total += max(pixels * group * steps, load, store)
        found.append(total)
    outputs = shape.images * shape.outputs[0] * shape.outputs[1] * shape.channels
    cpu = (processor or Processor()).cycles(pixels * rows, outputs)
    return Iom(found[0], found[1], cpu)


def zero_insertion(geometry: Geometry, shape: Shape) -> int:
    """Cycles of a convolution over the input with zeros inserted; see the module.

    Where there are fewer output channels than elements, elements of a channel work on neighbouring output pixels.
    """
    g = geometry
    steps = -(-shape.depth // g.uf)
    words, taps = -(-steps // g.steps_per_word), shape.kernel[0] * shape.kernel[1]
    costs = []
    for spread in (1 << i for i in range(g.pe_count.bit_length())):
        groups = -(-shape.channels // (g.pe_count // spread))
        pixels = shape.images * shape.outputs[0] * -(-shape.outputs[1] // spread)
        costs.append(groups * pixels * taps * steps)
    first = min(shape.channels, g.pe_count) * taps * words
    return first + max(min(costs), shape.channels * taps * words - first)
