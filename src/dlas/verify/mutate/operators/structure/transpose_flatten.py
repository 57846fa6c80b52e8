"""A Flatten or Reshape that reads its tensor in another layout: what forgetting NHWC and NCHW there does."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import constant, node_before, nodes_of, sizes
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("transpose-flatten")
class TransposeFlatten(Mutation):
    """Inserts a Transpose that puts channels last before a Flatten, or a Reshape that drops axes."""

    name = "transpose-flatten"
    summary = "flatten a tensor with its channels last"
    category = "layout"
    fault = "layout"
    reshapes = True

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Flatten", "Reshape"):
            dims, after = sizes(node.inputs[0]), sizes(node.outputs[0])
            if dims is None or after is None or len(dims) < 3 or len(after) >= len(dims):
                continue
            if constant(node.inputs[0]) is not None or sum(d != 1 for d in dims[1:]) < 2 or dims[1] == 1:
                continue  # with one long axis the order does not count
            if node.op_type == "Flatten" and node.attributes.get_int("axis", 1) != 1:
                continue
            yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = node.inputs[0]
        assert value is not None
        assert value.shape is not None
        order = [0, *range(2, len(value.shape)), 1]
        inserted = node_before(graph, node, 0, "Transpose", perm=order)
        inserted.outputs[0].shape = ir.Shape([value.shape[axis] for axis in order])
