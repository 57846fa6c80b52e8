"""Where a network's activations are quantised, and the nodes that do it.

A block ends where a residual sum has been activated. Networks without residual sums have no blocks; every activation
counts there. The nodes are plain ONNX (``Div``, ``Round``, ``Min``/``Max`` or ``Clip``, ``Mul``), so any back end
computes the quantised numbers; ranges that follow the batch are read in the graph by ``ReduceMax``.
"""

from __future__ import annotations

import fnmatch
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._int8.scheme import bounds, constant
from dlas.core.errors import UnknownNameError, UnsupportedError
from dlas.graph.model import Model
from dlas.kernels.formats import dqa

WHERE = ("blocks", "all")
_ACTIVATIONS = frozenset(
    {
        "Celu", "Clip", "Elu", "Gelu", "HardSwish", "LeakyRelu", "Mish", "PRelu", "Relu", "Selu", "Softplus",
        "Swish", "ThresholdedRelu",
    }
)  # fmt: skip
_NEVER_NEGATIVE = frozenset({"Abs", "HardSigmoid", "Relu", "Sigmoid", "Softmax", "Softplus"})
_KEEPS_SIGN = frozenset(
    {
        "Add", "AveragePool", "Concat", "Dropout", "Flatten", "GlobalAveragePool", "GlobalMaxPool", "Identity",
        "MaxPool", "Mul", "ReduceMax", "ReduceMean", "Reshape", "Transpose",
    }
)  # fmt: skip


@dataclass(frozen=True)
class Place:
    """A value that is quantised.

    Attributes:
        value: Its name.
        layer: The node that makes it.
        axis: Its channel axis.
        rank: Its number of axes.
        channels: Its number of channels.
        nonnegative: Whether the graph proves that it has no negative number.
    """

    value: str
    layer: str
    axis: int
    rank: int
    channels: int
    nonnegative: bool

    def forward(self, x: np.ndarray) -> np.ndarray:
        """``x`` with the channels on axis 1."""
        return np.ascontiguousarray(np.moveaxis(x, self.axis, 1))

    def spread(self, per_channel: np.ndarray) -> np.ndarray:
        """``(C,)`` in the shape that broadcasts against the value; one number stays one number."""
        if per_channel.size == 1:
            return per_channel.reshape([1] * self.rank)
        return per_channel.reshape([-1 if a == self.axis else 1 for a in range(self.rank)])


def places(graph: ir.Model, model: Model, where: str = "blocks", only: str = "") -> list[Place]:
    """The values that are quantised, in graph order.

    Args:
        graph: The network after shape inference.
        model: What messages name.
        where: ``blocks``: outputs of residual blocks, or every activation of a network that has none. ``all``: every
            activation, those inside blocks as well.
        only: Patterns of node or value names, separated by ``|``; empty for all.

    Raises:
        UnsupportedError: There is none, or one whose shape is not known or that is not float32.
        UnknownNameError: A pattern matches nothing.
    """
    activations = [n.outputs[0] for n in graph.graph if n.domain == "" and n.op_type in _ACTIVATIONS]
    sums = _block_outputs(graph.graph)
    wanted = set(sums) if where == "blocks" and sums else {*activations, *sums}
    chosen = [v for n in graph.graph for v in n.outputs if v in wanted]
    inner = [v for v in chosen if not v.is_graph_output()]
    found = [_place(value, model) for value in _matching(inner, only)]
    if not found:
        raise UnsupportedError(
            f"{model.name} has no activation inside it that could be quantised",
            "it needs layers with an activation (Relu, Clip, HardSwish, ...) or residual sums",
        )
    return found


def _matching(values: list[ir.Value], only: str) -> list[ir.Value]:
    patterns = [p for p in only.split("|") if p]
    kept: dict[ir.Value, None] = {}
    for pattern in patterns:
        hits = [
            v for v in values if fnmatch.fnmatch(_layer(v), pattern) or fnmatch.fnmatch(str(v.name), pattern)
        ]
        if not hits:
            raise UnknownNameError("activation", pattern, {_layer(v) for v in values})
        kept.update(dict.fromkeys(hits))
    return [v for v in values if v in kept] if patterns else values


def _layer(value: ir.Value) -> str:
    producer = value.producer()
    return str((producer.name if producer else "") or value.name)


def _block_outputs(graph: ir.Graph) -> list[ir.Value]:
    """Sums of two computed values of one shape, or the activation that alone reads such a sum."""
    found = []
    for node in graph:
        if node.op_type != "Add" or node.domain != "" or any(constant(v) is not None for v in node.inputs):
            continue
        value = node.outputs[0]
        shapes = {str(v.shape) for v in node.inputs if v is not None}
        if len(shapes) != 1 or value.shape is None or len(value.shape) < 2:
            continue
        readers = list(value.uses())
        if len(readers) == 1 and readers[0].node.op_type in _ACTIVATIONS:
            value = readers[0].node.outputs[0]
        found.append(value)
    return found


def _place(value: ir.Value, model: Model) -> Place:
    layer = _layer(value)
    if value.dtype is not ir.DataType.FLOAT:
        raise UnsupportedError(
            f"{model.name}: activations of {layer!r} are {value.dtype}, expected float32",
            "quantise the activations of the float network",
        )
    rank = len(value.shape) if value.shape is not None else 0
    axis = _channel_axis(value, rank)
    size = value.shape[axis] if value.shape is not None and rank >= 2 else None
    if not isinstance(size, int):
        raise UnsupportedError(
            f"{model.name}: the number of channels of {layer!r} is not known (shape {value.shape})",
            "convert the network with fixed channel sizes, or leave this layer out with `only`",
        )
    return Place(str(value.name), layer, axis, rank, size, _nonnegative(value))


def _channel_axis(value: ir.Value, rank: int) -> int:
    """Axis 1, or the last one behind matrix products, whose features stand there."""
    node = value.producer()
    for _ in range(16):  # a chain of elementwise nodes is short
        if node is None or node.op_type in ("Conv", "ConvTranspose", "BatchNormalization"):
            return 1
        if node.op_type in ("MatMul", "LayerNormalization", "Gather"):
            return rank - 1
        source = next((v for v in node.inputs if v is not None and constant(v) is None), None)
        node = source.producer() if source is not None else None
    return 1


def _nonnegative(value: ir.Value, depth: int = 8) -> bool:
    node = value.producer()
    if node is None or node.domain != "":
        array = constant(value)
        return array is not None and bool((array >= 0).all())
    if node.op_type in _NEVER_NEGATIVE:
        return True
    if node.op_type == "Clip":
        ends = bounds(node)
        return ends is not None and ends[0] >= 0
    inputs = [v for v in node.inputs if v is not None]
    if node.op_type in ("Flatten", "Reshape", "Dropout", "ReduceMax", "ReduceMean"):
        inputs = inputs[:1]
    return node.op_type in _KEEPS_SIGN and depth > 0 and all(_nonnegative(v, depth - 1) for v in inputs)


class Writer:
    """Puts quantisers behind values of one graph."""

    def __init__(self, graph: ir.Model) -> None:
        self.graph = graph.graph
        self.names = QdqWriter(graph.graph)
        self.opset = graph.graph.opset_imports.get("", 0)

    def grid(self, place: Place, layout: dqa.Layout, shift: np.ndarray | None = None) -> None:
        """Round a value as ``layout`` says; with ``shift``, which broadcasts against it, added before and taken off."""
        value, readers = self._open(place)
        if layout.span == "static":
            step = self._number(place, np.maximum(layout.peaks, dqa.TINY) * layout.factors, "step")
            nodes: list[ir.Node] = []
        else:
            nodes = self._peaks(place, value, layout)
            top = self._number(place, np.array([dqa.TINY]), "least")
            nodes.append(self._node("Max", [nodes[-1].outputs[0], top], place, "peak"))
            factors = self._number(place, layout.factors, "factor")
            nodes.append(self._node("Mul", [nodes[-1].outputs[0], factors], place, "step"))
            step = nodes[-1].outputs[0]
        source, moved = value, None
        if shift is not None:
            moved = self._stored(place, shift, "shift")
            nodes.append(self._node("Add", [value, moved], place, "shifted"))
            source = nodes[-1].outputs[0]
        nodes.append(self._node("Div", [source, step], place, "ratio"))
        nodes.append(self._node("Round", [nodes[-1].outputs[0]], place, "whole"))
        low, high = layout.limits
        nodes += self._cut(place, nodes[-1].outputs[0], low, high)
        nodes.append(self._node("Mul", [nodes[-1].outputs[0], step], place, "quantized"))
        if moved is not None:
            nodes.append(self._node("Sub", [nodes[-1].outputs[0], moved], place, "restored"))
        self._close(value, readers, nodes)

    def _open(self, place: Place) -> tuple[ir.Value, list[tuple[ir.Node, int]]]:
        value = next(v for n in self.graph for v in n.outputs if v.name == place.value)
        return value, [(use.node, use.idx) for use in value.uses()]

    def _close(self, value: ir.Value, readers: Iterable[tuple[ir.Node, int]], nodes: list[ir.Node]) -> None:
        producer = value.producer()
        assert producer is not None
        self.graph.insert_after(producer, nodes)
        nodes[-1].outputs[0].shape = value.shape
        nodes[-1].outputs[0].type = value.type
        for node, index in readers:
            node.replace_input_with(index, nodes[-1].outputs[0])

    def _peaks(self, place: Place, value: ir.Value, layout: dqa.Layout) -> list[ir.Node]:
        per_channel = layout.peaks.size > 1 or place.channels == 1
        kept = {a for a, keep in ((place.axis, per_channel), (0, layout.span == "sample")) if keep}
        axes = [a for a in range(place.rank) if a not in kept]
        nodes = []
        if not place.nonnegative:
            nodes.append(self._node("Abs", [value], place, "magnitude"))
            value = nodes[-1].outputs[0]
        if not axes:  # one number per row and channel is its own peak
            return [*nodes, self._node("Identity", [value], place, "largest")]
        if self.opset < 18:  # when the axes became an input
            node = self._node("ReduceMax", [value], place, "largest", axes=axes, keepdims=1)
        else:
            listed = self.names.constant(np.array(axes, np.int64), f"{place.value}_axes")
            node = self._node("ReduceMax", [value, listed], place, "largest", keepdims=1)
        return [*nodes, node]

    def _cut(self, place: Place, value: ir.Value, low: np.ndarray, high: np.ndarray) -> list[ir.Node]:
        if np.unique(low).size == 1 and np.unique(high).size == 1:
            ends = [self._stored(place, np.float32(a[0]), n) for a, n in ((low, "lowest"), (high, "highest"))]
            return [self._node("Clip", [value, *ends], place, "code")]
        lower = self._node("Max", [value, self._number(place, low, "lowest")], place, "above")
        upper = self._node("Min", [lower.outputs[0], self._number(place, high, "highest")], place, "code")
        return [lower, upper]

    def _number(self, place: Place, per_channel: np.ndarray, what: str) -> ir.Value:
        return self._stored(place, place.spread(per_channel), what)

    def _stored(self, place: Place, array: np.ndarray | np.floating, what: str) -> ir.Value:
        return self.names.constant(np.asarray(array, np.float32), f"{place.value}_{what}")

    def _node(
        self, op: str, inputs: list[ir.Value], place: Place, what: str, **attributes: object
    ) -> ir.Node:
        name = self.names.name(f"{place.value}_{what}")
        output = ir.Value(name=name, type=ir.TensorType(ir.DataType.FLOAT))
        return ir.node(op, inputs, attributes, outputs=[output], name=self.names.name(f"{name}_node"))  # type: ignore[arg-type]
