"""Arithmetic of two tensors that broadcast."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, Operand, kernels
from dlas.kernels.layers.elementwise._layouts import channels, move_cost
from dlas.kernels.layout import Layout


@kernels.register("binary")
class Binary(NativeKernel):
    """y = act(a op b), plain or blocked, in place if the output is given the memory of an operand of its size.

    Blocked operands have the output's shape or repeat along any of N, H and W; plain ones have one channel, or several
    and are constant. Min and Max return NaN where the first operand is NaN, and the second operand where that is NaN.
    """

    name = "binary"
    ops: ClassVar[tuple[str, ...]] = ("Add", "Sub", "Mul", "Div", "Min", "Max", "Pow", "PRelu")
    summary = "arithmetic of two tensors, broadcast, with a fused activation"

    def refuses(self, node: Node, context: Context) -> str:
        """Two float32 operands."""
        if len(node.inputs) != 2:
            return f"it takes two operands, not {len(node.inputs)}"
        for index in (0, 1):
            if node.operand(index).dtype != "float32":
                return f"it takes float32, not {node.operand(index).dtype}"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked where the output is a map and each operand is laid out over its blocks, and plain."""
        plain = Form.all(node, Layout.PLAIN)
        if not node.output.is_feature_map:
            return (plain,)
        layouts = [_beside(node.operand(index), node.output.shape) for index in (0, 1)]
        if Layout.BLOCKED not in layouts or None in layouts:
            return (plain,)
        return (Form(tuple(layout for layout in layouts if layout), (Layout.BLOCKED,)), plain)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved; powers are computed one by one."""
        constant = node.constant(1)
        slow = node.op == "Pow" and (constant is None or constant.size > 1)
        return move_cost(node) + (1e-8 * node.output.size if slow else 0.0)

    def attributes(self, node: Node) -> dict[str, Any]:
        """Also how many channels the last block is counted from."""
        return super().attributes(node) | {"channels": channels(node)}


def _beside(operand: Operand, shape: tuple[int, ...]) -> Layout | None:
    """Layout of an operand under a blocked output of ``shape``; None where it has none."""
    own = (1,) * (4 - len(operand.shape)) + operand.shape
    if operand.constant is not None or (own[1] == 1 and (shape[1] > 1 or own != shape)):
        return Layout.PLAIN
    return Layout.BLOCKED if len(operand.shape) == 4 and own[1] == shape[1] else None
