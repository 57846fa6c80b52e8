"""Small changes to a graph that mutations are made of; everything works in place."""

from __future__ import annotations

import math
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.graph.passes import free_name
from dlas.graph.rewriting import fresh_name

_LARGE = 1024  # elements of a constant whose content no shape depends on
_ROWS = 2  # what a dynamic dimension is set to for a check of shapes
CONVOLUTIONS = ("Conv", "ConvTranspose")
DENSE = ("Gemm", "MatMul")
POOLS = ("AveragePool", "MaxPool", "LpPool")


def nodes_of(graph: ir.Model, *operators: str) -> Iterator[ir.Node]:
    """Nodes of these operator types of the standard domain, in graph order; all types without any."""
    for node in graph.graph:
        if node.domain in ("", "ai.onnx") and (not operators or node.op_type in operators):
            yield node


def layers(graph: ir.Model) -> Iterator[ir.Node]:
    """Convolutions, and Gemm and MatMul with a constant second input."""
    for node in nodes_of(graph, *CONVOLUTIONS, *DENSE):
        if len(node.inputs) > 1 and constant(node.inputs[1]) is not None:
            yield node


def constant(value: ir.Value | None) -> np.ndarray | None:
    """Content of a weight or constant; None for anything else, such as a weight that can be fed."""
    if value is None or value.is_graph_input():
        return None
    tensor = ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def is_float(value: ir.Value | None) -> bool:
    """Whether a tensor is known to hold floating-point numbers."""
    return value is not None and value.dtype is not None and value.dtype.is_floating_point()


def sizes(value: ir.Value | None) -> list[int | None] | None:
    """Sizes of a tensor, None for dynamic ones; None if its rank is not known."""
    if value is None or value.shape is None:
        return None
    return [d if isinstance(d, int) else None for d in value.shape]


def same_sizes(first: ir.Value | None, second: ir.Value | None) -> bool:
    """Whether two tensors are known to have the same shape, dynamic dimensions by name."""
    if first is None or second is None or first.shape is None or second.shape is None:
        return False
    one, other = (
        [d if isinstance(d, int) else d.value for d in value.shape or ()] for value in (first, second)
    )
    return one == other and None not in one


def equal_axes(value: ir.Value | None, first: int) -> tuple[int, int] | None:
    """The first two axes, from ``first`` on, of one size above 1; None if there are none."""
    dims = sizes(value) or []
    for i in range(first, len(dims)):
        for j in range(i + 1, len(dims)):
            if dims[i] is not None and dims[i] == dims[j] and dims[i] != 1:
                return i, j
    return None


def swapped(rank: int, first: int, second: int) -> list[int]:
    """The order of axes that exchanges two of them."""
    order = list(range(rank))
    order[first], order[second] = second, first
    return order


def new_constant(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    """A constant of the graph, under ``name`` or the next free one."""
    tensor = ir.tensor(np.array(array, order="C"), name=free_name(graph, name))
    value = ir.Value(
        name=tensor.name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def set_constant(graph: ir.Graph, node: ir.Node, index: int, array: np.ndarray) -> None:
    """Make ``array`` an input of ``node`` only; other readers of the old constant keep it."""
    old = node.inputs[index] if index < len(node.inputs) else None
    name = f"{old.name if old is not None else node.name}.mutant"
    value = new_constant(graph, name, array)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)


def node_after(
    graph: ir.Graph, value: ir.Value, operator: str, more: Sequence[ir.Value] = (), **attributes: Any
) -> ir.Node:
    """Put ``operator(value, *more)`` between ``value`` and everything that reads it, graph outputs included.

    The result has the shape and dtype of ``value`` and, where that was an output of the graph, its name.
    """
    new = _node(graph, operator, [value, *more], attributes, value)
    result = new.outputs[0]
    readers = [(use.node, use.idx) for use in value.uses() if use.node is not new]
    for node, index in readers:
        node.replace_input_with(index, result)
    if value.is_graph_output():
        name = str(value.name)
        for i, out in enumerate(graph.outputs):
            if out is value:
                graph.outputs[i] = result
        value.name = free_name(graph, f"{name}_before_{operator}")
        result.name = name
    producer = value.producer()
    if producer is not None:
        graph.insert_after(producer, new)
    else:
        graph.insert_before(graph.node(0), new)
    return new


def node_before(
    graph: ir.Graph,
    node: ir.Node,
    index: int,
    operator: str,
    more: Sequence[ir.Value] = (),
    **attributes: Any,
) -> ir.Node:
    """Put ``operator(input, *more)`` before one input of ``node``; the result has the input's shape and dtype."""
    value = node.inputs[index]
    assert value is not None
    new = _node(graph, operator, [value, *more], attributes, value)
    graph.insert_before(node, new)
    node.replace_input_with(index, new.outputs[0])
    return new


def _node(
    graph: ir.Graph,
    operator: str,
    inputs: Sequence[ir.Value],
    attributes: Mapping[str, Any],
    like: ir.Value,
) -> ir.Node:
    name = fresh_name(f"mutant_{operator}", {str(n.name) for n in graph})
    result = ir.Value(name=free_name(graph, f"{name}_out"), shape=like.shape, type=like.type)
    return ir.node(operator, list(inputs), attributes=attributes, outputs=[result], name=name)


def bypass(graph: ir.Graph, node: ir.Node) -> None:
    """Take out a node whose output is to be its first input; one that writes a graph output becomes an Identity."""
    source, result = node.inputs[0], node.outputs[0]
    assert source is not None
    if result.is_graph_output():
        node.op_type = "Identity"
        node.attributes.clear()
        node.resize_inputs(1)
        return
    result.replace_all_uses_with(source)
    graph.remove(node, safe=True)


def name_nodes(graph: ir.Model) -> None:
    """Give every node a name of its own, by its operator and position where it has none."""
    counts: dict[str, int] = {}
    for node in graph.graph:
        if node.name:
            counts[node.name] = counts.get(node.name, 0) + 1
    taken = set(counts)
    seen: set[str] = set()
    for position, node in enumerate(graph.graph):
        if not node.name or node.name in seen:
            node.name = fresh_name(node.name or f"{node.op_type}_{position}", taken)
        seen.add(node.name)


def forget_shapes(graph: ir.Model) -> None:
    """Make the shapes of all tensors inside the graph unknown."""
    for node in graph.graph:
        for value in node.outputs:
            if not value.is_graph_output():
                value.shape = None


def output_shapes(graph: ir.Model) -> list[list[int]] | None:
    """Shapes of all outputs with dynamic dimensions bound; None where strict inference refuses the graph."""
    trial = graph.clone()
    forget_shapes(trial)
    for name, value in list(trial.graph.initializers.items()):
        if value.const_value is not None and value.const_value.size > _LARGE:
            value.const_value = None  # its content changes no shape, and need not be copied
            trial.graph.initializers.pop(name)
            trial.graph.inputs.append(value)
    proto = ir.to_proto(trial)
    for value in proto.graph.input:
        for dim in value.type.tensor_type.shape.dim:
            if not dim.HasField("dim_value"):
                dim.dim_value = _ROWS
    for value in proto.graph.output:
        value.type.tensor_type.ClearField("shape")
    try:
        found = onnx.shape_inference.infer_shapes(proto, check_type=True, strict_mode=True, data_prop=True)
    except onnx.shape_inference.InferenceError:
        return None
    shapes = [[d.dim_value for d in v.type.tensor_type.shape.dim] for v in found.graph.output]
    known = {
        v.name: [d.dim_value if d.HasField("dim_value") else None for d in v.type.tensor_type.shape.dim]
        for v in (*found.graph.value_info, *found.graph.output, *found.graph.input)
        if v.type.tensor_type.HasField("shape")
    }
    sound = all(_is_sound(node, known) for node in found.graph.node)
    return shapes if sound else None


def _is_sound(node: onnx.NodeProto, known: Mapping[str, list[int | None]]) -> bool:
    """Whether a node gives pixels at all and a Reshape keeps their number, neither of which inference looks at."""
    given = known.get(node.input[0]) if node.input else None
    others = [known.get(name) for name in node.output]
    if any(size is not None and size <= 0 for dims in others if dims is not None for size in dims):
        return False
    if node.op_type != "Reshape" or given is None or others[0] is None:
        return True
    counts = [math.prod(d for d in dims if d is not None) for dims in (given, others[0]) if None not in dims]
    return len(set(counts)) <= 1
