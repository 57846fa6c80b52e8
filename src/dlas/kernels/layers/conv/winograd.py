"""Winograd convolution, F(4x4, 3x3) and F(2x2, 3x3), on the blocked layout.

Source: Lavin and Gray, "Fast Algorithms for Convolutional Neural Networks", 2016; interpolation points 0, +-sqrt(1/2),
+-sqrt(2) for F(4x4). Largest error seen, relative to the largest output: 4e-6 with tiles of 4 and 1e-6 with tiles of 2
(512 channels of normally distributed values), against 3e-7 of the direct sums.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import replace
from typing import Any, ClassVar

from dlas.kernels.kernel import Context, Form, NativeKernel, Node, kernels
from dlas.kernels.layout import Halo, Layout, Storage

_TRANSFORM = {2: 60, 4: 180}  # cycles for one block of one tile, there or back
_RATE = 0.9  # of the peak
_DIRECT_RATE = 0.9  # of spatial-pack
_LATENCY = 5  # accumulators that a multiplication needs beside it to reach full speed


@kernels.register("winograd")
class Winograd(NativeKernel):
    """2.25 or 4 times fewer multiplications. An attribute ``tile`` (2 or 4) overrules the choice of the tile."""

    name = "winograd"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "3 x 3 convolution by minimal filtering, not exact to the last digits"
    exact = False
    rate = _RATE

    def refuses(self, node: Node, context: Context) -> str:
        """3 x 3, stride 1, dilation 1, one group, and a map on which it is the faster way."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        given = node.attributes
        if (
            tuple(weight.shape[2:]) != (3, 3)
            or max(*given["strides"], *given["dilations"], given["group"]) > 1
        ):
            return "it is for windows of 3 x 3 with stride 1, dilation 1 and one group"
        if given.get("tile", 4) not in (2, 4):
            return f"it has tiles of 2 and 4, the node asks for {given['tile']}"
        if "tile" not in given and _seconds(node, _tile(node, context.block), context.block) > _direct(
            node, context.block
        ):
            return f"tiles waste too much of a map of {node.output.shape[2]} x {node.output.shape[3]}"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked; the halo also covers what the last tiles read beyond the padding."""
        tile, (top, left, bottom, right) = _tile(node, context.block), node.attributes["pads"]
        height, width = node.output.shape[2:]
        halo = Halo(top, left, bottom + -height % tile, right + -width % tile)
        return (Form.all(node, Layout.BLOCKED, halo=halo),)

    def cost(self, node: Node, form: Form, context: Context) -> float:
        """Products and transforms, or the time that the larger weights take to arrive."""
        return _seconds(node, _tile(node, context.block), context.block)

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The native kernel with the chosen tile."""
        tile = _tile(node, context.block)
        return super().prepare(
            replace(node, attributes={**node.attributes, "tile": tile}), inputs, outputs, context
        )


def _tile(node: Node, block: int) -> int:
    given = node.attributes.get("tile")
    return int(given) if given else min((4, 2), key=lambda tile: _seconds(node, tile, block))


def _seconds(node: Node, tile: int, block: int) -> float:
    batch, _, height, width = node.output.shape
    outs, ins = (-(-size // block) for size in node.operand(1).shape[:2])
    tiles = batch * -(-height // tile) * -(-width // tile)
    chunk = next(size for size in (4, 3, 2, 1) if outs % size == 0)
    products = (tile + 2) ** 2 * ins * block * outs / chunk * max(chunk * tiles, _LATENCY)
    transforms = tiles * (ins + outs) * _TRANSFORM[tile]
    weights = (tile + 2) ** 2 * ins * outs * block**2 * 4
    arrive = weights / (4e10 if weights < 16 << 20 else 1.8e10)
    return 1e-6 + max((products + transforms) / (3e9 * _RATE), arrive)


def _direct(node: Node, block: int) -> float:
    outs, ins = (-(-size // block) for size in node.operand(1).shape[:2])
    pixels = node.output.shape[0] * node.output.shape[2] * node.output.shape[3]
    return 1e-6 + pixels * 9 * ins * outs * block / (3e9 * _DIRECT_RATE)
