"""A plain tensor in the order N, H, W, C as a feature map.

Source: an operator of the engine.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel
from dlas.kernels.layout import Layout


@kernels.register("int8-image")
class Int8Image(ByteKernel):
    """Rows are copied, into a halo where there is one."""

    name = "int8-image"
    ops: ClassVar[tuple[str, ...]] = ("QImage",)
    summary = "plain bytes N, H, W, C to nhwc"
    steps = 1.0

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """From plain to nhwc."""
        return (Form((Layout.PLAIN,), (Layout.NHWC,)),)
