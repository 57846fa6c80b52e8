"""Which layer each back end loses on: per-layer times of several back ends, side by side.

Back ends fuse, rename and split layers. The lines are those of the engine's own network after its passes; a layer of a
back end belongs to the line that computes the node, or the value, that its name speaks of.
"""

from __future__ import annotations

import re
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from dlas.core.errors import DlasError
from dlas.graph.model import Model
from dlas.runtime.backend import deployable
from dlas.runtime.engine.engine import prepared
from dlas.runtime.engine.lower import lower
from dlas.runtime.engine.network import Network

LAYOUT, OTHER = "changes of layout", "other"
CAUTION = (
    "times of single layers mislead: a layer that is slow alone may save its neighbours a change of layout, and every "
    "back end measures itself by its own clock; only the whole network counts"
)
_CLEAR = 1.05  # a layer is lost where it takes this many times the best
_CLEAR_MS = 0.0005
_ALIGNED = 0.5
_SUFFIX = re.compile(
    r"(?:_nchwc|_token_\d+|/WithoutBiases|_quant|/fq_\w+|_fused\w*|/Add|/Reshape|_\d+_nchwc)$"
)
_SEVERAL = re.compile(r"\s*[,;|]\s*|\s+\+\s+|\s+")


@dataclass
class Line:
    """One layer, with the time that every back end takes for it.

    Attributes:
        name: Name of the layer, or :data:`LAYOUT` or :data:`OTHER`.
        op: Operator.
        nodes: Nodes of the network that are computed in it.
        milliseconds: By back end; what a back end did not tell apart is missing.
        impls: How it was computed, by back end, where that is known.
    """

    name: str
    op: str
    nodes: tuple[str, ...] = ()
    milliseconds: dict[str, float] = field(default_factory=dict)
    impls: dict[str, str] = field(default_factory=dict)

    def best_of(self, backends: Sequence[str]) -> str:
        """The fastest of those that told; empty where none did."""
        told = [b for b in backends if b in self.milliseconds]
        return min(told, key=lambda b: self.milliseconds[b]) if told else ""


@dataclass
class Explanation:
    """Layers side by side, for one number of threads.

    Attributes:
        threads: Threads.
        backends: Those that told the times of their layers.
        lines: One per layer, then changes of layout, then what could not be aligned.
        silent: Back ends that told nothing, and why.
    """

    threads: int
    backends: tuple[str, ...]
    lines: tuple[Line, ...]
    silent: Mapping[str, str]

    def aligned(self, backend: str) -> float:
        """Share of a back end's time that stands in lines of layers."""
        times = [(line.name, line.milliseconds.get(backend, 0.0)) for line in self.lines]
        total = sum(ms for _, ms in times)
        return sum(ms for name, ms in times if name not in (LAYOUT, OTHER)) / total if total else 0.0

    @property
    def shown(self) -> tuple[str, ...]:
        """Back ends whose layers could mostly be aligned; all of them where none could."""
        return tuple(b for b in self.backends if self.aligned(b) >= _ALIGNED) or self.backends

    def losses(self, backend: str) -> list[tuple[Line, str, float]]:
        """Layers that another back end computes clearly faster: the line, by whom, and the milliseconds lost."""
        found = []
        for line in self.lines:
            own, best = line.milliseconds.get(backend), line.best_of(self.backends)
            if own is None or best in ("", backend) or line.name in (LAYOUT, OTHER):
                continue
            lost = own - line.milliseconds[best]
            if own > _CLEAR * line.milliseconds[best] and lost > _CLEAR_MS:
                found.append((line, best, lost))
        return sorted(found, key=lambda item: -item[2])

    def sentences(self, most: int = 3) -> list[str]:
        """For every back end, the layers it loses most on."""
        if len(self.backends) < 2:
            return ["nothing to compare: fewer than two back ends told the times of their layers"]
        return [self._sentence(backend, most) for backend in self.backends]

    def _sentence(self, backend: str, most: int) -> str:
        total = sum(line.milliseconds.get(backend, 0.0) for line in self.lines)
        if self.aligned(backend) < _ALIGNED:
            return f"{backend} names its layers in a way that cannot be aligned ({total:.4g} ms in all)"
        lost = self.losses(backend)
        if not lost:
            return f"{backend} loses on no layer"
        layers = sum(line.name not in (LAYOUT, OTHER) for line in self.lines)
        listed = ", ".join(
            f"{line.name} ({line.milliseconds[backend]:.3g} against {line.milliseconds[best]:.3g} ms of {best})"
            for line, best, _ in lost[:most]
        )
        more = f" and {len(lost) - most} more" if len(lost) > most else ""
        return (
            f"{backend} loses {sum(ms for _, _, ms in lost):.3g} of {total:.3g} ms on {len(lost)} of {layers} layers: "
            f"{listed}{more}"
        )

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "threads": self.threads,
            "backends": list(self.backends),
            "lines": [
                {
                    "name": line.name,
                    "op": line.op,
                    "nodes": list(line.nodes),
                    "milliseconds": line.milliseconds,
                    "impls": line.impls,
                }
                for line in self.lines
            ],
            "silent": dict(self.silent),
            "sentences": self.sentences(),
            "caution": CAUTION,
        }


def explain(
    model: Model, layers: Mapping[str, Sequence[Mapping[str, Any]]], threads: int, silent: Mapping[str, str]
) -> Explanation:
    """Align the layers of several back ends.

    Args:
        model: The network.
        layers: By back end, rows of ``name``, ``op``, ``milliseconds`` and perhaps ``nodes`` and ``impl``.
        threads: Threads they were timed with.
        silent: Back ends without such rows, and why.
    """
    index = _Index(model)
    lines = [Line(name, op, nodes) for name, op, nodes in index.groups]
    layout, other = Line(LAYOUT, ""), Line(OTHER, "")
    for backend, rows in layers.items():
        for row in rows:
            place = index.find(row.get("nodes") or [row["name"]])
            moved = place is None and re.search(r"reorder|transpose|layout", row["op"], re.IGNORECASE)
            line = lines[place] if place is not None else layout if moved else other
            line.milliseconds[backend] = line.milliseconds.get(backend, 0.0) + row["milliseconds"]
            if row.get("impl"):
                line.impls.setdefault(backend, row["impl"])
    told = [line for line in (*lines, layout, other) if line.milliseconds]
    return Explanation(threads, tuple(layers), tuple(told), silent)


class _Index:
    """Nodes and values of a network, by the group of the fused network that computes them."""

    def __init__(self, model: Model) -> None:
        self.groups: list[tuple[str, str, tuple[str, ...]]] = []
        self._nodes: dict[str, int] = {}
        self._values: dict[str, int] = {}
        try:
            ready = deployable(model)
            plain, fused = lower(ready, fold_pads=False), prepared(ready)
        except DlasError:  # what the engine cannot lower is aligned by the names of its nodes alone
            for node in model.ir.graph:
                self._enter(
                    str(node.name), node.op_type, [str(node.name)], [str(v.name) for v in node.outputs]
                )
            return
        for call in fused.calls:
            nodes, values = _inside(plain, call.outputs, call.reads)
            self._enter(call.name, call.node.op, nodes or [call.name], [*values, *call.outputs])

    def _enter(self, name: str, op: str, nodes: Sequence[str], values: Sequence[str]) -> None:
        place = len(self.groups)
        self.groups.append((name, op, tuple(dict.fromkeys([name, *nodes]))))
        for node in (name, *nodes):
            self._nodes.setdefault(node, place)
        for value in values:
            self._values.setdefault(value, place)

    def find(self, names: Sequence[str]) -> int | None:
        """The first group that one of these names speaks of."""
        for name in names:
            for part in (name, *_SEVERAL.split(name)):
                found = self._one(part)
                if found is not None:
                    return found
        return None

    def _one(self, name: str) -> int | None:
        while name:
            for table in (self._nodes, self._values):
                if name in table:
                    return table[name]
            shorter = _SUFFIX.sub("", name)
            if shorter == name:
                return None
            name = shorter
        return None


def _inside(plain: Network, outputs: Sequence[str], reads: Sequence[str]) -> tuple[list[str], list[str]]:
    """Nodes and values of the network before its passes that lie between ``reads`` and ``outputs``."""
    makers = plain.makers
    todo, nodes, values = list(outputs), [], []
    seen = set(reads)
    while todo:
        name = todo.pop()
        if name in seen or name not in makers:
            continue
        seen.add(name)
        call = plain.calls[makers[name]]
        nodes.append(call.name)
        values.append(name)
        todo += call.reads
    return nodes[::-1], values
