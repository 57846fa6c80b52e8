"""Output channels in another order, which nothing after the layer undoes."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import constant, set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.parameter._weights import output_axis, weight_of, weighted


@dataclass(frozen=True)
class PermuteChannelsOptions(Occurrences):
    """Options of permute-channels."""

    seed: int = option(0, "seed of the order", low=0)


@mutations.register("permute-channels")
class PermuteChannels(Mutation):
    """Permutes weights and bias of one layer; at the last layer that permutes the labels."""

    name = "permute-channels"
    summary = "put the output channels of a layer in another order"
    category = "parameter"
    fault = "parameter"
    Options = PermuteChannelsOptions
    options: PermuteChannelsOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, weight in weighted(graph):
            axis = output_axis(node)
            if axis is not None and weight.ndim > 1 and weight.shape[axis] > 1:
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        weight, axis = weight_of(node), output_axis(node)
        assert axis is not None
        order = self._order(weight.shape[axis])
        set_constant(graph, node, 1, np.take(weight, order, axis))
        bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
        if bias is not None and bias.ndim and bias.shape[-1] == len(order):
            set_constant(graph, node, 2, np.take(bias, order, -1))

    def _order(self, count: int) -> np.ndarray:
        rng = np.random.default_rng(self.options.seed)
        order = rng.permutation(count)
        return np.roll(order, 1) if (order == np.arange(count)).all() else order
