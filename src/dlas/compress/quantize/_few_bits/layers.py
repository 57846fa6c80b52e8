"""The layers whose weights go on levels: which ones, on which grid, and what they become."""

from __future__ import annotations

import fnmatch
from collections.abc import Sequence
from dataclasses import dataclass, field
from typing import NamedTuple, Protocol

import numpy as np
import onnx_ir as ir

from dlas.compress.quantize._int8.lower import restore_weights
from dlas.compress.quantize._int8.quantise import refuse_quantized
from dlas.compress.quantize._int8.scheme import RULES, attribute, constant, input_at, weight_axis
from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.model import Model
from dlas.kernels.formats.grid import Alpha, Grid
from dlas.kernels.formats.grids import uniform

EIGHT_BITS = uniform(8)
FLOAT_END = "ends=float"


class Choices(Protocol):
    """The options that decide which layer gets which grid."""

    @property
    def per_channel(self) -> bool: ...
    @property
    def ends(self) -> str: ...
    @property
    def depthwise(self) -> str: ...
    @property
    def keep_float(self) -> str: ...
    @property
    def codes(self) -> str: ...


@dataclass(eq=False)
class Layer:
    """One weight tensor with the nodes that multiply by it.

    Attributes:
        node: The first of them.
        uses: All of them.
        value: Their weight in the graph.
        weight: Its float values.
        channel_axis: Axis of the output channels.
        grid: Levels.
        per_channel: Whether each channel has a scale.
        exact: Whether the levels are stored as they are, not as 127ths.
        stored: int8 codes, once quantised.
        unit: Value of code 1, ``()`` or ``(channels,)`` float32, once quantised.
    """

    node: ir.Node
    uses: list[ir.Node]
    value: ir.Value
    weight: np.ndarray
    channel_axis: int
    grid: Grid
    per_channel: bool
    exact: bool
    stored: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int8))
    unit: np.ndarray = field(default_factory=lambda: np.zeros((), np.float32))
    _learned: tuple[np.ndarray, np.ndarray] | None = None

    @property
    def name(self) -> str:
        """What to call the layer in a message."""
        return _name(self.node)

    @property
    def axis(self) -> int | None:
        """Axis of the scales; None for one scale."""
        return self.channel_axis if self.per_channel else None

    @property
    def scales(self) -> int:
        """Number of scales."""
        return self.weight.shape[self.channel_axis] if self.per_channel else 1

    @property
    def packed_bytes(self) -> int:
        """Bytes of the codes without padding, and of the scales as float32."""
        return -(-self.weight.size * self.grid.bits // 8) + 4 * self.scales

    @property
    def stored_bytes(self) -> int:
        """Bytes in an ONNX file: int8 codes, float32 scales, int8 zero points."""
        return self.weight.size + 5 * self.scales

    def what(self) -> str:
        """The change in words."""
        scales = f"{self.scales} scales on axis {self.channel_axis}" if self.per_channel else "one scale"
        return f"weights on {len(self.grid.levels)} levels in {self.grid.bits} bits, {scales}"

    def integers(self) -> np.ndarray:
        """What is stored for each magnitude of the grid, ``(n,) int64``."""
        if self.exact:
            return self.grid.magnitudes
        return np.floor(self.grid.magnitudes * (127 / self.grid.top) + 0.5).astype(np.int64)

    def magnitudes(self) -> np.ndarray:
        """What each magnitude of the grid is worth as stored, the largest 1."""
        return self.integers() / self.integers()[-1]

    def learned(self, weight: np.ndarray, scale: np.ndarray) -> None:
        """Round ``weight`` with ``scale``, both of which training found, instead of looking for a scale."""
        self._learned = weight, scale

    def quantize(self, alpha: Alpha) -> None:
        """Fill in ``stored`` and ``unit``."""
        weight = self.weight
        if self._learned is not None:
            weight, scale = self._learned
        else:
            scale = self.grid.scales_of(weight, self.axis, alpha)
        shape = [1] * weight.ndim
        if self.axis is not None:
            shape[self.axis] = -1
        rounded = self.grid.round(weight.astype(np.float64) / scale.reshape(shape).astype(np.float64))
        stored = self.integers()
        places = np.searchsorted(self.grid.magnitudes, np.abs(rounded))
        self.stored = (np.sign(rounded) * stored[places]).astype(np.int8)
        self.unit = (scale.astype(np.float64) / stored[-1]).astype(np.float32)
        if not self.grid.has_zero:  # a channel without weights has none afterwards either
            others = tuple(a for a in range(weight.ndim) if a != self.axis)
            empty = ~np.any(weight, axis=others if self.axis is not None else None)
            self.stored[np.broadcast_to(np.reshape(empty, shape), weight.shape)] = 0

    def values(self) -> np.ndarray:
        """The weights as they now are, float32."""
        shape = [1] * self.stored.ndim
        if self.unit.ndim:
            shape[self.channel_axis] = -1
        return self.stored.astype(np.float32) * self.unit.reshape(shape)

    def stretch(self, factor: np.ndarray) -> None:
        """Multiply each output channel by ``factor``, ``(channels,)``: its scale takes it up."""
        self.unit = (np.broadcast_to(self.unit, factor.shape) * factor).astype(np.float32)
        self.per_channel = True


class Left(NamedTuple):
    """A layer that stays float."""

    name: str
    reason: str

    def __str__(self) -> str:
        return f"{self.name} stays float: {self.reason}"


def editable(model: Model) -> ir.Model:
    """A copy of the float graph, tidied, its batch normalisation left apart.

    Raises:
        UnsupportedError: It is quantised already.
    """
    from dlas.graph.passes import tidy

    refuse_quantized(model)
    graph = model.editable()
    restore_weights(graph.graph)
    tidy(graph)
    return graph


def layers_of(model: Model, graph: ir.Model, grid: Grid, options: Choices) -> tuple[list[Layer], list[Left]]:
    """The layers in graph order, and those that stay float.

    Raises:
        UnsupportedError: No layer is left for the levels.
        UnknownNameError: A pattern of ``keep_float`` matches no layer.
        ModelError: A weight is not finite.
    """
    nodes = [n for n in graph.graph if n.op_type in RULES and RULES[n.op_type].kind == "weighted"]
    kept = _kept(nodes, options.keep_float)
    found: dict[ir.Value, Layer] = {}
    left: list[Left] = []
    for node in nodes:
        value, weight = input_at(node, 1), constant(input_at(node, 1))
        reason = _reason(node, value, weight, node in kept)
        if reason or value is None or weight is None:
            left.append(Left(_name(node), reason))
            continue
        if value in found:
            found[value].uses.append(node)
            continue
        levels = EIGHT_BITS if options.depthwise == "int8" and _depthwise(node, weight) else grid
        exact = levels.top <= 127 and (options.codes == "levels" or levels is EIGHT_BITS)
        found[value] = Layer(
            node, [node], value, weight, weight_axis(node), levels, options.per_channel, exact
        )
    layers = list(found.values())
    for end in _ends(layers) if options.ends != "same" else []:
        if options.ends == "float":
            left.append(Left(end.name, FLOAT_END))
            layers.remove(end)
        end.grid, end.exact = EIGHT_BITS, True
    if not any(layer.grid is not EIGHT_BITS for layer in layers):
        reasons = "; ".join(map(str, left[:5])) or f"{len(layers)} keep 8 bits"
        raise UnsupportedError(
            f"{model.name} has no layer to put on the levels of {grid.name} ({reasons})",
            "ends=same also takes the first convolution and the last layer",
        )
    return layers, left


def _kept(nodes: Sequence[ir.Node], patterns: str) -> set[ir.Node]:
    kept: set[ir.Node] = set()
    for pattern in (p for p in patterns.split("|") if p):
        matched = {n for n in nodes if fnmatch.fnmatchcase(_name(n), pattern)}
        if not matched:
            raise UnknownNameError("layer", pattern, [_name(n) for n in nodes])
        kept |= matched
    return kept


def _reason(node: ir.Node, value: ir.Value | None, weight: np.ndarray | None, kept: bool) -> str:
    """Why a layer stays float, or an empty string."""
    if kept:
        return "as asked"
    if value is None or weight is None or weight.dtype != np.float32 or weight.ndim < 2:
        return "its weights are no constant float32"
    if node.op_type == "MatMul" and weight.ndim != 2:
        return "its weights are no matrix"
    uses = [(use.node, use.idx) for use in value.uses()]
    if any(
        i != 1 or other.op_type not in RULES or weight_axis(other) != weight_axis(node) for other, i in uses
    ):
        return "its weights are used elsewhere too"
    if not np.isfinite(weight).all():
        raise ModelError(
            f"{value.name} holds NaN or infinity", "mend or retrain the network before quantising it"
        )
    return ""


def _ends(layers: Sequence[Layer]) -> list[Layer]:
    """The first convolution and the last layer."""
    first = next((layer for layer in layers if layer.node.op_type == "Conv"), None)
    return [layer for layer in dict.fromkeys([first, *layers[-1:]]) if layer is not None]


def _depthwise(node: ir.Node, weight: np.ndarray) -> bool:
    return node.op_type == "Conv" and attribute(node, "group", 1) > 1 and weight.shape[1] == 1


def _name(node: ir.Node) -> str:
    return str(node.name or node.outputs[0].name)
