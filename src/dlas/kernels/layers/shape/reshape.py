"""The same elements under another shape; a copy, where the engine cannot let both share their memory."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, map_forms


@kernels.register("reshape")
class Reshape(MoveKernel):
    """Plain; Identity and Dropout (which does nothing when a network is used) in any layout."""

    name = "reshape"
    ops: ClassVar[tuple[str, ...]] = ("Reshape", "Flatten", "Squeeze", "Unsqueeze", "Identity", "Dropout")
    summary = "the same elements under another shape"

    def refuses(self, node: Node, context: Context) -> str:
        """A mask of Dropout."""
        return "it does not return the mask of Dropout" if len(node.outputs) > 1 else ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """The layout of maps where the shape stays."""
        forms = map_forms(node, in_blocks=True)
        return forms if node.op in ("Identity", "Dropout") else forms[-1:]

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        return [Piece(0, x, 0, y)] if x.shape == y.shape else [Piece(0, x.reshape(-1), 0, y.reshape(-1))]
