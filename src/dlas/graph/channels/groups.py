"""Groups of channels that leave together, and taking them out of a graph."""

from __future__ import annotations

from collections import defaultdict
from collections.abc import Iterable
from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.channels import arithmetic, movement
from dlas.graph.channels.labels import Ids, Labels, Refusal, Rule, is_stored, label_of

RULES: dict[str, Rule] = {**arithmetic.RULES, **movement.RULES}
"""Operator to rule; operators that are not here freeze the channels they read."""


@dataclass(frozen=True, eq=False)
class Entry:
    """Where the channels of a group lie in one stored array.

    Attributes:
        name: Initializer.
        axis: Axis the channels run along.
        role: ``producer`` (a filter that computes the channel), ``depthwise`` (a filter that only passes it on) or
            ``follower`` (bias, normalisation, reading weights, scales).
        positions: ``(channels, repeats) int64``: positions along the axis, one row per channel of the group.
    """

    name: str
    axis: int
    role: Literal["producer", "depthwise", "follower"]
    positions: np.ndarray


@dataclass(frozen=True, eq=False)
class ChannelGroup:
    """Channels that lie in the same places: any of them can be removed, and all of them cost the same.

    Attributes:
        name: The first layer that computes them, with the others counted.
        ids: ``(channels,) int64``: names of the channels, valid for this graph and its copies.
        entries: Stored arrays that hold them.
        producers: Layers that compute them, in graph order; more than one when a residual sum couples layers.
        macs_per_channel: Multiply-accumulates per sample that one channel costs, all others being kept.
        parameters_per_channel: Stored numbers that one channel costs, all others being kept.
        reason: Why they must stay; empty when they may be removed.
    """

    name: str
    ids: Ids
    entries: tuple[Entry, ...]
    producers: tuple[str, ...]
    macs_per_channel: int
    parameters_per_channel: int
    reason: str = ""

    @property
    def size(self) -> int:
        """Number of channels."""
        return self.ids.size

    @property
    def prunable(self) -> bool:
        """Whether channels may be removed."""
        return not self.reason

    @property
    def coupled(self) -> bool:
        """Whether several layers compute the channels together, as around a residual sum."""
        return len({e.name for e in self.entries if e.role == "producer"}) > 1


@dataclass(frozen=True, eq=False)
class ChannelGroups:
    """All channels of a graph, grouped.

    Attributes:
        groups: In the order in which the graph computes them.
        macs: Multiply-accumulates of all convolutions and linear layers per sample.
    """

    groups: tuple[ChannelGroup, ...]
    macs: int = field(default=0)

    @property
    def prunable(self) -> tuple[ChannelGroup, ...]:
        """Groups that may lose channels."""
        return tuple(g for g in self.groups if g.prunable)

    @property
    def frozen(self) -> tuple[ChannelGroup, ...]:
        """Groups that must stay, each with its reason."""
        return tuple(g for g in self.groups if not g.prunable)


def groups(graph: ir.Model) -> ChannelGroups:
    """Find which channels of ``graph`` must be removed together.

    Every axis of every tensor is a list of channel ids that operators pass on, unite or freeze; ids united by a
    residual sum, a normalisation, a depthwise convolution and so on are one channel. A group is the set of channels
    with the same places. Shapes should be inferred and constants lifted to initializers first (``passes.simplify``):
    what cannot be followed without them is frozen.
    """
    return _group(_walk(graph))


def remove(graph: ir.Model, ids: Iterable[int]) -> None:
    """Take channels out of ``graph``, in place: weights, shapes and constants of structural operators shrink.

    Args:
        graph: An editable graph; changed.
        ids: Channels as named by :func:`groups` on this graph or a copy of it. They are not valid afterwards.

    Raises:
        UnsupportedError: An id is unknown, must stay, or is the last one of a tensor; nothing is changed.
    """
    labels = _walk(graph)
    dead = _checked(labels, ids)

    def keep(some: Ids) -> np.ndarray:
        return ~np.isin(labels.roots(some), dead)

    changed: dict[ir.Value, dict[int, np.ndarray]] = defaultdict(dict)
    for value, axis, axis_ids in labels.tracked():
        kept = keep(axis_ids)
        if not kept.any() and kept.size:
            raise UnsupportedError(
                f"removing these channels would leave nothing of {value.name!r}", "keep at least one channel"
            )
        if not kept.all():
            changed[value][axis] = kept
    for value, axes in changed.items():
        _shrink(value, axes)
    for adjust in labels.adjustments:
        adjust(keep)


def mask(graph: ir.Model, ids: Iterable[int]) -> None:
    """Set channels to exact zero wherever they are stored, in place: what :func:`remove` does, without shrinking.

    Raises:
        UnsupportedError: An id is unknown or must stay; nothing is changed.
    """
    labels = _walk(graph)
    dead = _checked(labels, ids)
    for value, axis, axis_ids in labels.tracked():
        gone = np.isin(labels.roots(axis_ids), dead)
        if not is_stored(value) or value in labels.unmaskable or not gone.any():
            continue
        assert value.const_value is not None
        array = value.const_value.numpy().copy()
        place = (slice(None),) * axis + (gone,)
        array[place] = _zero(labels, value, array)[place]
        value.const_value = ir.tensor(array, name=value.name)


def survivors(graph: ir.Model, ids: Iterable[int]) -> dict[str, np.ndarray]:
    """Which channels of each layer's output would stay after removing ``ids``.

    Returns:
        Name of the output of every Conv and Gemm to ``(channels,) bool`` along its axis 1.
    """
    labels = _walk(graph)
    dead = _checked(labels, ids)
    found = {}
    for node in graph.graph:
        own = labels.of(node.outputs[0]).get(1)
        if node.op_type in ("Conv", "Gemm") and own is not None:
            found[str(node.outputs[0].name)] = ~np.isin(labels.roots(own), dead)
    return found


def real_weight(graph: ir.Model, name: str) -> np.ndarray:
    """A stored array as real numbers: integers behind a DequantizeLinear are multiplied out.

    Returns:
        An array of the stored shape, float32 or as stored.
    """
    value = graph.graph.initializers[name]
    assert value.const_value is not None
    array = value.const_value.numpy()
    for user, index in value.uses():
        if user.op_type != "DequantizeLinear" or index != 0:
            continue
        factors = [
            None if v is None or v.const_value is None else v.const_value.numpy() for v in user.inputs[1:]
        ]
        scale = factors[0]
        zero = factors[1] if len(factors) > 1 and factors[1] is not None else np.zeros(1)
        if scale is None:
            continue
        found = user.attributes.get("axis")
        shape = [1] * array.ndim
        shape[1 if found is None else found.as_int()] = -1
        centred = array.astype(np.float32) - zero.astype(np.float32).reshape(shape if zero.size > 1 else (1,))
        return (centred * scale.reshape(shape if scale.size > 1 else (1,))).astype(np.float32)
    return array


def _walk(graph: ir.Model) -> Labels:
    labels = Labels()
    for node in graph.graph:
        standard = node.domain in ("", "ai.onnx")
        rule = RULES.get(node.op_type) if standard else None
        if rule is None:
            _freeze_inputs(
                labels, node, f"{label_of(node)} is a {node.op_type}, for which there is no channel rule"
            )
            continue
        try:
            rule(labels, node)
        except Refusal as refusal:
            _freeze_inputs(labels, node, f"{label_of(node)} ({node.op_type}) {refusal}")
    for value in graph.graph.outputs:
        labels.freeze_value(value, f"{value.name!r} is an output of the network")
    return labels


def _freeze_inputs(labels: Labels, node: ir.Node, reason: str) -> None:
    for value in node.inputs:
        labels.freeze_value(value, reason)
    for found in node.attributes.values():
        if found.type in (ir.AttributeType.GRAPH, ir.AttributeType.GRAPHS):
            subgraphs = [found.as_graph()] if found.type is ir.AttributeType.GRAPH else found.as_graphs()
            for subgraph in subgraphs:
                for inner in subgraph.all_nodes():
                    for value in inner.inputs:
                        labels.freeze_value(value, reason)
    for value in node.outputs:
        labels.put(value, {})


def _checked(labels: Labels, ids: Iterable[int]) -> Ids:
    wanted = np.unique(np.fromiter((int(i) for i in ids), np.int64))
    prunable = {int(i): g for g in _group(labels).groups for i in g.ids}
    for index in wanted:
        group = prunable.get(int(index))
        if group is None:
            raise UnsupportedError(
                f"{index} is not a channel of this graph",
                "ids come from groups() on the same, unchanged graph",
            )
        if not group.prunable:
            raise UnsupportedError(f"channel {index} of {group.name} must stay: {group.reason}")
    return wanted


def _shrink(value: ir.Value, axes: dict[int, np.ndarray]) -> None:
    if is_stored(value):
        assert value.const_value is not None
        array = value.const_value.numpy()
        for axis, kept in axes.items():
            array = np.compress(kept, array, axis=axis)
        tensor = ir.tensor(np.ascontiguousarray(array), dtype=value.const_value.dtype, name=value.name)
        value.const_value = tensor
        value.shape = ir.Shape(array.shape)
    elif value.shape is not None:
        dims = [int(axes[a].sum()) if a in axes else n for a, n in enumerate(value.shape)]
        value.shape = ir.Shape(dims)


def _zero(labels: Labels, value: ir.Value, array: np.ndarray) -> np.ndarray:
    """What stands for 0.0 in a stored array, in its shape."""
    zero = labels.zero_points.get(value)
    if zero is None or zero.const_value is None:
        return np.zeros_like(array)
    point = zero.const_value.numpy()
    shape = [1] * array.ndim
    if point.size > 1:
        shape[labels.scales[value][1]] = point.size
    return np.broadcast_to(point.reshape(shape), array.shape)


def _group(labels: Labels) -> ChannelGroups:
    places: dict[int, list[tuple[int, int]]] = defaultdict(list)
    tracked = [(v, a, labels.roots(ids), ids) for v, a, ids in labels.tracked()]
    producers: dict[int, dict[str, None]] = defaultdict(dict)
    for index, name in labels.produced.items():
        producers[labels.root(index)][name] = None
    for place, (_, _, roots, _) in enumerate(tracked):
        for root, count in zip(*np.unique(roots, return_counts=True), strict=True):
            if int(root) in producers:
                places[int(root)].append((place, int(count)))
    reasons: dict[int, str] = {}
    for ids, reason in labels.frozen:
        for root in labels.roots(ids):
            reasons.setdefault(int(root), reason)
    members: dict[tuple[tuple[tuple[int, int], ...], str], list[int]] = defaultdict(list)
    for root in producers:
        members[tuple(places[root]), reasons.get(root, "")].append(root)
    found = [
        _make_group(labels, tracked, spots, roots, tuple(producers[roots[0]]), reason)
        for (spots, reason), roots in members.items()
    ]
    return ChannelGroups(tuple(found), sum(labels.macs.values()))


def _make_group(
    labels: Labels,
    tracked: list[tuple[ir.Value, int, Ids, Ids]],
    spots: tuple[tuple[int, int], ...],
    roots: list[int],
    producers: tuple[str, ...],
    reason: str,
) -> ChannelGroup:
    entries, macs, parameters = [], 0, 0
    for place, repeats in spots:
        value, axis, value_roots, ids = tracked[place]
        if not is_stored(value):
            continue
        order = np.argsort(value_roots, kind="stable")
        first = np.searchsorted(value_roots[order], roots)
        positions = order[first[:, None] + np.arange(repeats)]
        own = int(ids[positions[0, 0]])
        role: Literal["producer", "depthwise", "follower"] = "follower"
        if own in labels.produced:
            role = "depthwise" if own in labels.depthwise else "producer"
        entries.append(Entry(str(value.name), axis, role, positions))
        assert value.const_value is not None
        parameters += value.const_value.size * repeats // value_roots.size
        macs += labels.macs.get(value, 0) * repeats // value_roots.size
    name = producers[0] if len(producers) == 1 else f"{producers[0]} and {len(producers) - 1} more"
    return ChannelGroup(
        name, np.asarray(roots, np.int64), tuple(entries), producers, macs, parameters, reason
    )
