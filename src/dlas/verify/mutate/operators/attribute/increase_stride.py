"""A stride one too large, where the network still holds together."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import POOLS, nodes_of, sizes
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("increase-stride")
class IncreaseStride(Mutation):
    """Adds one to all strides of a convolution or pooling; only where the outputs keep their shape."""

    name = "increase-stride"
    summary = "make the strides of a convolution or pooling one larger"
    category = "attribute"
    fault = "attribute"
    reshapes = True

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, "Conv", *POOLS):
            if any(d != 1 for d in (sizes(node.outputs[0]) or [None])[2:]):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        value = node.inputs[0]
        axes = len(value.shape) - 2 if value is not None and value.shape is not None else 2
        strides = node.attributes.get_ints("strides", [1] * axes)
        node.attributes["strides"] = ir.AttrInt64s("strides", [s + 1 for s in strides])
