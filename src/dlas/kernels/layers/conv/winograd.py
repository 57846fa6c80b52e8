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

_TRANSFORM = {2: 60, 4: 160}  # cycles for one block of one tile, there or back
_RATE = 0.9  # of the peak
_DIRECT_RATE = {True: 0.85, False: 0.9}  # of gspc, which shares blocks among groups, and of spatial-pack
_LATENCY = 5  # accumulators that a multiplication needs beside it to reach full speed


@kernels.register("winograd")
class Winograd(NativeKernel):
    """2.25 or 4 times fewer multiplications. An attribute ``tile`` (2 or 4) overrules the choice of the tile.

    Groups are whole blocks of channels, or a power of two of them that makes up blocks: 2, 4, 8, ... in and out.
    """

    name = "winograd"
    ops: ClassVar[tuple[str, ...]] = ("Conv",)
    summary = "3 x 3 convolution by minimal filtering, not exact to the last digits"
    exact = False
    version = 2
    rate = _RATE

    def refuses(self, node: Node, context: Context) -> str:
        """3 x 3, stride 1, dilation 1, groups that fit blocks, and a map on which it is the faster way."""
        x, weight = node.operand(0), node.constant(1)
        if not x.is_feature_map or weight is None:
            return "it takes float32 feature maps (N, C, H, W) and constant weights"
        given = node.attributes
        if tuple(weight.shape[2:]) != (3, 3) or max(*given["strides"], *given["dilations"]) > 1:
            return "it is for windows of 3 x 3 with stride 1 and dilation 1"
        groups, block = given["group"], context.block
        outs, ins = weight.shape[0] // groups, weight.shape[1]
        if groups > 1 and (outs % block or ins % block) and not _shares_blocks(node, block):
            return f"groups of {ins} to {outs} channels neither are nor make up blocks of {block}"
        if given.get("tile", 4) not in (2, 4):
            return f"it has tiles of 2 and 4, the node asks for {given['tile']}"
        if "tile" not in given and _seconds(node, _tile(node, block), block) > _direct(node, block):
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


def _shares_blocks(node: Node, block: int) -> bool:
    """Whether a block is one group or several, so that the sums of a block need one block of inputs."""
    groups, (filters, ins) = node.attributes["group"], node.operand(1).shape[:2]
    return groups > 1 and filters == groups * ins and ins in (2, 4, 8, 16) and ins <= block


def _parts(node: Node, block: int) -> tuple[int, int, int]:
    """What is computed one after the other, and of each the blocks of outputs and the channels they sum over."""
    groups, (filters, ins) = node.attributes["group"], node.operand(1).shape[:2]
    if _shares_blocks(node, block):
        return -(-filters // block), 1, ins
    return groups, -(-filters // groups // block), -(-ins // block) * block


def _seconds(node: Node, tile: int, block: int) -> float:
    batch, _, height, width = node.output.shape
    parts, outs, ins = _parts(node, block)
    tiles = batch * -(-height // tile) * -(-width // tile)
    chunk = next(size for size in (4, 3, 2, 1) if outs % size == 0)
    products = (tile + 2) ** 2 * ins * outs / chunk * max(chunk * tiles, _LATENCY)
    transforms = tiles * (-(-ins // block) + outs) * _TRANSFORM[tile]
    weights = (tile + 2) ** 2 * parts * ins * outs * block * 4
    arrive = weights / (4e10 if weights < 16 << 20 else 1.8e10)
    return 1e-6 + max(parts * (products + transforms) / (3e9 * _RATE), arrive)


def _direct(node: Node, block: int) -> float:
    parts, outs, ins = _parts(node, block)
    pixels = node.output.shape[0] * node.output.shape[2] * node.output.shape[3]
    rate = _DIRECT_RATE[_shares_blocks(node, block) and ins < block]
    return 1e-6 + pixels * 9 * parts * ins * outs / (3e9 * rate)
