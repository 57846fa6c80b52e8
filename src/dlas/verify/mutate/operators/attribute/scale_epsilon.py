"""The epsilon of a normalisation of another framework: 1e-3 for 1e-5."""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.options import option
from dlas.verify.mutate.editing import nodes_of
from dlas.verify.mutate.mutation import Mutation, Occurrences, Site, mutations

_NORMS = ("BatchNormalization", "GroupNormalization", "InstanceNormalization", "LayerNormalization")


@dataclass(frozen=True)
class ScaleEpsilonOptions(Occurrences):
    """Options of scale-epsilon."""

    factor: float = option(100.0, "what epsilon is multiplied by", low=0.0)


@mutations.register("scale-epsilon")
class ScaleEpsilon(Mutation):
    """Multiplies the epsilon of a normalisation."""

    name = "scale-epsilon"
    summary = "use another epsilon in a normalisation"
    category = "attribute"
    fault = "attribute"
    Options = ScaleEpsilonOptions
    options: ScaleEpsilonOptions

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *_NORMS):
            yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        epsilon = node.attributes.get_float("epsilon", 1e-5) * self.options.factor
        node.attributes["epsilon"] = ir.AttrFloat32("epsilon", epsilon)
