"""Weights that are powers of two, so that products are shifts.

The level set of QKeras' ``quantized_po2`` as accelerators encode it: a sign and an exponent of one bit less than the
code, no zero. Spacing is fine near 0 and coarse at the top, and a lost zero costs networks with many small weights:
repair the statistics, or train. Weight decay is off during training, as it would draw weights to a zero that is not
there.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

from dlas.compress.method import methods
from dlas.compress.quantize._few_bits.levels import LevelMethod, LevelOptions
from dlas.core.options import option
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import po2


@dataclass(frozen=True)
class Options(LevelOptions):
    """Options of ``po2``."""

    bits: int = option(4, "bits of a weight, its sign among them", low=2, high=4)
    rounding: Literal["linear", "log"] = option(
        "linear", "to the nearest value, or the nearest exponent as QKeras does", choices=("linear", "log")
    )


@methods.register("po2")
class Po2(LevelMethod):
    """Weights that are powers of two."""

    name = "po2"
    summary = "Weights in 4 bits that are powers of two (QKeras), for accelerators that shift"
    Options = Options
    weight_decay = 0.0
    options: Options

    @property
    def grid(self) -> Grid:
        """1, 1/2, 1/4 ... with both signs."""
        return po2(self.options.bits, rounding=self.options.rounding)
