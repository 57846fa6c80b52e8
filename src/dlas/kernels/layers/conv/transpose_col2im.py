"""Transposed convolution as MatMul and col2im, gathered by phases of the stride."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layout import Halo, Layout

_PLAIN_RATE = 0.5  # of the peak, in the form without blocks


@kernels.register("transpose-col2im")
class TransposeCol2im(NativeKernel):
    """Every phase of the output is a small ordinary convolution; no product with an inserted zero is computed.

    Blocked where groups are whole blocks of channels (one group always is); plain for few output channels and for
    all other groups.
    """

    name = "transpose-col2im"
    ops: ClassVar[tuple[str, ...]] = ("ConvTranspose",)
    summary = "transposed convolution by phases of the stride, without products with zeros"
    rate = 0.8

    def refuses(self, node: Node, context: Context) -> str:
        """float32 feature maps and constant weights."""
        if not node.operand(0).is_feature_map or node.constant(1) is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain, and blocked where it can; the cheaper one first."""
        plain = Form.all(node, Layout.PLAIN)
        ins, outs = node.operand(1).shape[:2]
        groups = node.attributes["group"]
        if groups > 1 and (outs % context.block or ins // groups % context.block):
            return (plain,)
        blocked = Form.all(node, Layout.BLOCKED, halo=_reach(node))
        return sorted((blocked, plain), key=lambda form: self.cost(node, form, context))

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Lanes without a channel, or without a pixel of the phase, work as well."""
        block, groups = context.block, node.attributes["group"]
        if form.outputs[0] is Layout.BLOCKED:
            ins, outs = node.operand(1).shape[0] // groups, node.operand(1).shape[1]
            waste = np.prod([-(-size // block) * block / size for size in (ins, outs)])
            return super().cost(node, form, context) * float(waste)
        pixels = node.output.shape[3] / node.attributes["strides"][1]
        waste = -(-pixels // block) * block / pixels
        return super().cost(node, form, context) * float(waste) * self.rate / _PLAIN_RATE


def _reach(node: Node) -> Halo:
    # Output o reads input (o + left - tap * dilation) / stride; rows that lie outside are never read.
    given = node.attributes
    stride, dilation, left = given["strides"][1], given["dilations"][1], given["pads"][1]
    width, out = node.operand(0).shape[3], node.output.shape[3]
    before = ((given["kernel_shape"][1] - 1) * dilation - left) // stride
    after = (out - 1 + left) // stride - (width - 1)
    return Halo(0, max(0, before), 0, max(0, after))
