"""Weights that are sums of powers of two, spread finely near zero and evenly further out.

Li, Dong and Wang 2020, "Additive powers-of-two quantization", ICLR. Training (``epochs``) follows their rule: weights
are normalised by mean and deviation of their layer and clipped at a bound that is trained along. With
``per_channel=false`` there is one bound per layer that starts at 3 deviations, as in their code; otherwise one per
output channel that starts at its largest weight.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING

import numpy as np

from dlas.compress.method import methods
from dlas.compress.quantize._few_bits.layers import EIGHT_BITS, Layer
from dlas.compress.quantize._few_bits.levels import LevelMethod, LevelOptions
from dlas.core.options import option
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import apot

if TYPE_CHECKING:
    from torch import nn

_FIRST_BOUND = 3.0  # deviations


@dataclass(frozen=True)
class Options(LevelOptions):
    """Options of ``apot``."""

    bits: int = option(4, "bits of a weight, its sign among them", low=3, high=6)


@methods.register("apot")
class Apot(LevelMethod):
    """Weights that are sums of powers of two."""

    name = "apot"
    summary = "Weights in 4 bits that are sums of powers of two (APoT), for accelerators that shift"
    Options = Options
    options: Options

    @property
    def grid(self) -> Grid:
        """Tenths for 4 bits: 0, 1, 2, 3, 4, 6, 8 and 10."""
        return apot(self.options.bits)

    def fake(self, layer: Layer) -> nn.Module:
        """Normalised weights below a trained bound."""
        from dlas.compress.quantize._few_bits.fake import TrainedClip

        if layer.grid is EIGHT_BITS:
            return super().fake(layer)
        if layer.axis is None:
            alpha = np.float32(_FIRST_BOUND)
        else:
            deviation = max(float(layer.weight.std()), 1e-8)
            centred = layer.weight - layer.weight.mean()
            alpha = layer.grid.scales_of(centred, layer.axis) / deviation
        return TrainedClip(layer.magnitudes(), layer.grid.boundaries, np.asarray(alpha), layer.axis)
