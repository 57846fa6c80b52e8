"""What the layers of bytes say of their tensors."""

from __future__ import annotations

from dlas.kernels.kernel import Form, Node, Operand
from dlas.kernels.layout import NO_HALO, Halo, Layout

PRODUCTS = 3e-10  # seconds of one step: four products in each lane of one vector


def is_bytes(operand: Operand, rank: int | None = None) -> bool:
    """Whether it is int8 or uint8, of ``rank`` axes."""
    return operand.dtype in ("int8", "uint8") and rank in (None, len(operand.shape))


def framed(node: Node, halo: Halo = NO_HALO) -> Form:
    """Nhwc, input 0 in a halo of its zero point."""
    return Form.all(node, Layout.NHWC, halo=halo, halo_byte=node.attributes.get("x_zero_point", 0) & 0xFF)
