"""Weights on 15 evenly spaced levels: 4 bits, -7 to 7 times a scale.

The plain one among the 4-bit methods, for hardware that multiplies. Repairing the statistics (``repair=stats``) brings
back most of what rounding loses, without training. Not for networks so small or so deep in depthwise layers that 4 bits
break them: train with ``epochs``, or keep those layers at 8 bits.
"""

from __future__ import annotations

from dlas.compress.method import methods
from dlas.compress.quantize._few_bits.levels import LevelMethod
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import uniform


@methods.register("int4")
class Int4(LevelMethod):
    """Weights in 4 bits, evenly spaced."""

    name = "int4"
    summary = "Weights in 4 bits on evenly spaced levels, with statistics repair or training"

    @property
    def grid(self) -> Grid:
        """-7 .. 7."""
        return uniform(4)
