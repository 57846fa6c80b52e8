"""Mean over height and width, with another scale for the output.

Source: TFLite's reference kernels.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes


@kernels.register("int8-mean")
class Int8Mean(ByteKernel):
    """The division is part of the factor."""

    name = "int8-mean"
    ops: ClassVar[tuple[str, ...]] = ("QMean",)
    summary = "8-bit global mean"
    steps = 1.0

    def refuses(self, node: Node, context: Context) -> str:
        """Feature maps of bytes."""
        if not is_bytes(node.operand(0), 4) or not is_bytes(node.output, 4):
            return "it takes and gives int8 or uint8 feature maps (N, C, H, W)"
        return ""
