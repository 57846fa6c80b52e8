"""The bounds of a Clip: 6 that became 3, or that of another activation."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import constant, nodes_of, set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class ScaleBoundsOptions(Occurrences):
    """Options of scale-bounds."""

    factor: float = option(0.5, "what a bound is multiplied by", low=0.0)


@mutations.register("scale-bounds")
class ScaleBounds(Mutation):
    """Multiplies one bound of a Clip."""

    name = "scale-bounds"
    summary = "use another bound in a Clip"
    category = "attribute"
    fault = "attribute"
    Options = ScaleBoundsOptions
    options: ScaleBoundsOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Clip"):
            for index in range(1, len(node.inputs)):
                bound = constant(node.inputs[index])
                if bound is not None and np.isfinite(bound).all() and bound.any():
                    yield Site(str(node.name), f"input {index}")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        bound = constant(node.inputs[site.number])
        assert bound is not None
        set_constant(graph, node, site.number, (bound * self.options.factor).astype(bound.dtype))
