"""Which channels a schedule may take, how many it must, and what cannot be reached.

A target is the fraction of the weights of convolutions and linear layers that leave; it is counted exactly from the
groups, because a channel that leaves takes its filters and what later layers read of it.
"""

from __future__ import annotations

import fnmatch
import math
from collections import defaultdict
from collections.abc import Sequence
from dataclasses import dataclass

import onnx_ir as ir

from dlas.core.errors import OptionError, UnknownNameError, UnsupportedError
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup
from dlas.graph.model import Model
from dlas.graph.passes import tidy


@dataclass(frozen=True)
class Selection:
    """Groups that may lose channels.

    Attributes:
        graph: The tidied graph the groups are of.
        places: Their positions among ``groups(graph).prunable``, which stay while channels leave.
        groups: The groups, in forward order.
        notes: What stays, and why.
    """

    graph: ir.Model
    places: tuple[int, ...]
    groups: tuple[ChannelGroup, ...]
    notes: tuple[str, ...]

    @property
    def macs(self) -> int:
        """Multiply-accumulates of the graph per sample."""
        return channels.groups(self.graph).macs


def select(model: Model, pattern: str, *, include_residual: bool) -> Selection:
    """The groups of a network that a schedule may prune.

    Args:
        model: The network; a tidied copy of its graph is looked at.
        pattern: Names of layers with ``*`` and ``?``; several stand with ``|`` between them. ``*`` is every layer.
        include_residual: Whether channels that several layers compute together count.

    Raises:
        UnknownNameError: The pattern matches no layer; the nearest names are shown.
        UnsupportedError: It matches layers, but none may lose channels; says why.
    """
    graph = model.editable()
    tidy(graph)
    found = channels.groups(graph)
    patterns = [p for p in pattern.split("|") if p]
    matched = [g for g in found.groups if _matches(g, patterns)]
    if not matched:
        raise UnknownNameError("layer", pattern, [name for g in found.groups for name in g.producers])
    chosen = [
        (i, g)
        for i, g in enumerate(found.prunable)
        if _matches(g, patterns) and g.size > 1 and (include_residual or not g.coupled)
    ]
    notes = [f"{g.name} keeps its {g.size} channels: {g.reason}" for g in matched if not g.prunable]
    shared = [g for g in matched if g.prunable and g.coupled]
    if not include_residual:
        notes += [
            f"{g.name} keeps its {g.size} channels: {len(g.producers)} layers share them (include_residual=false)"
            for g in shared
        ]
    if not chosen:
        raise UnsupportedError(
            f"{model.name} has no channels that may be removed ({'; '.join(notes[:5]) or 'no layer has two'})",
            "give include_residual=true"
            if shared and not include_residual
            else "channels leave inside chains of Conv, ConvTranspose, Gemm and MatMul",
        )
    return Selection(graph, tuple(i for i, _ in chosen), tuple(g for _, g in chosen), tuple(notes))


def _matches(group: ChannelGroup, patterns: Sequence[str]) -> bool:
    return any(fnmatch.fnmatchcase(name, p) for p in patterns for name in group.producers)


def weights(graph: ir.Model) -> int:
    """Stored weights of at least two dimensions: those of convolutions and linear layers."""
    return sum(math.prod(shape) for shape in _shapes(graph).values())


def _shapes(graph: ir.Model) -> dict[str, tuple[int, ...]]:
    found = {}
    for name, value in graph.graph.initializers.items():
        tensor = value.const_value
        if tensor is not None and len(tensor.shape) >= 2 and tensor.dtype is not ir.DataType.INT64:
            found[name] = tuple(int(n) for n in tensor.shape.numpy())
    return found


def remaining(graph: ir.Model, groups: Sequence[ChannelGroup], counts: Sequence[int]) -> int:
    """What :func:`weights` gives once ``counts[k]`` channels of ``groups[k]`` are gone."""
    shapes = _shapes(graph)
    lost: dict[str, dict[int, int]] = defaultdict(lambda: defaultdict(int))
    for group, count in zip(groups, counts, strict=True):
        for entry in group.entries:
            lost[entry.name][entry.axis] += count * entry.positions.shape[1]
    return sum(math.prod(n - lost[name][axis] for axis, n in enumerate(s)) for name, s in shapes.items())


def counts_at(ratio: float, groups: Sequence[ChannelGroup]) -> list[int]:
    """How many channels leave each group at a ratio: rounded up, and at least one stays."""
    return [min(g.size - 1, math.ceil(ratio * g.size - 1e-9)) for g in groups]


def counts_for(
    selection: Selection, ratio: float, target_sparsity: float, owner: str
) -> tuple[float, list[int]]:
    """The ratio and the counts of each group that fulfil a target, or those of ``ratio`` where there is none.

    Raises:
        UnsupportedError: The target cannot be reached; says what can.
    """
    if not target_sparsity:
        return ratio, counts_at(ratio, selection.groups)
    total = weights(selection.graph)

    def sparsity(counts: list[int]) -> float:
        return 1 - remaining(selection.graph, selection.groups, counts) / total

    reach = sparsity([g.size - 1 for g in selection.groups])
    if reach < target_sparsity:
        raise UnsupportedError(
            f"{owner}: target_sparsity = {target_sparsity} cannot be reached: with one channel left in each of the "
            f"{len(selection.groups)} groups that may be pruned, {reach:.3f} of the weights are gone",
            "ask for less, or let more layers be pruned with include_residual=true and layers=*",
        )
    low, high = 0.0, 1.0
    for _ in range(30):
        middle = (low + high) / 2
        if sparsity(counts_at(middle, selection.groups)) >= target_sparsity:
            high = middle
        else:
            low = middle
    return high, counts_at(high, selection.groups)


def seconds_of(budget: str, owner: str) -> float:
    """Seconds of ``90s``, ``30m`` or ``2h``; infinity for an empty text.

    Raises:
        OptionError: Another form, or no time at all.
    """
    if not budget:
        return math.inf
    unit = {"s": 1.0, "m": 60.0, "h": 3600.0}.get(budget[-1].lower())
    try:
        seconds = float(budget[:-1]) * unit if unit is not None else math.nan
    except ValueError:
        seconds = math.nan
    if not 0 < seconds < math.inf:
        raise OptionError(f"{owner}: budget", budget, "a time such as 90s, 30m or 2h")
    return seconds
