"""Where the largest or smallest value stands."""

from __future__ import annotations

from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels


@kernels.register("arg-extreme")
class ArgExtreme(NativeKernel):
    """ArgMax and ArgMin along one axis, of float32, to int64. A NaN is never found unless it comes first."""

    name = "arg-extreme"
    ops: ClassVar[tuple[str, ...]] = ("ArgMax", "ArgMin")
    summary = "where the largest or smallest value stands"

    def refuses(self, node: Node, context: Context) -> str:
        """Other dtypes than float32."""
        return "" if node.operand(0).dtype == "float32" else f"it takes float32, not {node.operand(0).dtype}"

    def attributes(self, node: Node) -> dict[str, Any]:
        """The axis, not negative."""
        axis = int(node.attributes.get("axis", 0)) % len(node.operand(0).shape)
        return {"axis": axis, "select_last_index": int(node.attributes.get("select_last_index", 0))}

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """One comparison per element."""
        size = 1
        for length in node.operand(0).shape:
            size *= length
        return 1e-6 + 1e-9 * size
