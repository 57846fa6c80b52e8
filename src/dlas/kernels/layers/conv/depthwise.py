"""Depthwise convolution on the blocked layout: a vector is one pixel of a block of channels."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layout import Layout


@kernels.register("depthwise")
class Depthwise(NativeKernel):
    """Up to 16 pixels in registers; a loaded pixel serves up to three taps of the window's row."""

    name = "depthwise"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "one filter per channel (blocked)"
    rate = 0.6
    in_place: ClassVar[tuple[int, ...]] = (3,)

    def refuses(self, node: Node, context: Context) -> str:
        """As many groups as channels, in and out."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        if weight.shape[1] != 1 or weight.shape[0] != node.attributes["group"]:
            outs = weight.shape[0] // node.attributes["group"]
            return f"groups of {weight.shape[1]} to {outs} channels are not 1 to 1"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, with the padding as a halo around the input."""
        return (Form.all(node, Layout.BLOCKED, halo=padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Arithmetic, and the feature maps, which seldom fit the nearest cache."""
        moved = sum(int(np.prod(o.shape, dtype=np.int64)) for o in (node.operand(0), node.output))
        return super().cost(node, form, context) + 1e-10 * moved
