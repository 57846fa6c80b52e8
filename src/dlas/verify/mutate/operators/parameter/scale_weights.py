"""A weight tensor off by a factor, as when a scale is applied twice or forgotten."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.parameter._weights import weight_of, weighted


@dataclass(frozen=True)
class ScaleWeightsOptions(Occurrences):
    """Options of scale-weights."""

    factor: float = option(1.5, "what the weights are multiplied by")


@mutations.register("scale-weights")
class ScaleWeights(Mutation):
    """Multiplies the weights of one layer."""

    name = "scale-weights"
    summary = "multiply the weights of a layer"
    category = "parameter"
    fault = "parameter"
    Options = ScaleWeightsOptions
    options: ScaleWeightsOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, _ in weighted(graph):
            yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        weight = weight_of(node)
        set_constant(graph, node, 1, (weight * self.options.factor).astype(weight.dtype))
