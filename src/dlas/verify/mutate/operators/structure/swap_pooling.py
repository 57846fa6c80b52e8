"""AveragePool becomes MaxPool, and the other way round."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import is_float, nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations

_OTHER = {
    "AveragePool": "MaxPool",
    "MaxPool": "AveragePool",
    "GlobalAveragePool": "GlobalMaxPool",
    "GlobalMaxPool": "GlobalAveragePool",
    "ReduceMean": "ReduceMax",
    "ReduceMax": "ReduceMean",
}


@mutations.register("swap-pooling")
class SwapPooling(Mutation):
    """Mean and maximum exchanged, in windows, over whole images and in reductions."""

    name = "swap-pooling"
    summary = "take the maximum for the mean, or the mean for the maximum"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *_OTHER):
            indices = len(node.outputs) > 1 and bool(node.outputs[1].uses())
            plain = node.attributes.get_int("storage_order", 0) == 0
            opset = graph.graph.opset_imports.get("", 0)
            # Dilated AveragePool came with opset 19, sizes as an input of ReduceMax with 18.
            dilated = any(d != 1 for d in node.attributes.get_ints("dilations", []))
            if node.op_type == "MaxPool" and dilated and opset < 19:
                continue
            if node.op_type.startswith("Reduce") and opset < 18:
                continue
            if is_float(node.inputs[0]) and plain and not indices:
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        node.op_type = _OTHER[node.op_type]
        if node.op_type == "MaxPool":
            node.attributes.pop("count_include_pad", None)
        if node.op_type == "AveragePool":
            node.attributes.pop("storage_order", None)
            if not any(d != 1 for d in node.attributes.get_ints("dilations", [])):
                node.attributes.pop("dilations", None)  # written out, although they came with opset 19
            node.resize_outputs(1)
