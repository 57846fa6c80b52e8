"""Biases that are a little off, as in a published pair of an autoencoder and its conversion."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import CONVOLUTIONS, constant, nodes_of, set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations


@dataclass(frozen=True)
class PerturbBiasOptions(Occurrences):
    """Options of perturb-bias."""

    share: float = option(0.05, "standard deviation of the error, relative to the largest bias", low=0.0)
    seed: int = option(0, "seed of the error", low=0)


@mutations.register("perturb-bias")
class PerturbBias(Mutation):
    """Adds noise to the bias of a convolution or Gemm."""

    name = "perturb-bias"
    summary = "put a small error on the biases of a layer"
    category = "parameter"
    fault = "parameter"
    Options = PerturbBiasOptions
    options: PerturbBiasOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *CONVOLUTIONS, "Gemm"):
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if bias is not None and np.issubdtype(bias.dtype, np.floating) and bias.any():
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        bias = constant(node.inputs[2])
        assert bias is not None
        rng = np.random.default_rng(self.options.seed)
        error = rng.standard_normal(bias.shape) * self.options.share * np.abs(bias).max()
        set_constant(graph, node, 2, (bias + error).astype(bias.dtype))
