"""What the translator leaves behind is made readable: fewer nodes, layers' names on nodes and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from dlas.graph.formats.keras.loading import Opened
from dlas.graph.passes import tidy
from dlas.graph.rewriting import fresh_name, shorten

_SHAPING = ("Reshape", "Squeeze", "Transpose", "Unsqueeze")
_NAMED_INPUTS = {
    "Conv": ("", "weight", "bias"),
    "ConvTranspose": ("", "weight", "bias"),
    "Gemm": ("", "weight", "bias"),
    "MatMul": ("weight", "weight"),
    "BatchNormalization": ("", "scale", "bias", "mean", "var"),
    "GRU": ("", "weight", "recurrent", "bias"),
    "LSTM": ("", "weight", "recurrent", "bias"),
    "RNN": ("", "weight", "recurrent", "bias"),
    "Gather": ("weight", "indices"),
    "PRelu": ("", "slope"),
}


def express(proto: onnx.ModelProto) -> None:
    """Say in ONNX what the translator leaves in TensorFlow's words: ``Erfc(x) = 1 - Erf(x)``."""
    nodes: list[onnx.NodeProto] = []
    for node in proto.graph.node:
        if node.op_type != "Erfc" or node.domain:
            nodes.append(node)
            continue
        one, erf = f"{node.output[0]}.one", f"{node.output[0]}.erf"
        proto.graph.initializer.append(onnx.numpy_helper.from_array(np.ones((), np.float32), one))
        nodes.append(onnx.helper.make_node("Erf", [node.input[0]], [erf], node.name))
        nodes.append(onnx.helper.make_node("Sub", [one, erf], [node.output[0]], f"{node.name}/complement"))
    if len(nodes) != len(proto.graph.node):
        del proto.graph.node[:]
        proto.graph.node.extend(nodes)


def clean(graph: ir.Model, opened: Opened) -> None:
    """Shorten the graph without changing what it computes, and name everything in it after its layer."""
    shorten(graph, first=("matmul_add_to_gemm",))
    for node in list(graph.graph):
        if node.op_type == "BatchNormalization":
            _flatten_norm(graph.graph, node)
        elif node.op_type in ("LSTM", "GRU", "RNN"):
            _drop_zero_states(node)
    tidy(graph)
    _rename(graph, opened)


def _flatten_norm(graph: ir.Graph, norm: ir.Node) -> None:
    """A batch norm of a matrix works on the matrix itself, without the two axes of one that were put around it."""
    before, after = norm.inputs[0], norm.outputs[0]
    channels = _sizes(norm.inputs[1])
    while before is not None and len(_sizes(before)) != 2:
        node = before.producer()
        if node is None or node.op_type not in _SHAPING:
            return
        before = node.inputs[0]
    while len(_sizes(after)) != 2:
        uses = list(after.uses())
        if len(uses) != 1 or after.is_graph_output() or uses[0].node.op_type not in _SHAPING:
            return
        after = uses[0].node.outputs[0]
    if (
        before is None
        or after is norm.outputs[0]
        or _sizes(before)[-1:] != channels
        or _sizes(after)[-1:] != channels
    ):
        return
    if after.is_graph_output():
        return
    norm.replace_input_with(0, before)
    result = norm.outputs[0]
    ir.convenience.replace_all_uses_with(after, result)
    result.shape = ir.Shape(list(before.shape or ()))


def _drop_zero_states(node: ir.Node) -> None:
    """Initial states of zeros are what ONNX assumes where there are none."""
    for index in (5, 6):
        if index < len(node.inputs) and _is_zero(node.inputs[index]):
            node.replace_input_with(index, None)


def _is_zero(value: ir.Value | None) -> bool:
    if value is None:
        return False
    if value.const_value is not None:
        return not value.const_value.numpy().any()
    node = value.producer()
    if node is None or node.op_type not in (*_SHAPING, "Concat", "Expand", "Identity", "Tile"):
        return False
    return all(_is_zero(v) for v in (node.inputs if node.op_type == "Concat" else node.inputs[:1]))


def _sizes(value: ir.Value | None) -> tuple[object, ...]:
    return () if value is None or value.shape is None else tuple(value.shape)


def _rename(graph: ir.Model, opened: Opened) -> None:
    model = getattr(opened.model, "name", "")
    ends = {id(v): str(v.name) for v in (*graph.graph.inputs, *graph.graph.outputs)}
    taken = set(ends.values())
    nodes = sorted(
        graph.graph, key=lambda n: n.op_type not in _NAMED_INPUTS
    )  # layers with weights choose first
    places = {id(n): _place(n, model) for n in nodes}
    for node in nodes:
        place, kind = places[id(node)], node.op_type.lower()
        free = place and (place not in taken or ends.get(id(node.outputs[0])) == place)
        node.name = fresh_name(place if free else f"{place}/{kind}" if place else kind, taken)
    for node in graph.graph:
        for index, value in enumerate(node.outputs):
            if id(value) not in ends:
                value.name = str(node.name) if index == 0 else f"{node.name}:{index}"
    for node in graph.graph:
        named = _NAMED_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and id(value) not in ends:
                part = named[index] if index < len(named) and named[index] else str(index)
                ends[id(value)] = value.name = fresh_name(f"{node.name}.{part}", taken)
    _forget_notes(graph, (v for node in graph.graph for v in node.outputs))


def _place(node: ir.Node, model: str) -> str:
    """The layer a node belongs to: ``block/conv2d`` of ``StatefulPartitionedCall/model/block/conv2d/BiasAdd``."""
    name = str(node.name)
    if name.startswith("node_"):  # a rule made it, and kept the name of what it computes
        name = str(node.outputs[0].name)
    name = re.sub(r":\d+$", "", name)
    name = re.sub(r"__\d+$", "", name)
    name = re.sub(r"^(StatefulPartitionedCall(_\d+)?/|PartitionedCall(_\d+)?/)+", "", name)
    name = name.removeprefix(f"{model}/") if model else name
    return re.sub(r"/(batchnorm|moments)$", "", name.rpartition("/")[0])


def _forget_notes(graph: ir.Model, values: Iterable[ir.Value]) -> None:
    for thing in (graph, graph.graph, *graph.graph, *graph.graph.inputs, *values):
        thing.metadata_props.clear()
        thing.doc_string = ""
