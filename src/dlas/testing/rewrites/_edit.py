"""The list of rewrites, and the changes of a graph that they are made of."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.graph.passes import free_name
from dlas.graph.rewriting import fresh_name
from dlas.verify.mutate.editing import new_constant

Rewrite = Callable[[ir.Model], bool]
REWRITES: dict[str, Rewrite] = {}
SEED = 5


def rewrite(name: str) -> Callable[[Rewrite], Rewrite]:
    """Put a rewrite on the list."""

    def register(function: Rewrite) -> Rewrite:
        REWRITES[name] = function
        return function

    return register


def make(
    graph: ir.Graph,
    anchor: ir.Node,
    operator: str,
    inputs: Sequence[ir.Value | np.ndarray],
    **attributes: Any,
) -> ir.Value:
    """Result of a new operator, which stands before ``anchor``."""
    name = fresh_name(f"{anchor.name}.{operator.lower()}", {str(n.name) for n in graph})
    values = [v if isinstance(v, ir.Value) else new_constant(graph, f"{name}.constant", v) for v in inputs]
    result = ir.Value(name=free_name(graph, f"{name}.out"), type=ir.TensorType(ir.DataType.FLOAT))
    made = ir.node(operator, values, attributes=attributes, outputs=[result], name=name)
    graph.insert_before(anchor, made)
    return result


def before(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    operator: str,
    more: Sequence[np.ndarray] = (),
    **attributes: Any,
) -> ir.Node:
    """Put an operator before one input of ``node``."""
    value = node.inputs[index]
    assert value is not None
    result = make(graph, node, operator, [value, *more], **attributes)
    node.replace_input_with(index, result)
    maker = result.producer()
    assert maker is not None
    return maker


def between(
    graph: ir.Graph, first: ir.Node, node: ir.Node, index: int, operator: str, **attributes: Any
) -> None:
    """Put an operator between two nodes."""
    node.replace_input_with(index, make(graph, node, operator, [first.outputs[0]], **attributes))


def behind(
    graph: ir.Graph, node: ir.Node, operator: str, more: Sequence[np.ndarray] = (), **attributes: Any
) -> ir.Node:
    """Put an operator between ``node`` and all that read it; an output of the graph keeps its name."""
    value = node.outputs[0]
    readers = [(u.node, u.idx) for u in value.uses()]
    result = make(graph, node, operator, [value, *more], **attributes)
    made = result.producer()
    assert made is not None
    graph.remove(made)
    graph.insert_after(node, made)
    for reader, index in readers:
        reader.replace_input_with(index, result)
    if value.is_graph_output():
        name = str(value.name)
        result.shape, result.type = value.shape, value.type
        for i, output in enumerate(graph.outputs):
            if output is value:
                graph.outputs[i] = result
        value.name = free_name(graph, f"{name}.before")
        result.name = name
    return made
