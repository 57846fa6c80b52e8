"""Convolution of the network's input: few channels, plain in, blocked out.

Source: the oc-vector form of spatial pack convolution, with the input read as it arrives.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layout import Layout

_CHANNELS = 8  # beyond these a blocked input wastes fewer lanes than the copy costs


@kernels.register("first-layer")
class FirstLayer(NativeKernel):
    """Copies a band of rows into its zero padding and reads it by phases of the stride; any window."""

    name = "first-layer"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "dense convolution of an image with few channels, straight to blocks of channels"
    rate = 0.85

    def refuses(self, node: Node, context: Context) -> str:
        """At most 8 input channels, one group, constant weights."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        if node.attributes["group"] != 1:
            return f"it has no groups, the node has {node.attributes['group']}"
        if weight.shape[1] > _CHANNELS:
            return f"it is for at most {_CHANNELS} input channels, the node has {weight.shape[1]}"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Plain image in, blocked out; a fused residual is blocked as well."""
        inputs = tuple(
            Layout.BLOCKED if index == 3 and given else Layout.PLAIN
            for index, given in enumerate(node.inputs)
        )
        return (Form(inputs, (Layout.BLOCKED,)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Lanes of the last block that hold no channel work as well; the copy is a few per cent."""
        filters, block = node.operand(1).shape[0], context.block
        return super().cost(node, form, context) * (-(-filters // block) * block / filters)
