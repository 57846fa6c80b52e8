"""Mean of the bytes that each window sees of the image.

Source: TFLite's reference kernels.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes


@kernels.register("int8-average-pool")
class Int8AveragePool(ByteKernel):
    """Padding does not count; halves go away from zero; scale and zero point stay."""

    name = "int8-average-pool"
    ops: ClassVar[tuple[str, ...]] = ("QAveragePool",)
    summary = "8-bit average pool"
    steps = 4.0

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes."""
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        return ""
