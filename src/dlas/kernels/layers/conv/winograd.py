"""Winograd convolution, F(4x4, 3x3) and F(2x2, 3x3), on the blocked layout.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layout import Halo, Layout


@kernels.register("winograd")
class Winograd(NativeKernel):
    """2.25 or 4 times fewer multiplications for 3 x 3 windows."""

    name = "winograd"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "3 x 3 convolution by minimal filtering, not exact to the last digits"
    exact = False
    rate = 0.9

    def refuses(self, node: Node, context: Context) -> str:
        """3 x 3, stride 1, dilation 1, one group."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        given = node.attributes
        if tuple(weight.shape[2:]) != (3, 3) or max(*given["strides"], *given["dilations"], given["group"]) > 1:
            return "it is for windows of 3 x 3 with stride 1, dilation 1 and one group"
        return ""

    def attributes(self, node: Node) -> dict[str, Any]:
        """With the tile's size."""
        return {**super().attributes(node), "tile": _tile(node)}

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked; the halo also covers what the last tiles read beyond the padding."""
        tile, (top, left, bottom, right) = _tile(node), node.attributes["pads"]
        height, width = node.output.shape[2:]
        return (Form.all(node, Layout.BLOCKED, halo=Halo(top, left, bottom + -height % tile, right + -width % tile)),)


def _tile(node: Node) -> int:
    return int(node.attributes.get("tile", 4))
