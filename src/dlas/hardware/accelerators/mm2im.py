"""MM2IM, transposed convolution as matrix product and col2im without what the padding crops.

Haris and Cano 2025, "Accelerating Transposed Convolutions on FPGA-based Edge Devices".
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dlas.core.options import option
from dlas.hardware.accelerator import Accelerator, Layer, accelerators
from dlas.hardware.accelerators._mm2im.accelerator import TransposedLayer, random_node
from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.transposed import refusal
from dlas.kernels.kernel import Node

if TYPE_CHECKING:
    from dlas.hardware.rtl.bus import Design


@dataclass(frozen=True)
class Mm2imOptions:
    """Options of the transposed convolution's unit."""

    pe_count: int = option(8, "processing elements, an output channel each", choices=(2, 4, 8, 16))
    uf: int = option(16, "products per element and cycle, along the input channels", choices=(4, 8, 16))
    rounding: str = option(
        "double", "of sums: as TFLite's reference kernels, or once", choices=("double", "single")
    )
    weight_kib: int = option(64, "weight buffer of an element, KiB", choices=(1, 2, 4, 8, 16, 32, 64, 128))
    input_kib: int = option(
        16, "first input bank, KiB; the others have a quarter", choices=(1, 2, 4, 8, 16, 32, 64)
    )
    sum_kib: int = option(16, "sums of an element, KiB", choices=(1, 2, 4, 8, 16, 32))


@accelerators.register("mm2im")
class Mm2im(Accelerator):
    """Products of a pixel and a tap are added to outputs in place; rows leave as soon as they are whole."""

    name = "mm2im"
    summary = "MM2IM: transposed convolution without ineffectual products, int8"
    ops: ClassVar[tuple[str, ...]] = ("QConvTranspose",)
    Options = Mm2imOptions
    options: Mm2imOptions

    @property
    def geometry(self) -> Geometry:
        """Sizes."""
        o = self.options
        return Geometry(o.pe_count, o.uf, o.weight_kib * 64, o.input_kib * 64, o.sum_kib * 256)

    @property
    def multipliers(self) -> int:
        """Products per cycle."""
        return self.geometry.multipliers

    def design(self) -> Design:
        """The hardware."""
        from dlas.hardware.accelerators._mm2im.design import Mm2imDesign

        return Mm2imDesign(self.geometry, (self.options.rounding,))

    def refuses(self, node: Node) -> str:
        """Groups, dilations, computed weights, another rounding, sizes beyond the counters."""
        return refusal(node, self.options.rounding)

    def layer(self, node: Node) -> Layer:
        """Prepare a node; see :meth:`Accelerator.layer`."""
        return TransposedLayer(self, self.geometry, node)

    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A transposed convolution with a few thousand products."""
        return random_node(random, self.options.rounding)
