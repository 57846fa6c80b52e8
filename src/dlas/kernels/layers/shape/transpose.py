"""Axes in another order."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, between
from dlas.kernels.layout import Layout


@kernels.register("transpose")
class Transpose(MoveKernel):
    """By tiles transposed in registers. Maps may enter or leave in blocks or nhwc, which spares a change of layout."""

    name = "transpose"
    ops: ClassVar[tuple[str, ...]] = ("Transpose",)
    summary = "axes in another order"

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain to plain; for four axes also from or to the layout of maps."""
        plain, shapes = Layout.PLAIN, (node.operand(0).shape, node.output.shape)
        dtype = node.operand(0).dtype
        other = Layout.BLOCKED if dtype == "float32" else Layout.NHWC
        forms = [Form((plain,), (plain,))]
        constant = node.operand(0).constant is not None
        if len(shapes[0]) == 4 and dtype in ("float32", "int8", "uint8") and not constant:
            forms += [Form((plain,), (other,)), Form((other,), (plain,))]
        return tuple(forms)

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy, two where the last block is not full."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        rank = len(node.output.shape)
        order = [int(a) % rank for a in node.attributes.get("perm", range(rank)[::-1])]
        if y.ndim > rank:
            return between(x.transpose(order), y, to_blocked=True)
        if x.ndim > rank:
            return between(y.transpose(np.argsort(order)), x, to_blocked=False)
        return [Piece(0, x.transpose(order), 0, y)]
