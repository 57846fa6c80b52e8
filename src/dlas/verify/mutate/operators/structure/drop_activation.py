"""An activation that a fusion forgot."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import bypass, constant, nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations

ACTIVATIONS = (
    "Celu", "Clip", "Elu", "Gelu", "HardSigmoid", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Sigmoid",
    "Softplus", "Softsign", "Tanh", "ThresholdedRelu",
)  # fmt: skip


@mutations.register("drop-activation")
class DropActivation(Mutation):
    """Takes an activation out of the graph."""

    name = "drop-activation"
    summary = "leave out an activation"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *ACTIVATIONS):
            if constant(node.inputs[0]) is None:
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        bypass(graph, node)
