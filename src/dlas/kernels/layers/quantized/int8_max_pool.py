"""Largest byte that each window sees of the image.

Source: TFLite's reference kernels.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes


@kernels.register("int8-max-pool")
class Int8MaxPool(ByteKernel):
    """Padding does not count; scale and zero point stay."""

    name = "int8-max-pool"
    ops: ClassVar[tuple[str, ...]] = ("QMaxPool",)
    summary = "8-bit max pool"
    steps = 2.0

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes."""
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        return ""
