"""A Softmax after the scores: no label changes, every score does."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import is_float, node_after
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("extra-softmax")
class ExtraSoftmax(Mutation):
    """Appends a Softmax to an output of class scores, also to one that is a Softmax already."""

    name = "extra-softmax"
    summary = "append a Softmax to the class scores"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for index, value in enumerate(graph.graph.outputs):
            producer = value.producer()
            if producer is not None and is_float(value) and value.shape is not None and len(value.shape) == 2:
                yield Site(str(producer.name), f"output {index}")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        node_after(graph, graph.outputs[site.number], "Softmax", axis=-1)
