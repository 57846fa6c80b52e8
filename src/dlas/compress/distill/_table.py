"""What a network of any width costs, from a table of its layers that fills itself as it is asked.

A network is a number of channels per group (``dlas.graph.channels``); from these follow the shapes of all stored
weights, and with them what every layer costs, without building the network.
"""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.compress.costs import LAYERS, Costs, LayerShape
from dlas.graph.channels import ChannelGroup

Widths = tuple[int, ...]
"""Channels that are kept, per group."""


class Table:
    """Costs of the layers of one graph at any widths; a layer of the same shape is asked for once.

    Args:
        graph: The network, tidied (``passes.tidy``).
        groups: Its groups that may lose channels.
        costs: Says what a layer costs.
        known: Costs found earlier, by ``repr`` of the layer's shape.

    Attributes:
        known: All costs found so far; grows.
    """

    def __init__(
        self,
        graph: ir.Model,
        groups: Sequence[ChannelGroup],
        costs: Costs,
        known: Mapping[str, float] | None = None,
    ) -> None:
        self.groups, self.costs = tuple(groups), costs
        self.known: dict[str, float] = dict(known or {})
        self.full: Widths = tuple(g.size for g in self.groups)
        self._axes = _axes(self.groups)
        self._layers = [x for x in (_Layer.of(node, self._axes) for node in graph.graph) if x is not None]
        self._touched = [[x for x in self._layers if at in x.groups] for at in range(len(self.groups))]

    def layers(self, widths: Widths) -> dict[str, float]:
        """Cost of every layer by name."""
        return {x.name: self._cost(x, widths) for x in self._layers}

    def total(self, widths: Widths) -> float:
        """Cost of all layers together."""
        return sum(self._cost(x, widths) for x in self._layers)

    def around(self, group: int, widths: Widths) -> float:
        """Cost of the layers whose shape depends on a group."""
        return sum(self._cost(x, widths) for x in self._touched[group])

    def shapes(self, widths: Widths) -> dict[str, LayerShape]:
        """Shape of every layer by name."""
        return {x.name: x.at(widths, self.full) for x in self._layers}

    def _cost(self, layer: _Layer, widths: Widths) -> float:
        shape = layer.at(widths, self.full)
        key = repr((shape.op, shape.attributes, shape.given, shape.weight, shape.made, shape.first))
        if key not in self.known:
            self.known[key] = float(self.costs.of_layer(shape))
        return self.known[key]


class _Layer:
    """One layer and how its shape follows from the widths."""

    def __init__(self, node: ir.Node, first: bool, shapes: Sequence[tuple[int, ...]], axes: _Axes) -> None:
        self.name = node.name or str(node.outputs[0].name)
        self.op, self.first = node.op_type, first
        self.given, self.weight, self.made = shapes
        self.attributes = {k: _plain(a) for k, a in node.attributes.items()}
        weight = node.inputs[0 if first else 1]
        assert weight is not None
        self._weight_axes = axes.get(str(weight.name), {})
        self.groups = {at for parts in self._weight_axes.values() for at, _ in parts}
        self._seen: dict[Widths, LayerShape] = {}

    @classmethod
    def of(cls, node: ir.Node, axes: _Axes) -> _Layer | None:
        """The layer of a node; None where it has no stored weight, or its shapes are not known."""
        if node.op_type not in LAYERS or node.domain not in ("", "ai.onnx"):
            return None
        operands = list(node.inputs[:2])
        stored = [v is not None and v.is_initializer() and v.const_value is not None for v in operands]
        if stored not in ([False, True], [True, False]) or (stored[0] and node.op_type != "MatMul"):
            return None
        weight, given = operands[stored.index(True)], operands[stored.index(False)]
        shapes = [_shape(given), _shape(weight), _shape(node.outputs[0])]
        if any(s is None for s in shapes):
            return None
        return cls(node, stored[0], [s for s in shapes if s is not None], axes)

    def at(self, widths: Widths, full: Widths) -> LayerShape:
        """Its shape where this many channels are kept."""
        key = tuple(widths[g] for g in sorted(self.groups))
        if key not in self._seen:
            weight = list(self.weight)
            for axis, parts in self._weight_axes.items():
                weight[axis] -= sum((full[g] - widths[g]) * repeats for g, repeats in parts)
            self._seen[key] = self._with(tuple(weight))
        return self._seen[key]

    def _with(self, weight: tuple[int, ...]) -> LayerShape:
        attributes, given, made = dict(self.attributes), list(self.given), list(self.made)
        if self.op in ("Conv", "ConvTranspose"):
            many = attributes.get("group", 1)
            if many > 1 and self.weight[1] == 1 and self.op == "Conv":
                many = weight[0] * many // self.weight[0]
            elif many > 1 and self.weight[1] == 1 and self.op == "ConvTranspose":
                many = weight[0]
            attributes["group"] = many
            sides = (weight[1] * many, weight[0]) if self.op == "Conv" else (weight[0], weight[1] * many)
            given[1], made[1] = sides
        elif self.op == "Gemm":
            inner, outer = (1, 0) if attributes.get("transB") else (0, 1)
            given[0 if attributes.get("transA") else 1], made[1] = weight[inner], weight[outer]
        elif self.first:
            given[-2], made[-2] = weight[-1], weight[-2]
        else:
            given[-1], made[-1] = weight[-2], weight[-1]
        ordered = tuple(sorted(attributes.items()))
        return LayerShape(self.name, self.op, ordered, tuple(given), weight, tuple(made), self.first)


_Axes = Mapping[str, Mapping[int, Sequence[tuple[int, int]]]]
"""Initializer to axis to pairs of group and how often each of its channels stands there."""


def _axes(groups: Sequence[ChannelGroup]) -> _Axes:
    found: dict[str, dict[int, list[tuple[int, int]]]] = defaultdict(lambda: defaultdict(list))
    for at, group in enumerate(groups):
        for entry in group.entries:
            found[entry.name][entry.axis].append((at, entry.positions.shape[1]))
    return found


def _shape(value: ir.Value | None) -> tuple[int, ...] | None:
    """Shape with the batch set to 1; None where something else is not known."""
    if value is None:
        return None
    if value.const_value is not None:
        return tuple(int(n) for n in value.const_value.shape.numpy())
    if value.shape is None:
        return None
    dims = [1 if i == 0 and not isinstance(d, int) else d for i, d in enumerate(value.shape)]
    return (
        tuple(int(d) for d in dims if isinstance(d, int)) if all(isinstance(d, int) for d in dims) else None
    )


def _plain(attribute: ir.Attr) -> Any:
    found = attribute.value
    if isinstance(found, list | tuple | np.ndarray):
        return tuple(found)
    return found
