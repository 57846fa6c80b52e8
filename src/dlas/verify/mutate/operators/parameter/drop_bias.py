"""A bias that got lost."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import CONVOLUTIONS, bypass, constant, nodes_of, same_sizes
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("drop-bias")
class DropBias(Mutation):
    """Takes the bias from a convolution or Gemm, or the Add of a constant behind a MatMul."""

    name = "drop-bias"
    summary = "leave out the bias of a layer"
    category = "parameter"
    fault = "parameter"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *CONVOLUTIONS, "Gemm", "Add"):
            bias = constant(node.inputs[-1] if node.op_type == "Add" else (*node.inputs, None, None)[2])
            if bias is None or not bias.any():
                continue
            if node.op_type != "Add" or _is_bias(node):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        if node.op_type == "Add":
            bypass(graph, node)
        else:
            node.replace_input_with(2, None)
            node.resize_inputs(2)


def _is_bias(node: ir.Node) -> bool:
    """Whether an Add only adds a constant to what a MatMul computed."""
    source = node.inputs[0].producer() if node.inputs[0] is not None else None
    return source is not None and source.op_type == "MatMul" and same_sizes(node.inputs[0], node.outputs[0])
