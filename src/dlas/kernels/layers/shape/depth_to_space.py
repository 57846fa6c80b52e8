"""Channels to pixels and back."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece


@kernels.register("depth-to-space")
class DepthToSpace(MoveKernel):
    """DepthToSpace in both modes (DCR, CRD), SpaceToDepth."""

    name = "depth-to-space"
    ops: ClassVar[tuple[str, ...]] = ("DepthToSpace", "SpaceToDepth")
    summary = "channels to pixels and back"

    def refuses(self, node: Node, context: Context) -> str:
        """Only maps have channels and pixels."""
        return "" if len(node.operand(0).shape) == 4 else "it takes maps (N, C, H, W)"

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        size = int(node.attributes["blocksize"])
        deep, wide = (x, y) if node.op == "DepthToSpace" else (y, x)
        n, channels, h, w = wide.shape
        wide = wide.reshape(n, channels, h // size, size, w // size, size)
        if node.op == "DepthToSpace" and node.attributes.get("mode", "DCR") == "CRD":
            deep = deep.reshape(n, channels, size, size, h // size, w // size).transpose(0, 1, 4, 2, 5, 3)
        else:
            deep = deep.reshape(n, size, size, channels, h // size, w // size).transpose(0, 3, 4, 1, 5, 2)
        return [Piece(0, deep, 0, wide) if node.op == "DepthToSpace" else Piece(0, wide, 0, deep)]
