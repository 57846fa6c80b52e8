"""A border around a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, map_forms


@kernels.register("pad")
class Pad(MoveKernel):
    """Constant, edge, reflect and wrap; negative pads cut. Blocked where no channels are added."""

    name = "pad"
    ops: ClassVar[tuple[str, ...]] = ("Pad",)
    summary = "a border around a tensor"

    def refuses(self, node: Node, context: Context) -> str:
        """Pads that the network computes, modes it does not know, and borders wider than what they mirror."""
        if any(i is not None and i.constant is None for i in node.inputs[1:]):
            return "its pads are computed by the network"
        mode, shape = node.attributes.get("mode", "constant"), node.operand(0).shape
        if mode not in ("constant", "edge", "reflect", "wrap"):
            return f"its mode is {mode}, it has constant, edge, reflect and wrap"
        spare = {"reflect": 1, "edge": -np.inf, "wrap": 0, "constant": -np.inf}[mode]
        pads = self.pads(node)
        if mode != "constant" and any(p < 0 for pair in pads for p in pair):
            return f"negative pads in mode {mode}"
        if any(p > size - spare for pair, size in zip(pads, shape, strict=True) for p in pair):
            return f"its border is wider than what mode {mode} can fill it with"
        return ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """The layout of maps where the channels stay, and plain."""
        pads = self.pads(node)
        return map_forms(
            node, in_blocks=len(pads) == 4 and pads[1] == (0, 0) and bool(np.isfinite(self.fill(node)).all())
        )

    def fill(self, node: Node) -> np.ndarray:
        """The third input, or the attribute of opset 2."""
        constant = node.constant(2)
        value = node.attributes.get("value", 0) if constant is None or not constant.size else constant.item()
        return np.full(1, value, node.output.dtype)

    def pads(self, node: Node) -> list[tuple[int, int]]:
        """Before and after, for each axis."""
        rank = len(node.operand(0).shape)
        constant = node.constant(1)
        given = [int(p) for p in (node.attributes["pads"] if constant is None else constant.ravel())]
        axes = node.constant(3)
        pads = [(0, 0)] * rank
        chosen = range(rank) if axes is None else axes.ravel().tolist()
        for index, axis in enumerate(chosen):
            pads[axis] = (given[index], given[index + len(given) // 2])
        return pads

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """The middle, then axis by axis both borders, so that corners are copied from borders."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        pads = self.pads(node)
        pads += [(0, 0)] * (y.ndim - len(pads))
        seen = [slice(max(0, -a), size - max(0, -b)) for (a, b), size in zip(pads, x.shape, strict=True)]
        place = [slice(max(0, a), size - max(0, b)) for (a, b), size in zip(pads, y.shape, strict=True)]
        pieces = [Piece(0, x[tuple(seen)], 0, y[tuple(place)])]
        mode = node.attributes.get("mode", "constant")
        for axis, (before, after) in enumerate(pads):
            first, last = place[axis].start, place[axis].stop
            for count, target, source in (
                (before, slice(0, first), _source(mode, first, last, before, front=True)),
                (after, slice(last, y.shape[axis]), _source(mode, first, last, after, front=False)),
            ):
                if count <= 0:
                    continue
                here = y[(*place[:axis], target, *place[axis + 1 :])]
                if mode == "constant":
                    pieces.append(Piece(-1, np.zeros(1, y.dtype), 0, here))
                else:
                    pieces.append(Piece(-2, y[(*place[:axis], source, *place[axis + 1 :])], 0, here))
            place[axis] = slice(0, y.shape[axis])
        return pieces


def _source(mode: str, first: int, last: int, count: int, *, front: bool) -> slice:
    """What fills a border of ``count``, counted along the output whose middle is [first, last)."""
    if mode == "edge":
        return slice(first, first + 1) if front else slice(last - 1, last)
    if mode == "wrap":
        return slice(last - count, last) if front else slice(first, first + count)
    if front:
        return slice(first + count, first, -1)
    stop = last - 2 - count
    return slice(last - 2, None if stop < 0 else stop, -1)
