"""Weights that are sums of two powers of two: 0, 1, 2, 4, 5, 6 and 8 eighths with both signs.

The set SP2 of Chang et al. 2021 ("Mix and match: a novel FPGA-centric deep neural network quantization framework",
HPCA), as PoTAcc's accelerator encodes it: a product is two shifts and one addition. Its scale is one per output
channel, the largest weight of the row.
"""

from __future__ import annotations

from dlas.compress.method import methods
from dlas.compress.quantize._few_bits.levels import LevelMethod
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import msq


@methods.register("msq")
class Msq(LevelMethod):
    """Weights that are sums of two powers of two, after MSQ."""

    name = "msq"
    summary = "Weights in 4 bits that are sums of two powers of two (MSQ), for accelerators that shift"

    @property
    def grid(self) -> Grid:
        """Eighths."""
        return msq()
