"""Local response normalisation."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels


@kernels.register("lrn")
class Lrn(NativeKernel):
    """Each value over a power of the squares in the channels around it, a vector of pixels at a time."""

    name = "lrn"
    ops: ClassVar[tuple[str, ...]] = ("LRN",)
    summary = "local response normalisation"

    def refuses(self, node: Node, context: Context) -> str:
        """Other dtypes than float32."""
        x = node.operand(0)
        return "" if x.dtype == "float32" and len(x.shape) > 1 else "it takes float32 (N, C, ...)"

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """One load per neighbour, one logarithm and one exponential per element."""
        return 1e-6 + node.output.size * (int(node.attributes["size"]) * 1e-9 + 1.5e-8) / context.block
