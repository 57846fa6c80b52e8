"""What the convolutions say of their window."""

from __future__ import annotations

from dlas.kernels.kernel import Node
from dlas.kernels.layout import Halo


def padding(node: Node) -> Halo:
    """The pads of a Conv or pool as a halo, with what the window reads beyond them.

    The last window ends at (O - 1) stride + (K - 1) dilation + 1 pixels, which may be short of the padded size; pads
    that are never read need not be there, but a window of one tile never reads past its row either.
    """
    top, left, bottom, right = node.attributes["pads"]
    return Halo(top, left, bottom, right)
