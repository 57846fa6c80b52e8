"""Depthwise convolution of bytes: four taps of up to 64 channels at a time.

Source: the integer arithmetic of TFLite's reference kernels and of ONNX QLinearConv.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layers.quantized._bytes import PRODUCTS, framed, is_bytes


@kernels.register("int8-depthwise")
class Int8Depthwise(NativeKernel):
    """Taps are interleaved, once for two neighbours where the window moves by one pixel and is 2 or 3 wide."""

    name = "int8-depthwise"
    ops: ClassVar[tuple[str, ...]] = ("QDepthwise",)
    summary = "8-bit depthwise convolution, one filter for each channel"

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes, weights int8 (or int16) (C, 1, KH, KW)."""
        weight = node.constant(1)
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        if weight is None or weight.dtype not in (np.int8, np.int16):
            return "its weights are constant int8, or int16"
        if weight.shape[1] != 1 or weight.shape[0] != node.operand(0).shape[1]:
            return "it has one filter for each channel"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Nhwc, with the padding as a halo of the input's zero point."""
        return (framed(node, padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Three steps for four taps, and six for the way back to bytes."""
        n, channels, height, width = node.output.shape
        taps = -(-int(np.prod(node.operand(1).shape[2:])) // 4)
        return 1e-6 + PRODUCTS * n * height * width * -(-channels // context.block) * (3 * taps + 6)
