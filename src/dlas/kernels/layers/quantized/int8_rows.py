"""A feature map as a plain tensor in the order N, H, W, C.

Source: an operator of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel
from dlas.kernels.layout import Layout


@kernels.register("int8-rows")
class Int8Rows(ByteKernel):
    """Rows are copied; the result has any shape of as many bytes."""

    name = "int8-rows"
    ops: ClassVar[tuple[str, ...]] = ("QRows",)
    summary = "nhwc to plain bytes N, H, W, C"
    steps = 1.0

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """From nhwc to plain."""
        return (Form((Layout.NHWC,), (Layout.PLAIN,)),)
