"""Slices by their numbers."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

import numpy as np

from dlas.kernels.kernel import Context, NativeKernel, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece
from dlas.kernels.layout import Storage


@kernels.register("gather")
class Gather(MoveKernel):
    """Constant indices at even distances are one strided copy; any others are looked up when the network runs.

    Negative indices count from the end; one outside the axis is an error (RuntimeError) of the run.
    """

    name = "gather"
    ops: ClassVar[tuple[str, ...]] = ("Gather",)
    summary = "slices of a tensor by their numbers"

    def refuses(self, node: Node, context: Context) -> str:
        """Constant indices outside the axis."""
        indices = node.constant(1)
        size = node.operand(0).shape[_axis(node)]
        if indices is not None and indices.size and not -size <= indices.min() <= indices.max() < size:
            return f"an index is outside [{-size}, {size})"
        return ""

    def attributes(self, node: Node) -> dict[str, Any]:
        """The axis, not negative."""
        return {"axis": _axis(node)}

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """A copy or the native look-up."""
        if _progression(node) is None:
            return NativeKernel.prepare(self, node, inputs, outputs, context)
        return super().prepare(node, inputs, outputs, context)

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy."""
        x, y = inputs[0], outputs[0]
        cut = _progression(node)
        assert x is not None
        assert cut is not None
        axis = _axis(node)
        y = y.reshape(*x.shape[:axis], -1, *x.shape[axis + 1 :]) if y.size else y
        return [Piece(0, x[(slice(None),) * axis + (cut,)], 0, y)]


def _axis(node: Node) -> int:
    return int(node.attributes.get("axis", 0)) % len(node.operand(0).shape)


def _progression(node: Node) -> slice | None:
    """Constant indices as a slice, where they are one."""
    constant = node.constant(1)
    if constant is None or not constant.size:
        return None
    size = node.operand(0).shape[_axis(node)]
    indices = constant.ravel() % size
    step = int(indices[1] - indices[0]) if len(indices) > 1 else 1
    if step == 0 or (np.diff(indices) != step).any():
        return None
    stop = int(indices[-1]) + (1 if step > 0 else -1)
    return slice(int(indices[0]), None if stop < 0 else stop, step)
