"""DQA, activations in few bits: the unit that quantises a channel and Huffman-codes its low bits, and the way back.

Hu et al. 2024, "DQA: An Efficient Method for Deep Quantization of Deep Neural Network Activations"; the hardware
follows the experiment of its extension eDQA. Arithmetic: :mod:`dlas.hardware.accelerators._dqa.channel`.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.options import option
from dlas.hardware.accelerator import accelerators
from dlas.hardware.accelerators._dqa.accelerator import DqaAccelerator
from dlas.hardware.accelerators._dqa.comparison import DqaComparison, SizeRow, compare_units
from dlas.hardware.accelerators._dqa.geometry import Geometry

__all__ = ["Dqa", "DqaComparison", "DqaOptions", "SizeRow", "compare_units"]


@dataclass(frozen=True)
class DqaOptions:
    """Options of the activation quantiser."""

    n: int = option(3, "kept bits of a value", low=2, high=8)
    m: int = option(3, "residual bits of a value, Huffman-coded", low=1, high=3)
    longest: int = option(7, "bits of the longest code", low=3, high=7)
    values: int = option(3136, "values of the largest channel", low=16, high=32768)
    decoders: int = option(2, "codes decoded per cycle", choices=(1, 2, 4, 8))


@accelerators.register("dqa")
class Dqa(DqaAccelerator):
    """The activation quantiser; :func:`compare_units` says what it costs beside one that searches."""

    name = "dqa"
    summary = "activation quantiser: n bits kept, m bits Huffman-coded, shifts and subtractions (DQA)"
    Options = DqaOptions
    options: DqaOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        return Geometry(o.n, o.m, o.longest, o.values, o.decoders)
