"""Whether a pooling window that hangs over the edge gives a pixel."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import POOLS, nodes_of, sizes
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("ceil-mode")
class CeilMode(Mutation):
    """Flips the attribute where it changes the size of the output and the network still holds together."""

    name = "ceil-mode"
    summary = "round the size of a pooled image the other way"
    category = "attribute"
    fault = "attribute"
    reshapes = True

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        opset = graph.graph.opset_imports.get("", 0)
        for node in nodes_of(graph, *POOLS):
            if node.attributes.get_string("auto_pad", "NOTSET").startswith("SAME") or _divides(node):
                continue
            if opset >= 10 and not (node.op_type == "LpPool" and opset < 18):
                yield Site(str(node.name))

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        flag = 1 - node.attributes.get_int("ceil_mode", 0)
        node.attributes["ceil_mode"] = ir.AttrInt64("ceil_mode", flag)


def _divides(node: ir.Node) -> bool:
    """Whether the windows fit exactly, so that both ways of rounding agree."""
    dims = (sizes(node.inputs[0]) or [])[2:]
    kernel = node.attributes.get_ints("kernel_shape", [])
    count = len(kernel)
    strides = node.attributes.get_ints("strides", [1] * count)
    pads = node.attributes.get_ints("pads", [0] * 2 * count)
    dilations = node.attributes.get_ints("dilations", [1] * count)
    for axis, size in enumerate(dims):
        if size is None:
            return False
        span = size + pads[axis] + pads[count + axis] - dilations[axis] * (kernel[axis] - 1) - 1
        if span % strides[axis]:
            return False
    return True
