"""Two inputs of an operator exchanged: the order of a Concat, what is subtracted from what."""

from __future__ import annotations

from collections.abc import Iterator

import onnx_ir as ir

from dlas.verify.mutate.editing import nodes_of
from dlas.verify.mutate.mutation import Mutation, Site, mutations

_COMMUTATIVE = ("Add", "Mul", "Max", "Min")
_ORDERED = ("Concat", "Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "MatMul", "Pow", "Sub")


@mutations.register("swap-inputs")
class SwapInputs(Mutation):
    """Exchanges the first two inputs; where the order does not count the mutant is equivalent, on purpose."""

    name = "swap-inputs"
    summary = "exchange the first two inputs of Concat, Sub, Div, MatMul; of Add and Mul as a control"
    category = "operator"
    fault = "graph"
    reshapes = True

    def _candidates(self, graph: ir.Model) -> Iterator[Site]:
        for node in nodes_of(graph, *_ORDERED, *_COMMUTATIVE):
            if len(node.inputs) < 2 or node.inputs[0] is node.inputs[1]:
                continue
            yield Site(str(node.name), "commutative" if node.op_type in _COMMUTATIVE else "")

    def _change(self, graph: ir.Graph, node: ir.Node, site: Site) -> None:
        first, second = node.inputs[:2]
        node.replace_input_with(0, second)
        node.replace_input_with(1, first)
