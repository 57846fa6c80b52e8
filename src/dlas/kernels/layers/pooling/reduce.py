"""Sums, means and extremes over axes."""

from __future__ import annotations

from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost
from dlas.kernels.layers.pooling._axes import reduced_axes
from dlas.kernels.layout import Layout


@kernels.register("reduce")
class Reduce(NativeKernel):
    """Over any axes of a plain tensor; each result is summed by one thread, in the same order every time.

    ReduceMax and ReduceMin may pass over a NaN.
    """

    name = "reduce"
    ops: ClassVar[tuple[str, ...]] = (
        "ReduceSum", "ReduceMean", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1", "ReduceL2",
    )  # fmt: skip
    summary = "sums, means and extremes over axes"

    def refuses(self, node: Node, context: Context) -> str:
        """Axes that the network computes, other dtypes than float32, and no axes at all."""
        if node.operand(0).dtype != "float32":
            return f"it takes float32, not {node.operand(0).dtype}"
        axes = reduced_axes(node)
        if axes is None:
            return "its axes are computed by the network"
        return "" if axes else "it has no axes to reduce"

    def forms(self, node: Node, context: Context) -> tuple[Form, ...]:
        """Plain."""
        return (Form.all(node, Layout.PLAIN),)

    def attributes(self, node: Node) -> dict[str, Any]:
        """Axes, none negative."""
        return {"axes": list(reduced_axes(node) or ())}

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved."""
        return move_cost(node)
