"""A range that was calibrated too narrow: what lies outside saturates."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import constant, new_constant, node_before
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.quantisation._parameters import known, quantised


@dataclass(frozen=True)
class ClipRangeOptions(Occurrences):
    """Options of clip-range."""

    share: float = option(0.5, "part of the range that is kept", low=0.0, high=1.0)


@mutations.register("clip-range")
class ClipRange(Mutation):
    """Inserts a Clip to a part of the range before a QuantizeLinear of one scale."""

    name = "clip-range"
    summary = "saturate before quantising"
    category = "quantisation"
    fault = "parameter"
    Options = ClipRangeOptions
    options: ClipRangeOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, scale, zero in quantised(graph):
            stored, real = known(node, zero), known(node, scale)
            if node.op_type != "QuantizeLinear" or stored is None or real is None or real.size != 1:
                continue
            narrow = stored.dtype in (np.int8, np.uint8, np.int16, np.uint16)
            if narrow and constant(node.inputs[0]) is None:
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        stored, real = known(node, 2), known(node, 1)
        assert stored is not None
        assert real is not None
        limits, zero = np.iinfo(stored.dtype), int(stored.reshape(-1)[0])
        bounds = [
            np.array((edge - zero) * float(real.reshape(-1)[0]) * self.options.share, real.dtype)
            for edge in (limits.min, limits.max)
        ]
        node_before(graph, node, 0, "Clip", [new_constant(graph, f"{node.name}.bound", b) for b in bounds])
