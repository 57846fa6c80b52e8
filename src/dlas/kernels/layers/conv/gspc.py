"""Grouped convolution on the blocked layout: one vector holds output channels of several groups.

Source: grouped spatial pack convolution (GSPC), for groups of less than a block. The original gives each group tiles of
its own; here the input vector of a pixel is permuted so that every lane holds the channel that its group reads next,
and a permuted vector serves up to three taps of the window. The permutations run beside the multiplications.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layout import Layout


@kernels.register("gspc")
class Gspc(NativeKernel):
    """Any group sizes, strides, dilations and windows; fastest where the groups fill a block evenly."""

    name = "gspc"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "grouped convolution, several groups in one vector (blocked)"
    rate = 0.85
    in_place: ClassVar[tuple[int, ...]] = (3,)

    def refuses(self, node: Node, context: Context) -> str:
        """Groups that are whole blocks, and single channels, have kernels of their own."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        groups = node.attributes["group"]
        outs, ins = weight.shape[0] // groups, weight.shape[1]
        if groups == 1:
            return "the convolution has one group; spatial-pack does those"
        if outs == ins == 1:
            return "the convolution is depthwise; depthwise does those"
        if outs % context.block == 0 and ins % context.block == 0:
            return f"groups of {ins} to {outs} channels are whole blocks of {context.block}; spatial-pack does those"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, with the padding as a halo around the input."""
        return (Form.all(node, Layout.BLOCKED, halo=padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Lanes without work of their own, because a group straddles blocks, count like the others."""
        weight, groups = node.operand(1).shape, node.attributes["group"]
        passes = vector_passes(weight[0], weight[1], groups, context.block)
        taps = 1.0 if weight[3] > 1 and _taps_share_loads(node) else 1.8
        waste = passes * context.block / (weight[0] * weight[1])
        return 1e-6 + (super().cost(node, form, context) - 1e-6) * waste * taps


def vector_passes(outs: int, ins: int, groups: int, block: int) -> int:
    """Vectors of weights per tap, which is also how often a pixel is permuted.

    A block of outputs needs, from each block of inputs, as many as its most demanding output channel reads there.

    Args:
        outs: Output channels, all groups.
        ins: Input channels of one group.
        groups: Groups.
        block: Lanes of a vector.
    """
    total = 0
    for first in range(0, outs, block):
        most: dict[int, int] = {}
        for group in range(first * groups // outs, (min(first + block, outs) - 1) * groups // outs + 1):
            start, stop = group * ins, (group + 1) * ins
            for source in range(start // block, (stop - 1) // block + 1):
                shared = min(stop, (source + 1) * block) - max(start, source * block)
                most[source] = max(most.get(source, 0), shared)
        total += sum(most.values())
    return total


def _taps_share_loads(node: Node) -> bool:
    stride, dilation = node.attributes["strides"][1], node.attributes["dilations"][1]
    return stride == 1 or (stride == 2 and dilation == 1)
