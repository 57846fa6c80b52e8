"""Weights rounded far more coarsely than asked for, in one layer."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.parameter._weights import weight_of, weighted


@dataclass(frozen=True)
class RoundWeightsOptions(Occurrences):
    """Options of round-weights."""

    bits: int = option(4, "bits per weight; the grid is symmetric and per tensor", low=2, high=16)


@mutations.register("round-weights")
class RoundWeights(Mutation):
    """Rounds the weights of a layer to a coarse grid; often no label changes."""

    name = "round-weights"
    summary = "round the weights of a layer to a few bits"
    category = "parameter"
    fault = "parameter"
    Options = RoundWeightsOptions
    options: RoundWeightsOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, weight in weighted(graph):
            if weight.any():
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        weight = weight_of(node)
        step = np.abs(weight).max() / (2 ** (self.options.bits - 1) - 1)
        set_constant(graph, node, 1, (np.round(weight / step) * step).astype(weight.dtype))
