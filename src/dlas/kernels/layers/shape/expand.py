"""Repetition."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece


@kernels.register("expand")
class Expand(MoveKernel):
    """Expand repeats axes of length 1, Tile whole axes; the shape of the output says how often."""

    name = "expand"
    ops: ClassVar[tuple[str, ...]] = ("Expand", "Tile")
    summary = "repetition along axes"

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy from a view that stands still along repeated axes."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        if node.op == "Expand":
            return [Piece(0, x, 0, y)]
        places: list[int] = []
        seen: list[int] = []
        for size, whole in zip(x.shape, y.shape, strict=True):
            places += [whole // size if size else 1, size]
            seen += [1, size]
        return [Piece(0, x.reshape(seen), 0, y.reshape(places))]
