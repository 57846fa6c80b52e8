"""Softmax of bytes in fixed-point arithmetic.

Source: TFLite's reference kernels.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel
from dlas.kernels.layout import Layout


@kernels.register("int8-softmax")
class Int8Softmax(ByteKernel):
    """Input 1 holds the 256 exponentials there can be; what remains is a sum and a reciprocal."""

    name = "int8-softmax"
    ops: ClassVar[tuple[str, ...]] = ("QSoftmax",)
    summary = "8-bit softmax along the last axis"
    steps = 16.0

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain."""
        return (Form.all(node, Layout.PLAIN),)
