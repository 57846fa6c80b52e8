"""Convolution of bytes: products four at a time in 32-bit sums, back to bytes as TFLite or ONNX rounds.

Source: the integer arithmetic of TFLite's reference kernels and of ONNX QLinearConv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layers.quantized._bytes import PRODUCTS, framed, is_bytes


@kernels.register("int8-conv")
class Int8Conv(NativeKernel):
    """Register tiles of up to 12 pixels by 1 to 4 vectors of output channels; a row of the window is one run."""

    name = "int8-conv"
    ops: ClassVar[tuple[str, ...]] = ("QConv",)
    summary = "dense and grouped 8-bit convolution, VNNI where there is"
    rate = 0.7

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes, weights int8 (or int16: uint8 less their zero point)."""
        weight = node.constant(1)
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        if weight is None or weight.dtype not in (np.int8, np.int16):
            return "its weights are constant int8, or int16"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Nhwc, with the padding as a halo of the input's zero point."""
        return (framed(node, padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Output channels in whole vectors; the way back to bytes counts as six steps."""
        weight, out = node.operand(1).shape, node.output.shape
        vectors = -(-weight[0] // context.block)
        steps = -(-int(np.prod(weight[1:])) // 4) * node.attributes.get("group", 1)
        return 1e-6 + PRODUCTS * out[0] * out[2] * out[3] * vectors * (steps + 6) / self.rate
