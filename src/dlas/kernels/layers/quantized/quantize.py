"""float32 to bytes with one scale.

Source: TFLite QUANTIZE (halves away from zero) and ONNX QuantizeLinear (to even).
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes
from dlas.kernels.layout import Layout


@kernels.register("quantize")
class Quantize(ByteKernel):
    """``rounding`` is ``onnx`` or one of TFLite's."""

    name = "quantize"
    ops: ClassVar[tuple[str, ...]] = ("Quantize",)
    summary = "float32 to 8 bits"
    steps = 8.0

    def refuses(self, node: Node, context: Context) -> str:
        """float32 in, bytes out."""
        if node.operand(0).dtype != "float32" or not is_bytes(node.output):
            return "it takes float32 and gives int8 or uint8"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain."""
        return (Form.all(node, Layout.PLAIN),)
