"""Convolution with block sparse weights: blocks of one vector of output channels by one tap of an input channel."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layers.conv._window import padding
from dlas.kernels.layout import Layout

LEAST_SPARSITY = 0.05  # of blocks; the list of those that stay costs next to nothing


@kernels.register("bsr")
class Bsr(NativeKernel):
    """Blocks that are all 0 are left out when it is prepared; what stays runs at the speed of a dense convolution."""

    name = "bsr"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "weights that are 0 for whole vectors of output channels"
    rate = 0.9

    def refuses(self, node: Node, context: Context) -> str:
        """As `spatial-pack`; and there must be blocks to leave out."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        groups = node.attributes["group"]
        outs, ins = weight.shape[0] // groups, weight.shape[1]
        if groups > 1 and (outs % context.block or ins % context.block):
            return f"groups of {ins} to {outs} channels are not whole blocks of {context.block}"
        if node.attributes["strides"][1] > 2:
            return f"its stride along the row is {node.attributes['strides'][1]}, it has 1 and 2"
        sparsity = 1 - _density(weight, context.block)
        if sparsity < LEAST_SPARSITY:
            return f"{sparsity:.0%} of its blocks of {context.block} output channels are 0"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked, with the padding as a halo around the input."""
        return (Form.all(node, Layout.BLOCKED, halo=padding(node)),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Blocks that stay; lanes of the last one that hold no channel work as well."""
        weight = node.operand(1)
        outs = weight.shape[0]
        waste = -(-outs // context.block) * context.block / outs
        density = 1.0 if weight.constant is None else _density(weight.constant, context.block)
        return 2e-6 + super().cost(node, form, context) * waste * density


def _density(weight: np.ndarray, block: int) -> float:
    """Share of the blocks that are not 0."""
    flat = weight.reshape(len(weight), -1)
    blocks = -(-len(flat) // block)
    whole = np.zeros((blocks * block, flat.shape[1]), bool)
    whole[: len(flat)] = flat != 0
    return float(whole.reshape(blocks, block, -1).any(axis=1).mean()) if flat.size else 1.0
