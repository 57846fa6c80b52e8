"""The accelerator of block formats: which nodes it takes, and what it makes of them."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dlas.hardware.accelerator import Accelerator, Layer
from dlas.hardware.accelerators._bfp.formats import WIRE_FORMATS
from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.accelerators._bfp.layer import PREFIX, BfpLayer, random_node, refusal
from dlas.kernels.kernel import Node

if TYPE_CHECKING:
    from dlas.hardware.rtl.bus import Design


class BfpAccelerator(Accelerator):
    """One datapath behind an unpacker per block format; members choose the sizes."""

    ops: ClassVar[tuple[str, ...]] = tuple(f"{PREFIX}{name}" for name in WIRE_FORMATS)

    @property
    @abstractmethod
    def geometry(self) -> Geometry:
        """Sizes."""

    @property
    def multipliers(self) -> int:
        """Products of codes per cycle; those with scales and minima come on top."""
        return self.geometry.multipliers

    def design(self) -> Design:
        """The hardware."""
        from dlas.hardware.accelerators._bfp.design import BfpDesign

        return BfpDesign(self.geometry)

    def refuses(self, node: Node) -> str:
        """A format that is not built in, K that is no multiple of 256, scales that are not finite."""
        return refusal(node, self.geometry.formats)

    def layer(self, node: Node) -> Layer:
        """Prepare a node of one of :attr:`ops`: float32 ``(..., K)``, blocks uint8 ``(M, bytes)``, bias ``(M,)``.

        Raises:
            UnsupportedError: The node is none for the accelerator.
        """
        return BfpLayer(self, node)

    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A product of a few super-blocks of random bytes, in any of the formats."""
        return random_node(random, self.geometry.formats)
