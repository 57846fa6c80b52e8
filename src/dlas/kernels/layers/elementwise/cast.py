"""Change of dtype."""

from __future__ import annotations

from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost

_DTYPES = ("float32", "int8", "uint8", "int32", "int64", "bool")


@kernels.register("cast")
class Cast(NativeKernel):
    """Numbers that the new dtype cannot hold, NaN among them, become whatever the processor makes of them."""

    name = "cast"
    ops: ClassVar[tuple[str, ...]] = ("Cast",)
    summary = "change of dtype"

    def refuses(self, node: Node, context: Context) -> str:
        """Dtypes it does not know."""
        for dtype in (node.operand(0).dtype, node.output.dtype):
            if dtype not in _DTYPES:
                return f"it knows {', '.join(_DTYPES)}, not {dtype}"
        return ""

    def attributes(self, node: Node) -> dict[str, Any]:
        """None: the dtypes say all."""
        return {}

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes moved."""
        return move_cost(node)
