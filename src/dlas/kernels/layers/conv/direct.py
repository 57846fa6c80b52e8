"""Convolution by its definition: the primitive that the others are compared with."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels


@kernels.register("direct")
class Direct(NativeKernel):
    """Seven nested loops, vectorised along the row; nothing is packed, copied or kept in registers."""

    name = "direct"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "convolution by its definition, any window and groups"
    rate = 0.12

    def refuses(self, node: Node, context: Context) -> str:
        """float32 feature maps; weights may be computed by the network."""
        if not node.operand(0).is_feature_map:
            return "it takes float32 feature maps (N, C, H, W)"
        return ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """A row that is no whole number of vectors, or is read with a stride, takes longer."""
        width, block = node.output.shape[3], context.block
        waste = -(-width // block) * block / width
        strided = 1.0 if node.attributes["strides"][1] == 1 else 3.0
        return super().cost(node, form, context) * waste * strided
