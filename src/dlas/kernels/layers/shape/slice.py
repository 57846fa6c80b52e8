"""Part of a tensor."""

from __future__ import annotations

from collections.abc import Sequence
from typing import ClassVar

import numpy as np

from dlas.kernels.kernel import Context, Form, Node, kernels
from dlas.kernels.layers.shape._moving import MoveKernel, Piece, map_forms


@kernels.register("slice")
class Slice(MoveKernel):
    """Constant starts, ends, axes and steps, negative steps included."""

    name = "slice"
    ops: ClassVar[tuple[str, ...]] = ("Slice",)
    summary = "part of a tensor"

    def refuses(self, node: Node, context: Context) -> str:
        """Bounds that the network computes."""
        computed = any(i is not None and i.constant is None for i in node.inputs[1:])
        return "its bounds are computed by the network" if computed else ""

    def forms(self, node: Node, context: Context) -> Sequence[Form]:
        """Blocked where the channels stay whole blocks."""
        shape = node.operand(0).shape
        cut = self.slices(node)[1] if len(shape) == 4 else slice(None)
        start, _, step = cut.indices(shape[1] if len(shape) == 4 else 0)
        return map_forms(node, in_blocks=step == 1 and start % context.block == 0)

    def slices(self, node: Node) -> list[slice]:
        """One per axis."""
        shape = node.operand(0).shape
        names = ("starts", "ends", "axes", "steps")
        read: dict[str, list[int]] = {}
        for index, name in enumerate(names, 1):
            constant = node.constant(index)
            read[name] = (
                list(node.attributes.get(name, ())) if constant is None else constant.ravel().tolist()
            )
        cuts = [slice(None)] * len(shape)
        axes = read["axes"] or range(len(read["starts"]))
        steps = read["steps"] or [1] * len(read["starts"])
        for axis, start, end, step in zip(axes, read["starts"], read["ends"], steps, strict=True):
            cuts[axis] = _within(start, end, step, shape[axis])
        return cuts

    def pieces(
        self, node: Node, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray]
    ) -> list[Piece]:
        """One copy."""
        x, y = inputs[0], outputs[0]
        assert x is not None
        cuts = self.slices(node)
        if x.ndim == 5 and y.ndim == 5 and len(cuts) == 4:
            block = x.shape[4]
            start = cuts[1].indices(node.operand(0).shape[1])[0] // block
            cuts = [cuts[0], slice(start, start + y.shape[1]), cuts[2], cuts[3]]
        return [Piece(0, x[tuple(cuts)], 0, y)]


def _within(start: int, end: int, step: int, size: int) -> slice:
    """Bounds as ONNX clamps them, which for negative steps is not as Python does."""
    start, end = (b + size if b < 0 else b for b in (start, end))
    if step > 0:
        return slice(min(max(start, 0), size), min(max(end, 0), size), step)
    start, end = min(max(start, 0), size - 1), min(max(end, -1), size - 1)
    return slice(start, None if end < 0 else end, step)
