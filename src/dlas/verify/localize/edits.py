"""Small changes of a graph, in place, by the names of nodes; the same change fits a part of a network and the whole."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import ModelError
from dlas.graph.passes import free_name


def node_of(graph: ir.Model, name: str) -> ir.Node:
    """The node of that name; raises ModelError where there is none."""
    for node in graph.graph:
        if node.name == name:
            return node
    raise ModelError(f"there is no node {name!r}")


def constant(graph: ir.Model, array: np.ndarray, stem: str) -> ir.Value:
    """A new initializer."""
    name = free_name(graph.graph, stem)
    # np.ascontiguousarray would give a scalar an axis.
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(tensor.shape.numpy()), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.graph.register_initializer(value)
    return value


def set_input(graph: ir.Model, node: str, index: int, array: np.ndarray) -> None:
    """Give a node its own constant as input ``index``; inputs in between that are missing stay missing."""
    found = node_of(graph, node)
    if index >= len(found.inputs):
        found.resize_inputs(index + 1)
    found.replace_input_with(index, constant(graph, array, f"{node}.input{index}"))


def drop_input(graph: ir.Model, node: str, index: int) -> None:
    """Leave out an optional input."""
    found = node_of(graph, node)
    if index == len(found.inputs) - 1:
        found.resize_inputs(index)
    else:
        found.replace_input_with(index, None)


def set_attribute(graph: ir.Model, node: str, attribute: ir.Attr | None, name: str) -> None:
    """Give a node an attribute; None takes it away, so that the default holds."""
    found = node_of(graph, node)
    if attribute is None:
        found.attributes.pop(name, None)
    else:
        found.attributes[name] = ir.Attr(name, attribute.type, attribute.value)


def rewire(graph: ir.Model, node: str, index: int, tensor: str) -> None:
    """Let a node read another tensor as input ``index``."""
    node_of(graph, node).replace_input_with(index, value_of(graph, tensor))


def value_of(graph: ir.Model, name: str) -> ir.Value:
    """The tensor of that name; raises ModelError where there is none."""
    for value in [*graph.graph.inputs, *graph.graph.initializers.values()]:
        if value.name == name:
            return value
    for node in graph.graph:
        for output in node.outputs:
            if output.name == name:
                return output
    raise ModelError(f"there is no tensor {name!r}")


def reorder(graph: ir.Model, node: str, order: tuple[int, ...]) -> None:
    """Give a node its first inputs in another order."""
    found = node_of(graph, node)
    values = [found.inputs[i] for i in order]
    for index, value in enumerate(values):
        found.replace_input_with(index, value)


def replace_operator(
    graph: ir.Model,
    node: str,
    op_type: str,
    attributes: Mapping[str, ir.Attr],
    constants: Mapping[int, np.ndarray],
) -> None:
    """Turn a node into another operator on the same data; ``constants`` are its constant inputs by place."""
    found = node_of(graph, node)
    data = [v for v in found.inputs if v is not None and v.const_value is None]
    count = max([len(data) + len(constants), *(i + 1 for i in constants)])
    found.op_type = op_type
    found.attributes.clear()
    for name, attribute in attributes.items():
        found.attributes[name] = ir.Attr(name, attribute.type, attribute.value)
    found.resize_inputs(count)
    waiting = iter(data)
    for index in range(count):
        if index in constants:
            found.replace_input_with(index, constant(graph, constants[index], f"{node}.input{index}"))
        else:
            found.replace_input_with(index, next(waiting, None))
    while found.inputs and found.inputs[-1] is None:
        found.resize_inputs(len(found.inputs) - 1)


def bypass(graph: ir.Model, node: str, index: int = 0) -> None:
    """Let a node hand on one of its inputs unchanged; it stays as an Identity, so that names stay."""
    found = node_of(graph, node)
    data = found.inputs[index]
    found.op_type = "Identity"
    found.domain = ""
    found.attributes.clear()
    found.resize_inputs(1)
    found.replace_input_with(0, data)


def insert_before(
    graph: ir.Model,
    node: str,
    index: int,
    op_type: str,
    attributes: Mapping[str, Any] | None = None,
    constants: Mapping[int, np.ndarray] | None = None,
) -> None:
    """Put a new operator between a node and its input ``index``."""
    found = node_of(graph, node)
    data = found.inputs[index]
    if data is None:
        raise ModelError(f"node {node!r} has no input {index}")
    fresh = _fresh(graph, data, op_type, attributes, constants, node)
    graph.graph.insert_before(found, fresh)
    found.replace_input_with(index, fresh.outputs[0])


def insert_after(
    graph: ir.Model,
    node: str,
    op_type: str,
    attributes: Mapping[str, Any] | None = None,
    constants: Mapping[int, np.ndarray] | None = None,
    output: int = 0,
) -> None:
    """Put a new operator behind a node; the tensor keeps its name for all who read it."""
    found = node_of(graph, node)
    result = found.outputs[output]
    name, outside = str(result.name), result.is_graph_output()
    fresh = _fresh(graph, result, op_type, attributes, constants, node)
    after = fresh.outputs[0]
    after.type, after.shape = result.type, (result.shape if outside else None)
    for user, place in list(result.uses()):
        if user is not fresh:
            user.replace_input_with(place, after)
    if outside:
        for i, value in enumerate(graph.graph.outputs):
            if value is result:
                graph.graph.outputs[i] = after
    result.name = free_name(graph.graph, f"{name}.before")
    after.name = name
    graph.graph.insert_after(found, fresh)


def _fresh(
    graph: ir.Model,
    data: ir.Value,
    op_type: str,
    attributes: Mapping[str, Any] | None,
    constants: Mapping[int, np.ndarray] | None,
    near: str,
) -> ir.Node:
    given = dict(constants or {})
    inputs: list[ir.Value | None] = []
    waiting: list[ir.Value] = [data]
    for index in range(max([1 + len(given), *(i + 1 for i in given)])):
        if index in given:
            inputs.append(constant(graph, given[index], f"{near}.{op_type.lower()}{index}"))
        else:
            inputs.append(waiting.pop(0) if waiting else None)
    made = [
        a if isinstance(a, ir.Attr) else ir.convenience.convert_attribute(k, a)
        for k, a in (attributes or {}).items()
    ]
    taken = {n.name for n in graph.graph}
    name = f"{near}.{op_type.lower()}"
    while name in taken:
        name += "_"
    output = ir.Value(name=free_name(graph.graph, f"{name}.out"))
    return ir.Node("", op_type, inputs, made, outputs=[output], name=name)


def with_defaults(node: ir.Node, opset: int) -> dict[str, Any]:
    """Every attribute of an operator with its value, defaults of the standard included."""
    found: dict[str, Any] = {}
    if node.domain == "" and onnx.defs.has(node.op_type, opset):
        for name, attribute in onnx.defs.get_schema(node.op_type, opset).attributes.items():
            if attribute.default_value.type != onnx.AttributeProto.UNDEFINED:
                found[name] = plain(onnx.helper.get_attribute_value(attribute.default_value))
    found.update({name: plain(a.value) for name, a in node.attributes.items()})
    return found


def plain(value: Any) -> Any:
    """An attribute's value in a form that compares: bytes as text, sequences as tuples."""
    if isinstance(value, bytes):
        return value.decode(errors="replace")
    if isinstance(value, str | int | float):
        return value
    if hasattr(value, "numpy"):
        return (value.numpy().shape, value.numpy().tobytes())
    return tuple(plain(v) for v in value)
