"""What the convolutions with sparse weights have in common."""

from __future__ import annotations

import numpy as np

from dlas.kernels.kernel import Context, Node

LEAST_SPARSITY = 0.5
_TILE = 8  # vectors of pixels in registers
_ROW = 60  # cycles to start and store one row of a tile
_L2 = 2**20  # bytes


def unfit(node: Node) -> str:
    """Why no sparse convolution takes a node, or an empty string."""
    weight = node.constant(1)
    if not node.operand(0).is_feature_map or weight is None:
        return "it takes float32 feature maps (N, C, H, W) and constant weights"
    sparsity = 1 - _entries(weight) / max(1, weight.size)
    if sparsity < LEAST_SPARSITY:
        return f"{sparsity:.0%} of its weights are 0, it takes {LEAST_SPARSITY:.0%} and more"
    return ""


def seconds(node: Node, context: Context, *, row: int, per_entry: float, gathers: bool) -> float:
    """Estimate on the scale of the dense convolutions (which reach 0.9 of their peak there).

    Args:
        node: A Conv.
        context: Machine.
        row: Pixels from one output row to the next, as they are computed.
        per_entry: Cycles of a vector of pixels for each weight that is not 0.
        gathers: Whether columns are gathered first.
    """
    weight = node.operand(1)
    entries = _entries(weight.constant) if weight.constant is not None else int(np.prod(weight.shape))
    n, outs, height, width = node.output.shape
    ins, kh, kw = weight.shape[1:]
    vectors = -(-((height - 1) * row + width) // context.block)
    passes = max(1.0, min(ins / 32, entries / max(1, outs) / 24))
    tiles = -(-vectors // _TILE)
    sums = entries * vectors * per_entry + outs * tiles * passes * _ROW
    if 8 * entries > _L2:  # every tile reads them again, from L3
        sums += 8 * entries * tiles / 16
    gathered = node.attributes["group"] * ins * kh * kw * vectors * 7 if gathers else 0
    moved = 6 * (np.prod(node.operand(0).shape[1:]) + np.prod(node.output.shape[1:])) / context.block
    return 2e-6 + n * float(sums + gathered + moved) / 2.7e9


def _entries(weight: np.ndarray) -> int:
    return int(np.count_nonzero(weight))
