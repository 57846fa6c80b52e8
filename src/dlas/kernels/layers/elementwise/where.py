"""A choice between two tensors, element by element."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost


@kernels.register("where")
class Where(NativeKernel):
    """Any dtype; all three operands broadcast."""

    name = "where"
    ops: ClassVar[tuple[str, ...]] = ("Where",)
    summary = "a choice between two tensors"

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved."""
        return move_cost(node)
