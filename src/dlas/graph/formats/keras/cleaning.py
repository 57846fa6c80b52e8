"""What the translator leaves behind is made readable: fewer nodes, layers' names on nodes and weights."""

from __future__ import annotations

import re
from collections.abc import Iterable

import numpy as np
import onnx
import onnx_ir as ir

from dlas.graph.formats.keras.loading import Opened
from dlas.graph.passes import tidy

_RULES = (
    "matmul_add_to_gemm",
    "materialize_reshape_shape",
    "squeeze_reshape_1d",
    "reshape_reshape",
    "unsqueeze_unsqueeze",
    "transpose_transpose",
    "no_op_transpose",
    "no_op_expand",
    "no_op_cast",
    "cast_cast",
    "collapse_slice",
    "collapse_slice2",
    "mul_by_1",
    "div_by_1",
    "add_0",
    "sub_0",
)
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
    from onnxscript import rewriter
    from onnxscript.rewriter.rules import common

    tidy(graph)
    rewriter.RewritePass([getattr(common, f"{name}_rule") for name in _RULES])(graph)
    tidy(graph)
    _rename(graph, opened)


def _rename(graph: ir.Model, opened: Opened) -> None:
    model = getattr(opened.model, "name", "")
    ends = {id(v): str(v.name) for v in (*graph.graph.inputs, *graph.graph.outputs)}
    taken = set(ends.values())
    nodes = sorted(graph.graph, key=lambda n: n.op_type not in _NAMED_INPUTS)  # layers with weights choose first
    paths = {id(n): _path(str(n.name), model) for n in nodes}
    for node in nodes:
        path = paths[id(node)]
        layer = path.rpartition("/")[0]
        wanted = layer if layer and layer not in taken else path or node.op_type.lower()
        node.name = _fresh(wanted, taken)
    for node in graph.graph:
        for index, value in enumerate(node.outputs):
            if id(value) not in ends:
                value.name = str(node.name) if index == 0 else f"{node.name}:{index}"
    for node in graph.graph:
        named = _NAMED_INPUTS.get(node.op_type, ())
        for index, value in enumerate(node.inputs):
            if value is not None and value.is_initializer() and id(value) not in ends:
                part = named[index] if index < len(named) else str(index)
                ends[id(value)] = value.name = _fresh(f"{node.name}.{part}", taken)
    _forget_notes(graph, (v for node in graph.graph for v in node.outputs))


def _path(name: str, model: str) -> str:
    """A node's place without what the translator put around it: ``conv2d_1/BiasAdd``."""
    name = re.sub(r"__\d+$", "", name)
    name = re.sub(r"^(StatefulPartitionedCall(_\d+)?/|PartitionedCall(_\d+)?/)+", "", name)
    return name.removeprefix(f"{model}/") if model else name


def _fresh(name: str, taken: set[str]) -> str:
    unique, count = name, 1
    while unique in taken:
        count += 1
        unique = f"{name}_{count}"
    taken.add(unique)
    return unique


def _forget_notes(graph: ir.Model, values: Iterable[ir.Value]) -> None:
    for thing in (graph, graph.graph, *graph.graph, *graph.graph.inputs, *values):
        thing.metadata_props.clear()
        thing.doc_string = ""
