"""Channel labels: which position of which axis of which tensor is the same channel.

Every axis of every tensor either carries one integer id per position or is untracked. Weights start with fresh ids
on all their axes; walking the graph once, each operator says which ids are one channel (``unite``), which may not be
removed (``freeze``), and what its own constants must become after a removal (``adjust``).
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import numpy as np
import onnx_ir as ir

Ids = np.ndarray
"""``(length of the axis,) int64``: one channel id per position."""

AxisIds = dict[int, Ids]
"""Ids of the tracked axes of one tensor, by axis."""

Keep = Callable[[Ids], np.ndarray]
"""Ids to ``bool`` of the same shape: which of them stay."""


class Refusal(Exception):  # noqa: N818 - not an error of the user's: the ids at hand become frozen
    """An operator is used in a way its rule does not cover; the message is the reason shown in reports."""


class Labels:
    """Union-find over channel ids, and what the walk over one graph found out.

    Attributes:
        frozen: Pairs of ids that must stay and the reason.
        produced: Id to the name of the convolution or linear layer that computes it.
        depthwise: Ids that a depthwise convolution computes; they are no channels of their own.
        adjustments: Called after a removal to mend constants of structural operators.
        macs: Multiply-accumulates per sample of every weight.
        unmaskable: Constants that must not be set to zero: divisors, quantisation scales and zero points.
        zero_points: Quantised constant to the zero point that stands for 0.0 in it.
        scales: Quantised constant to its scale and the axis the scale runs along.
    """

    def __init__(self) -> None:
        self._parent: list[int] = []
        self._axes: dict[ir.Value, AxisIds] = {}
        self._origin: dict[ir.Value, ir.Value] = {}
        self.frozen: list[tuple[Ids, str]] = []
        self.produced: dict[int, str] = {}
        self.depthwise: set[int] = set()
        self.adjustments: list[Callable[[Keep], None]] = []
        self.macs: dict[ir.Value, int] = {}
        self.unmaskable: set[ir.Value] = set()
        self.zero_points: dict[ir.Value, ir.Value] = {}
        self.scales: dict[ir.Value, tuple[ir.Value, int]] = {}

    def fresh(self, count: int) -> Ids:
        """``count`` new ids, each a class of its own."""
        start = len(self._parent)
        self._parent.extend(range(start, start + count))
        return np.arange(start, start + count, dtype=np.int64)

    def root(self, index: int) -> int:
        """The id that stands for the class of ``index``: its smallest member."""
        parent = self._parent
        while parent[index] != index:
            parent[index] = parent[parent[index]]
            index = parent[index]
        return index

    def roots(self, ids: Ids) -> Ids:
        """Element-wise :meth:`root`."""
        return np.fromiter((self.root(int(i)) for i in ids.flat), np.int64, ids.size).reshape(ids.shape)

    def unite(self, first: Ids, second: Ids) -> None:
        """Make the ids one channel position by position; raises Refusal when the lengths differ."""
        if first.shape != second.shape:
            raise Refusal(f"joins axes of {first.size} and {second.size} channels")
        for one, other in zip(first.flat, second.flat, strict=True):
            a, b = self.root(int(one)), self.root(int(other))
            self._parent[max(a, b)] = min(a, b)

    def join(self, operands: Sequence[Ids | None], reason: str) -> Ids | None:
        """Unite all tracked operands; an untracked one among them freezes the rest with ``reason``."""
        tracked = [ids for ids in operands if ids is not None]
        if not tracked:
            return None
        for ids in tracked[1:]:
            self.unite(tracked[0], ids)
        if len(tracked) < len(operands):
            self.freeze(tracked[0], reason)
        return tracked[0]

    def freeze(self, ids: Ids | None, reason: str) -> None:
        """Forbid the removal of ``ids``; the first reason given to a class is the one reported."""
        if ids is not None and ids.size:
            self.frozen.append((ids.ravel(), reason))

    def freeze_value(self, value: ir.Value | None, reason: str, but: Sequence[int] = ()) -> None:
        """Freeze every tracked axis of ``value`` except those in ``but``."""
        for axis, ids in self.of(value).items():
            if axis not in but:
                self.freeze(ids, reason)

    def of(self, value: ir.Value | None) -> AxisIds:
        """Ids of the tracked axes of ``value``; a stored weight is tracked on all its axes."""
        if value is None:
            return {}
        if value not in self._axes:
            sizes = sizes_of(value) if is_stored(value) else None
            self._axes[value] = {a: self.fresh(n) for a, n in enumerate(sizes or ()) if n is not None}
        return self._axes[value]

    def put(self, value: ir.Value, axes: AxisIds) -> None:
        """Set the ids of what an operator computes."""
        self._axes[value] = axes

    def tracked(self) -> list[tuple[ir.Value, int, Ids]]:
        """Every tracked axis of every tensor."""
        return [(value, axis, ids) for value, axes in self._axes.items() for axis, ids in axes.items()]

    def derive(self, value: ir.Value, source: ir.Value) -> None:
        """Remember that ``value`` is the stored constant ``source`` in another form."""
        self._origin[value] = self._origin.get(source, source)

    def stored(self, value: ir.Value | None) -> ir.Value | None:
        """The stored constant behind ``value``, or None if it is computed from the input."""
        if value is None:
            return None
        value = self._origin.get(value, value)
        return value if is_stored(value) else None

    def produce(self, node: ir.Node, weight: ir.Value, ids: Ids, macs: int, depthwise: bool = False) -> None:
        """Record that ``node`` computes the channels ``ids`` from ``weight`` at a cost of ``macs`` per sample."""
        stored = self.stored(weight)
        if stored is None:
            raise Refusal("has weights that are computed while the network runs")
        for index in ids:
            self.produced[int(index)] = label_of(node)
        if depthwise:
            self.depthwise.update(int(i) for i in ids)
        self.macs[stored] = self.macs.get(stored, 0) + macs


def is_stored(value: ir.Value) -> bool:
    """Whether ``value`` is an initializer with its data at hand."""
    return value.is_initializer() and value.const_value is not None


def sizes_of(value: ir.Value | None) -> list[int | None] | None:
    """Sizes of a tensor, None for a dynamic one; None if the rank is unknown."""
    if value is None:
        return None
    if value.const_value is not None:
        return [int(n) for n in value.const_value.shape.numpy()]
    if value.shape is None:
        return None
    return [n if isinstance(n, int) else None for n in value.shape]


def sizes(value: ir.Value | None) -> list[int | None]:
    """Sizes of a tensor whose rank a rule needs; raises Refusal when it is unknown."""
    found = sizes_of(value)
    if found is None:
        raise Refusal("has a tensor of unknown rank")
    return found


def constant_of(value: ir.Value | None) -> np.ndarray | None:
    """The array behind a constant operand, or None."""
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return None if tensor is None else tensor.numpy()


def label_of(node: ir.Node) -> str:
    """A name for reports: the node's own, or that of what it computes."""
    return node.name or str(node.outputs[0].name)


def attribute(node: ir.Node, name: str, default: int) -> int:
    """An integer attribute."""
    found = node.attributes.get(name)
    return default if found is None else int(found.value)


def replace_operand(node: ir.Node, index: int, array: np.ndarray) -> None:
    """Give ``node`` its own constant as operand ``index`` (the old one may serve other nodes too)."""
    graph = node.graph
    assert isinstance(graph, ir.Graph)
    old = node.inputs[index] if index < len(node.inputs) else None
    stem = f"{node.outputs[0].name}.operand{index}"
    name, count = stem, 0
    while name in graph.initializers:
        count += 1
        name = f"{stem}.{count}"
    tensor = ir.tensor(array, name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    if index >= len(node.inputs):
        node.resize_inputs(index + 1)
    node.replace_input_with(index, value)
    if old is not None and old.is_initializer() and not old.uses() and not old.is_graph_output():
        graph.initializers.pop(str(old.name))


Rule = Callable[[Labels, ir.Node], None]
"""What an operator does to the ids of its operands."""
