"""A bias that is added twice: once in the layer, once behind it."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import CONVOLUTIONS, constant, new_constant, node_after, nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("double-bias")
class DoubleBias(Mutation):
    """Inserts an Add of a layer's own bias after it."""

    name = "double-bias"
    summary = "add the bias of a layer a second time"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *CONVOLUTIONS, "Gemm"):
            bias = constant(node.inputs[2]) if len(node.inputs) > 2 else None
            if bias is not None and bias.any():
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        bias, result = constant(node.inputs[2]), node.outputs[0]
        assert bias is not None
        if node.op_type in CONVOLUTIONS:
            spatial = len(result.shape) - 2 if result.shape is not None else 2
            bias = bias.reshape(1, -1, *[1] * spatial)
        else:
            bias = bias * bias.dtype.type(node.attributes.get_float("beta", 1.0))
        node_after(graph, result, "Add", [new_constant(graph, f"{node.name}.bias_again", bias)])
