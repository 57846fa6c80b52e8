"""A residual or concatenated branch that starts at another tensor of the same shape."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.core.errors import UnknownNameError
from dlas.verify.mutate.editing import constant, same_sizes
from dlas.verify.mutate.mutation import Mutation, Site, mutations


@mutations.register("rewire-residual")
class RewireResidual(Mutation):
    """Takes an input of Add, Mul or Concat from the nearest earlier tensor of its shape and dtype."""

    name = "rewire-residual"
    summary = "start a residual branch at another tensor of the same shape"
    category = "operator"
    fault = "graph"

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        earlier: list[ir.Value] = [v for v in graph.graph.inputs if v.name not in graph.graph.initializers]
        for node in graph.graph:
            if _joins(node):
                for index, value in enumerate(node.inputs):
                    other = _nearest(node, value, earlier)
                    if other is not None:
                        yield Site(str(node.name), f"input {index} from {other.name}")
            earlier += [v for v in node.outputs if constant(v) is None]

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        words, _, name = site.detail.partition(" from ")
        values = {v.name: v for v in graph.inputs} | {v.name: v for n in graph for v in n.outputs}
        if name not in values:
            raise UnknownNameError("tensor", name, map(str, values))
        node.replace_input_with(int(words.split()[1]), values[name])


def _joins(node: ir.Node) -> bool:
    """Whether a node joins computed branches."""
    joins = (
        node.domain in ("", "ai.onnx") and node.op_type in ("Add", "Mul", "Concat") and len(node.inputs) > 1
    )
    return joins and all(constant(v) is None for v in node.inputs)


def _nearest(node: ir.Node, value: ir.Value | None, earlier: list[ir.Value]) -> ir.Value | None:
    for other in reversed(earlier):
        taken = any(other is v for v in node.inputs)
        if not taken and value is not None and other.dtype == value.dtype and same_sizes(other, value):
            return other
    return None
