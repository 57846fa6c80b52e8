"""A tensor in parts."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, map_forms
from dlas.kernels.layers.shape._parts import cut_along, in_blocks


@kernels.register("split")
class Split(MoveKernel):
    """Blocked along channels where all parts but the last are whole blocks, and along the other axes always."""

    name = "split"
    ops: ClassVar[tuple[str, ...]] = ("Split",)
    summary = "a tensor in parts"

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """The layout of maps where the parts begin at blocks, and plain."""
        return map_forms(node, in_blocks(node, node.outputs, context))

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy per output; their sizes are those of the outputs."""
        x = inputs[0]
        assert x is not None
        return [
            Piece(0, seen, i, y)
            for i, (seen, y) in enumerate(zip(cut_along(node, x, outputs), outputs, strict=True))
        ]
