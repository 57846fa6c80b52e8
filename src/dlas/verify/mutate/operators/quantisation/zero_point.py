"""A zero point that is off by one."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.quantisation._parameters import known, quantised


@dataclass(frozen=True)
class ZeroPointOptions(Occurrences):
    """Options of zero-point."""

    by: int = option(1, "what is added; where that leaves the dtype, it is subtracted", low=-16, high=16)


@mutations.register("zero-point")
class ZeroPoint(Mutation):
    """Moves the zero point of one quantise or dequantise step; int32 biases have none to move."""

    name = "zero-point"
    summary = "move a zero point by one"
    category = "quantisation"
    fault = "parameter"
    Options = ZeroPointOptions
    options: ZeroPointOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, _, zero in quantised(graph):
            stored = known(node, zero)
            if stored is not None and stored.dtype in (np.int8, np.uint8, np.int16, np.uint16):
                yield Site(str(node.name), f"input {zero}")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        stored = known(node, site.number)
        assert stored is not None
        limits = np.iinfo(stored.dtype)
        moved = stored.astype(np.int64) + self.options.by
        outside = (moved > limits.max) | (moved < limits.min)
        moved = np.where(outside, stored.astype(np.int64) - self.options.by, moved)
        set_constant(graph, node, site.number, moved.astype(stored.dtype))
