"""Matrix product of bytes with constant weights, the convolution's tiles over rows.

Source: the integer arithmetic of TFLite's reference kernels and of ONNX QLinearMatMul.
"""

from __future__ import annotations

from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.quantized._bytes import PRODUCTS, is_bytes


@kernels.register("int8-dense")
class Int8Dense(NativeKernel):
    """The convolution's tiles over rows of a matrix."""

    name = "int8-dense"
    ops: ClassVar[tuple[str, ...]] = ("QDense",)
    summary = "8-bit matrix product with constant weights (O, I)"
    rate = 0.7

    def refuses(self, node: Node, context: Context) -> str:
        """Matrices of bytes, weights int8 (or int16)."""
        weight = node.constant(1)
        if not is_bytes(node.operand(0), 2) or not is_bytes(node.output, 2):
            return "it takes and gives int8 or uint8 matrices (N, I)"
        if weight is None or weight.dtype not in (np.int8, np.int16):
            return "its weights are constant int8, or int16"
        return ""

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """As the convolution; a single row waits for its weights."""
        outs, ins = node.operand(1).shape
        rows = node.operand(0).shape[0]
        return 1e-6 + PRODUCTS * rows * -(-outs // context.block) * (-(-ins // 4) + 6) / self.rate
