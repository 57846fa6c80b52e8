"""8-bit activations by powers of two in 4 bits, by shifting the activations."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.dense._low_bit import PackedMatMul


@kernels.register("po2-shift")
class Po2Shift(PackedMatMul):
    """``MatMulPo2`` without multiplications: a measure of what shifts cost on a processor that multiplies for free.

    It has no groups and no zero point; ``zero`` may be 0.
    """

    name = "po2-shift"
    ops: ClassVar[tuple[str, ...]] = ("MatMulPo2",)
    summary = "powers of two in 4 bits, by shifts instead of products"
    bits = 4.0

    def refuses(self, node: Node, context: Context) -> str:
        """Scales per column only."""
        if node.attributes.get("group_size") or node.attributes.get("zero_point"):
            return "it has neither groups nor zero points"
        if len(node.inputs) < 3 or node.inputs[2] is None:
            return "it takes a scale per column"
        return super().refuses(node, context)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """About six times the instructions of a product."""
        return 3 * super().cost(node, form, context)
