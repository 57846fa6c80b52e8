"""A quantisation scale off by a factor."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import set_constant
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations
from dlas.verify.mutate.operators.quantisation._parameters import known, quantised


@dataclass(frozen=True)
class ScaleFactorOptions(Occurrences):
    """Options of scale-factor."""

    factor: float = option(2.0, "what the scale is multiplied by", low=0.0)


@mutations.register("scale-factor")
class ScaleFactor(Mutation):
    """Multiplies the scale of one quantise or dequantise step."""

    name = "scale-factor"
    summary = "multiply a quantisation scale"
    category = "quantisation"
    fault = "parameter"
    Options = ScaleFactorOptions
    options: ScaleFactorOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node, scale, _ in quantised(graph):
            yield Site(str(node.name), f"input {scale}")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        scale = known(node, site.number)
        assert scale is not None
        set_constant(graph, node, site.number, (scale * self.options.factor).astype(scale.dtype))
