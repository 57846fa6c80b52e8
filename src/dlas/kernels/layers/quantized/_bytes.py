"""What the layers of bytes say of their tensors."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, Operand
from dlas.kernels.layout import NO_HALO, Halo, Layout

PRODUCTS = 3e-10  # seconds of one step: four products in each lane of one vector


def is_bytes(operand: Operand, rank: int | None = None) -> bool:
    """Whether it is int8 or uint8, of ``rank`` axes."""
    return operand.dtype in ("int8", "uint8") and rank in (None, len(operand.shape))


def framed(node: Node, halo: Halo = NO_HALO) -> Form:
    """Nhwc, input 0 in a halo of its zero point."""
    return Form.all(node, Layout.NHWC, halo=halo, halo_byte=node.attributes.get("x_zero_point", 0) & 0xFF)


class ByteKernel(NativeKernel):
    """A kernel that reads and writes every byte once."""

    steps = 1.0  # vector instructions for each vector of bytes, roughly

    def refuses(self, node: Node, context: Context) -> str:
        """Bytes in, bytes out."""
        if not is_bytes(node.operand(0)) or not is_bytes(node.output):
            return "it takes and gives int8 or uint8"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Nhwc for maps, else plain."""
        return (framed(node),) if len(node.output.shape) == 4 else (Form.all(node, Layout.PLAIN),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Each byte of the larger of input and output takes its share of a vector."""
        size = max(int(np.prod(o.shape, dtype=np.int64)) for o in (node.operand(0), node.output))
        return 1e-6 + 3e-10 * self.steps * size / context.block
