"""The slope of a leaky activation: frameworks have other defaults (0.01, 0.2, 0.3)."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import nodes_of
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations

_DEFAULT = {"LeakyRelu": 0.01, "Elu": 1.0, "Celu": 1.0, "HardSigmoid": 0.2, "ThresholdedRelu": 1.0}


@dataclass(frozen=True)
class ScaleAlphaOptions(Occurrences):
    """Options of scale-alpha."""

    factor: float = option(3.0, "what alpha is multiplied by", low=0.0)


@mutations.register("scale-alpha")
class ScaleAlpha(Mutation):
    """Multiplies alpha of LeakyRelu, Elu, Celu, HardSigmoid or ThresholdedRelu."""

    name = "scale-alpha"
    summary = "use another alpha in an activation"
    category = "attribute"
    fault = "attribute"
    Options = ScaleAlphaOptions
    options: ScaleAlphaOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *_DEFAULT):
            yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        alpha = node.attributes.get_float("alpha", _DEFAULT[node.op_type]) * self.options.factor
        node.attributes["alpha"] = ir.AttrFloat32("alpha", alpha)
