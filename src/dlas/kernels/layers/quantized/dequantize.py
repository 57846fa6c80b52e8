"""Bytes to float32 with one scale.

Source: TFLite DEQUANTIZE and ONNX DequantizeLinear.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes
from dlas.kernels.layout import Layout


@kernels.register("dequantize")
class Dequantize(ByteKernel):
    """``(x - zero point) * scale`` in float32."""

    name = "dequantize"
    ops: ClassVar[tuple[str, ...]] = ("Dequantize",)
    summary = "8 bits to float32"
    steps = 4.0

    def refuses(self, node: Node, context: Context) -> str:
        """Bytes in, float32 out."""
        if not is_bytes(node.operand(0)) or node.output.dtype != "float32":
            return "it takes int8 or uint8 and gives float32"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain."""
        return (Form.all(node, Layout.PLAIN),)
