"""What the kernels of packed weights have in common."""

from __future__ import annotations

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node


class PackedMatMul(NativeKernel):
    """A product with constant packed weights: input 1, and everything after it, has a value."""

    bits = 4.5  # of a weight in memory, scales included

    def refuses(self, node: Node, context: Context) -> str:
        """Packed weights, scales and bias must be constant."""
        if len(node.inputs) < 2 or node.constant(1) is None:
            return "it takes constant packed weights"
        if any(i is not None and i.constant is None for i in node.inputs[2:]):
            return "it takes constant scales, zero points and bias"
        return ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """The bytes of the weights once, or the products, whichever takes longer."""
        rows = int(np.prod(node.operand(0).shape[:-1], dtype=np.int64))
        weights = node.operand(0).shape[-1] * node.output.shape[-1]
        return 1e-6 + max(weights * self.bits / 8 / 25e9, rows * weights / (6e9 * context.block * self.rate))
