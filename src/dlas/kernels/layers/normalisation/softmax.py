"""Softmax and its logarithm."""

from __future__ import annotations

from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost


@kernels.register("softmax")
class Softmax(NativeKernel):
    """Along one axis (ONNX opset 13), of any plain tensor. A NaN makes all of its row NaN."""

    name = "softmax"
    ops: ClassVar[tuple[str, ...]] = ("Softmax", "LogSoftmax")
    summary = "softmax along any axis"

    def refuses(self, node: Node, context: Context) -> str:
        """Other dtypes than float32, and numbers without an axis."""
        if node.operand(0).dtype != "float32":
            return f"it takes float32, not {node.operand(0).dtype}"
        return "" if node.operand(0).shape else "its input has no axes"

    def attributes(self, node: Node) -> dict[str, Any]:
        """The axis, not negative."""
        return {"axis": int(node.attributes.get("axis", -1)) % len(node.operand(0).shape)}

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved thrice, and one exponential per element."""
        return 3 * move_cost(node) + 8e-9 / context.block * node.output.size
