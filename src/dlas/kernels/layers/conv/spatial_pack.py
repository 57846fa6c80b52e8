"""Convolution on the blocked layout: a vector of output channels by a row of pixels.

Source: the oc-vector form of grouped spatial pack convolution (GSPC), with G = 1 or groups of whole blocks.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layout import Layout


@kernels.register("spatial-pack")
class SpatialPack(NativeKernel):
    """Register tiles of up to 16 pixels by 1 to 4 blocks of output channels; weights are packed once."""

    name = "spatial-pack"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "dense convolution, blocks of output channels in registers"
    rate = 0.9
    version = 2
    in_place: ClassVar[tuple[int, ...]] = (3,)

    def refuses(self, node: Node, context: Context) -> str:
        """Groups must be whole blocks of channels, rows have strides of 1 or 2, weights are constant."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        groups = node.attributes["group"]
        outs, ins = weight.shape[0] // groups, weight.shape[1]
        if groups > 1 and (outs % context.block or ins % context.block):
            return f"groups of {ins} to {outs} channels are not whole blocks of {context.block}"
        if node.attributes["strides"][1] > 2:
            return f"its stride along the row is {node.attributes['strides'][1]}, it has 1 and 2"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, with the padding as a halo around the input."""
        return (Form.all(node, Layout.BLOCKED, halo=padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Lanes of the last block that hold no output channel work as well."""
        outs, block = node.operand(1).shape[0], context.block
        return super().cost(node, form, context) * (-(-outs // block) * block / outs)
