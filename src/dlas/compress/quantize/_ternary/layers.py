"""Which layers become ternary, and how they are written into the graph once their weights are learned."""

from __future__ import annotations

import fnmatch
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.qdq import Grid, QdqWriter
from dlas.compress.quantize._int8.scheme import attribute, bounds, constant, input_at, weight_axis
from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.kernels.formats.ternary import pack_ternary, ternarize

Form = Literal["ternary", "int8", "float32"]
FORMS: tuple[str, ...] = ("ternary", "int8", "float32")

LAYERS = ("Conv", "Gemm", "MatMul")


@dataclass(frozen=True)
class Layer:
    """A layer with a stored weight.

    Attributes:
        name: Of its node.
        op: Its operator.
        output: Name of the value it makes.
        given: Name of the value it reads.
        weight: Name of its weight.
        shape: Of the weight.
        axis: Axis of the weight's output channels.
        bias: Number of values of its bias, 0 without one.
        form: What its weight becomes.
        normalised: Whether its output is normalised while it learns, and its bias hence takes part.
    """

    name: str
    op: str
    output: str
    given: str
    weight: str
    shape: tuple[int, ...]
    axis: int
    bias: int
    form: Form
    normalised: bool

    @property
    def size(self) -> int:
        """Number of weights."""
        return int(np.prod(self.shape))

    @property
    def channels(self) -> int:
        """Number of scales."""
        return self.shape[self.axis]

    @property
    def packed_bytes(self) -> int:
        """Bytes of the weight with its codes packed and one float32 scale per channel."""
        if self.form == "float32":
            return 4 * self.size
        return (-(-self.size // 4) if self.form == "ternary" else self.size) + 4 * self.channels

    @property
    def bias_bytes(self) -> int:
        """Bytes of the bias afterwards."""
        return 4 * (self.channels if self.normalised else self.bias)


def choose_layers(
    graph: ir.Graph, *, ends: Form, depthwise: Form, keep_float: str, normalise: bool
) -> tuple[list[Layer], list[str]]:
    """The layers with weights in graph order, and the names of others whose weights stay float.

    Raises:
        UnknownNameError: A pattern of ``keep_float`` fits no layer.
        UnsupportedError: No layer becomes ternary; or one weight would have to be two things.
        ModelError: A weight is not finite.
    """
    nodes, left = [], []
    for node in graph:
        weight = constant(input_at(node, 1)) if node.domain in ("", "ai.onnx") else None
        fits = (
            weight is not None
            and weight.dtype == np.float32
            and (node.op_type != "MatMul" or weight.ndim == 2)
        )
        if fits and node.op_type in LAYERS:
            nodes.append(node)
        elif any(_is_weight(v) for v in node.inputs):
            left.append(f"{node.name or node.outputs[0].name} ({node.op_type})")
    names = [str(n.name or n.outputs[0].name) for n in nodes]
    patterns = [p for p in keep_float.split("|") if p]
    for pattern in patterns:
        if not fnmatch.filter(names, pattern):
            raise UnknownNameError("layer", pattern, names, "keep_float takes patterns of layer names")
    layers = []
    for at, (node, name) in enumerate(zip(nodes, names, strict=True)):
        form: Form = "ternary"
        if any(fnmatch.fnmatchcase(name, p) for p in patterns):
            form = "float32"
        elif at in (0, len(nodes) - 1):
            form = ends
        elif _is_depthwise(node):
            form = depthwise
        last = at == len(nodes) - 1
        layers.append(_layer(node, name, form, normalise and not last and _takes_norm(node)))
    _check(layers)
    return layers, left


@dataclass(frozen=True)
class Norm:
    """A batch normalisation that was taken out of the graph: ``(channels,) float32`` each, and epsilon."""

    weight: np.ndarray
    bias: np.ndarray
    mean: np.ndarray
    variance: np.ndarray
    eps: float


def take_norms(graph: ir.Graph) -> dict[str, Norm]:
    """Take out each BatchNormalization right behind a layer, in place; by the name of the layer's output.

    They go on with training where they were, which folding and measuring anew would undo: a network with random
    weights has statistics of nothing.
    """
    taken = {}
    for node in list(graph):
        if node.op_type != "BatchNormalization" or node.domain not in ("", "ai.onnx"):
            continue
        source, result = node.inputs[0], node.outputs[0]
        layer = None if source is None else source.producer()
        scale, shift, mean, variance = (constant(v) for v in node.inputs[1:5])
        if layer is None or source is None or layer.op_type not in ("Conv", "Gemm"):
            continue
        training = attribute(node, "training_mode", 0) or len(node.outputs) > 1
        if training or result.is_graph_output() or len(list(source.uses())) != 1 or not _takes_norm(layer):
            continue
        weight = constant(input_at(layer, 1))
        if weight is None or scale is None or shift is None or mean is None or variance is None:
            continue
        arrays = (np.array(a, np.float32) for a in (scale, shift, mean, variance))
        eps = float(attribute(node, "epsilon", 1e-5))
        taken[str(source.name)] = Norm(*arrays, eps=eps)
        ir.convenience.replace_all_uses_with(result, source)
        graph.remove(node, safe=True)
    return taken


def rectified(graph: ir.Graph) -> list[str]:
    """Names of the values inside the network that a ReLU (or a Clip from 0) makes."""
    made = [n.outputs[0] for n in graph if (limits := bounds(n)) is not None and limits[0] == 0]
    return [str(v.name) for v in made if not v.is_graph_output()]


def _is_weight(value: ir.Value | None) -> bool:
    found = constant(value)
    return found is not None and found.dtype == np.float32 and found.ndim >= 2 and found.size > 1


def _is_depthwise(node: ir.Node) -> bool:
    weight = constant(input_at(node, 1))
    return (
        node.op_type == "Conv"
        and attribute(node, "group", 1) > 1
        and weight is not None
        and weight.shape[1] == 1
    )


def _takes_norm(node: ir.Node) -> bool:
    """Whether a normalisation of its output can be folded into the layer."""
    if node.outputs[0].is_graph_output() or constant(input_at(node, 1)) is None:
        return False
    if node.op_type == "Gemm":
        plain = attribute(node, "alpha", 1.0) == 1.0 and attribute(node, "beta", 1.0) == 1.0
        bias = input_at(node, 2)
        channels = _layer(node, "", "float32", False).channels
        found = constant(bias)
        return plain and (bias is None or (found is not None and found.size == channels))
    bias = input_at(node, 2)
    return node.op_type == "Conv" and (bias is None or constant(bias) is not None)


def _layer(node: ir.Node, name: str, form: Form, normalised: bool) -> Layer:
    value, weight, bias = node.inputs[1], constant(node.inputs[1]), constant(input_at(node, 2))
    given = node.inputs[0]
    assert value is not None and weight is not None and given is not None  # noqa: PT018 - what choosing asked for
    if not np.isfinite(weight).all():
        raise ModelError(f"weight {value.name!r} holds NaN or infinity", "train the network again")
    return Layer(
        name, node.op_type, str(node.outputs[0].name), str(given.name), str(value.name), weight.shape,
        weight_axis(node), 0 if bias is None else bias.size, form, normalised,
    )  # fmt: skip


def _check(layers: Sequence[Layer]) -> None:
    if not any(layer.form == "ternary" for layer in layers):
        raise UnsupportedError(
            "no layer becomes ternary: the network has "
            + (f"the layers {', '.join(x.name for x in layers[:5])}" if layers else "none with weights"),
            "ternary are Conv, Gemm and MatMul; ends=ternary and depthwise=ternary include all of them",
        )
    by_weight: dict[str, Layer] = {}
    for layer in layers:
        other = by_weight.setdefault(layer.weight, layer)
        if (other.form, other.axis) != (layer.form, layer.axis):
            raise UnsupportedError(
                f"{other.name} and {layer.name} share a weight, but would hold it differently",
                f"keep both float: keep_float={other.name}|{layer.name}",
            )


@dataclass(frozen=True)
class Stored:
    """A layer as it is written.

    Attributes:
        codes: int8, or the float32 weight itself.
        scale: ``(channels,) float32``; None for a float weight.
        bias: ``(channels,) float32``, or None where the layer's own stays.
    """

    codes: np.ndarray
    scale: np.ndarray | None
    bias: np.ndarray | None


def stored(
    layer: Layer, weight: np.ndarray, bias: np.ndarray | None, norm: tuple[np.ndarray, np.ndarray] | None
) -> Stored:
    """Codes and scales of a learned weight, with the normalisation behind the layer folded in.

    Args:
        layer: The layer.
        weight: Its learned weight, not rounded.
        bias: ``(channels,)``, or None.
        norm: Factor and shift of the normalisation, ``(channels,)`` each.
    """
    channels = layer.channels
    factor, shift = (np.ones(channels), np.zeros(channels)) if norm is None else norm
    new_bias = None
    if norm is not None:
        before = np.zeros(channels) if bias is None else bias.reshape(-1).astype(np.float64)
        new_bias = (before * factor + shift).astype(np.float32)
    spread = [1] * weight.ndim
    spread[layer.axis] = -1
    if layer.form == "float32":
        return Stored((weight * factor.reshape(spread)).astype(np.float32), None, new_bias)
    if layer.form == "ternary":
        codes, scale = ternarize(weight, axis=layer.axis)
    else:
        codes, scale = _eight_bits(weight, layer.axis)
    scale = scale.astype(np.float64) * np.abs(factor)
    dead = ~(scale > np.finfo(np.float32).tiny)
    turned = np.where(dead, 0, np.where(factor < 0, -1, 1)).astype(np.int8)
    return Stored(codes * turned.reshape(spread), np.where(dead, 1.0, scale).astype(np.float32), new_bias)


def _eight_bits(weight: np.ndarray, axis: int) -> tuple[np.ndarray, np.ndarray]:
    others = tuple(a for a in range(weight.ndim) if a != axis)
    scale = np.abs(weight).max(axis=others, keepdims=True) / np.float32(127)
    steps = np.abs(weight) / np.maximum(scale, np.float32(1e-12))
    codes = np.sign(weight) * np.minimum(np.floor(steps + np.float32(0.5)), 127)
    return codes.astype(np.int8), scale.reshape(-1)


def write(graph: ir.Graph, layers: Sequence[Layer], found: Mapping[str, Stored]) -> int:
    """Put DequantizeLinear on the codes of every layer, in place; bytes of all codes packed, with scales and biases.

    Args:
        graph: The graph with the learned weights.
        layers: Its layers.
        found: What to write, by the layers' outputs.
    """
    nodes = {str(node.outputs[0].name): node for node in graph}
    writer = QdqWriter(graph)
    packed = 0
    counted: set[str] = set()
    for layer in layers:
        node, new = nodes[layer.output], found[layer.output]
        if new.scale is None:
            value = writer.constant(new.codes, f"{layer.weight}_folded") if new.bias is not None else None
            if value is not None:
                node.replace_input_with(1, value)
        else:
            grid = Grid(new.scale, np.zeros(len(new.scale), np.int8), layer.axis)
            made = writer.dequantized_constant(new.codes, grid, layer.weight)
            graph.insert_before(node, made)
            node.replace_input_with(1, made.outputs[0])
        if new.bias is not None:
            if len(node.inputs) < 3:
                node.resize_inputs(3)
            node.replace_input_with(2, writer.constant(new.bias, f"{layer.output}_bias"))
        if layer.weight not in counted:
            packed += _packed(new, layer.form)
            counted.add(layer.weight)
        packed += layer.bias_bytes
    return packed


def _packed(new: Stored, form: Form) -> int:
    if new.scale is None:
        return new.codes.nbytes
    return (pack_ternary(new.codes).nbytes if form == "ternary" else new.codes.nbytes) + new.scale.nbytes


def round_activations(graph: ir.Graph, steps: Mapping[str, tuple[int, float]]) -> None:
    """Quantise values to uint8 and back, in place: by name, bits and step; codes of fewer bits are clipped first."""
    writer = QdqWriter(graph)
    values = {str(v.name): v for node in graph for v in node.outputs}
    for name, (bits, step) in steps.items():
        value = values[name]
        uses = list(value.uses())
        made: list[ir.Node] = []
        last = value
        if bits < 8:
            limits = [
                writer.constant(np.asarray(0, np.float32), "zero"),
                writer.constant(np.asarray((2**bits - 1) * step, np.float32), f"{name}_top"),
            ]
            made.append(ir.node("Clip", [last, *limits], name=writer.name(f"{name}_clip")))
            last = made[-1].outputs[0]
            last.name = writer.name(f"{name}_clipped")
            last.shape, last.type = value.shape, value.type
        grid = Grid(np.asarray(step, np.float32), np.zeros((), np.uint8))
        made.append(writer.quantize(last, grid, name))
        made[-1].outputs[0].type = ir.TensorType(ir.DataType.UINT8)
        made.append(writer.dequantize(made[-1].outputs[0], grid, name))
        producer = value.producer()
        assert producer is not None
        graph.insert_after(producer, made)
        for use in uses:
            use.node.replace_input_with(use.idx, made[-1].outputs[0])
