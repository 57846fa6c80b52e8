"""Tensors one behind the other."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, map_forms
from dlas.kernels.layers.shape._parts import cut_along, in_blocks


@kernels.register("concat")
class Concat(MoveKernel):
    """Blocked along channels where all inputs but the last are whole blocks, and along the other axes always."""

    name = "concat"
    ops: ClassVar[tuple[str, ...]] = ("Concat",)
    summary = "tensors one behind the other"

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """The layout of maps where the parts begin at blocks, and plain."""
        constant = any(i is not None and i.constant is not None for i in node.inputs)
        parts = [node.operand(i) for i in range(len(node.inputs))]
        forms = map_forms(node, in_blocks(node, parts, context))
        return forms[-1:] if constant else forms

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy per input."""
        parts = [x for x in inputs if x is not None]
        return [
            Piece(i, x, 0, place)
            for i, (x, place) in enumerate(zip(parts, cut_along(node, outputs[0], parts), strict=True))
        ]
