"""Change of layout: an operator of the engine, which ONNX has no need of."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece
from dlas.kernels.layout import Layout, Storage


@kernels.register("reorder")
class Reorder(MoveKernel):
    """Between plain and blocked (float32), between plain and nhwc, and from any layout to itself with another halo.

    Lanes of the last block that hold no channel become zero. What lies around the output (its halo) stays as it is.
    """

    name = "reorder"
    ops: ClassVar[tuple[str, ...]] = ("Reorder",)
    summary = "change of layout, by tiles transposed in registers"

    def refuses(self, node: Node, context: Context) -> str:
        """Maps (N, C, H, W) only."""
        return "" if len(node.operand(0).shape) == 4 else "only maps (N, C, H, W) have several layouts"

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """All pairs of layouts that the dtype has."""
        other = Layout.BLOCKED if node.operand(0).dtype == "float32" else Layout.NHWC
        layouts = (Layout.PLAIN, other)
        pairs = [(a, b) for a in layouts for b in layouts if a is not b] + [(a, a) for a in layouts]
        return tuple(Form((a,), (b,)) for a, b in pairs)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native kernel for blocks where exactly one side is blocked, else a strided copy."""
        source, target = inputs[0], outputs[0]
        assert source is not None
        if {len(source.shape), len(target.shape)} == {4, 5}:
            return NativeKernel.prepare(self, node, inputs, outputs, context)
        return super().prepare(node, inputs, outputs, context)

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy between views of the same axes."""
        assert inputs[0] is not None
        return [Piece(0, inputs[0], 0, outputs[0])]
