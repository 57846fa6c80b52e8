"""Mean or largest value of whole maps."""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.elementwise._layouts import move_cost
from dlas.kernels.layers.pooling._axes import reduced_axes
from dlas.kernels.layout import Layout, Storage


@kernels.register("global-pool")
class GlobalPool(NativeKernel):
    """GlobalAveragePool, GlobalMaxPool and ReduceMean or ReduceMax over H and W.

    From blocked maps it leaves (N, C, 1, 1) plain, for a Gemm, or blocked, for a convolution.
    """

    name = "global-pool"
    ops: ClassVar[tuple[str, ...]] = ("GlobalAveragePool", "GlobalMaxPool", "ReduceMean", "ReduceMax")
    summary = "mean or largest value of whole maps"

    def refuses(self, node: Node, context: Context) -> str:
        """Four axes, of which the last two go."""
        x = node.operand(0)
        if not x.is_feature_map:
            return "it takes float32 feature maps (N, C, H, W)"
        if node.op.startswith("Reduce"):
            axes = reduced_axes(node)
            if axes != (2, 3):
                return f"it reduces the axes 2 and 3, not {list(axes) if axes else 'computed ones'}"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """From blocked to plain or blocked, and plain."""
        rest = (Layout.PLAIN,) * (len(node.inputs) - 1)
        pairs = [(Layout.BLOCKED, Layout.PLAIN), (Layout.PLAIN, Layout.PLAIN)]
        if len(node.output.shape) == 4:
            pairs.insert(1, (Layout.BLOCKED, Layout.BLOCKED))
        return tuple(Form((a, *rest), (b,)) for a, b in pairs)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Bytes read."""
        return move_cost(node)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """One native layer for all four operators."""
        if node.op != "GlobalPool":
            node = Node("GlobalPool", node.name, self.attributes(node), node.inputs[:1], node.outputs)
        return super().prepare(node, inputs[:1], outputs, context)

    def attributes(self, node: Node) -> dict[str, Any]:
        """Which of the two, and how many channels."""
        if node.op == "GlobalPool":
            return dict(node.attributes)
        fused = {k: v for k, v in node.attributes.items() if k.startswith("act")}
        return fused | {
            "max": int(node.op.endswith(("MaxPool", "Max"))),
            "channels": node.operand(0).shape[1],
        }
