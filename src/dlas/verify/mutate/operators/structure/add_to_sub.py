"""OR1 of MutateNN: Add becomes Sub."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import constant, nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("add-to-sub")
class AddToSub(Mutation):
    """Replaces an Add of two computed tensors."""

    name = "add-to-sub"
    summary = "subtract where two tensors are added"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Add"):
            if all(constant(value) is None for value in node.inputs):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        node.op_type = "Sub"
