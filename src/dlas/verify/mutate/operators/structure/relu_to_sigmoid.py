"""OR2 of MutateNN: Relu becomes Sigmoid."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import is_float, nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("relu-to-sigmoid")
class ReluToSigmoid(Mutation):
    """Replaces one activation by another."""

    name = "relu-to-sigmoid"
    summary = "Sigmoid where Relu stands"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Relu"):
            if is_float(node.inputs[0]):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        node.op_type = "Sigmoid"
