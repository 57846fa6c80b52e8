"""Sum of two maps of bytes with scales of their own, rounded as TFLite or XNNPACK does.

Source: TFLite's reference kernels.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel, is_bytes


@kernels.register("int8-add")
class Int8Add(ByteKernel):
    """Both are brought to a common scale with 20 more bits, added, and brought back."""

    name = "int8-add"
    ops: ClassVar[tuple[str, ...]] = ("QAdd",)
    summary = "8-bit addition"
    steps = 12.0

    def refuses(self, node: Node, context: Context) -> str:
        """Two maps of one shape, or the second of one pixel; the roundings of TFLite."""
        a, b, y = node.operand(0), node.operand(1), node.output
        if not is_bytes(a) or not is_bytes(b) or not is_bytes(y) or b.constant is not None:
            return "it takes two int8 or uint8 values that are not constant"
        pixel = (*y.shape[:2], 1, 1) if len(y.shape) == 4 else y.shape
        if a.shape != y.shape or b.shape not in (y.shape, pixel):
            return f"it takes one shape, or one pixel as the second, not {list(a.shape)} and {list(b.shape)}"
        if node.attributes.get("rounding") == "onnx":
            return "it rounds as TFLite and XNNPACK do"
        return ""
