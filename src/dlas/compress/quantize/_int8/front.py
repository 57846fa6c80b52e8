"""Points of a search between float and int8, which of them are worth having, and which to take."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import Any

import numpy as np

BEST = 3  # points nearest to the ideal one that are marked


@dataclass(frozen=True)
class Point:
    """A network in which some layers are float.

    Attributes:
        floats: Positions in the ranking of the layers that are float, sorted.
        label_diff: Share of rows whose label differs from that of the float network; None where there are no labels.
        relative_l2: ``||a - b|| / ||a||`` of the answers a of the float network.
        size_bytes: Size of the ONNX file without metadata.
        latency_ms: Time per run, where someone can tell.
        held_out_label_diff: ``label_diff`` on rows that had no say in the search.
        held_out_relative_l2: ``relative_l2`` on them.
        rank: 1 for the point nearest to the ideal one, and so on up to :data:`BEST`; 0 for the others.
        chosen: Whether this is the network that was made.
    """

    floats: tuple[int, ...]
    label_diff: float | None
    relative_l2: float
    size_bytes: int
    latency_ms: float | None = None
    held_out_label_diff: float | None = None
    held_out_relative_l2: float | None = None
    rank: int = 0
    chosen: bool = False

    @property
    def dissimilarity(self) -> float:
        """What the search brings down: the label difference, or the error of answers without labels."""
        return self.relative_l2 if self.label_diff is None else self.label_diff

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON, without what is not known."""
        fields = {
            "float_layers": list(self.floats),
            "label_diff": self.label_diff,
            "sqnr_db": decibels(self.relative_l2),
            "size_bytes": self.size_bytes,
            "latency_ms": self.latency_ms,
            "held_out_label_diff": self.held_out_label_diff,
            "held_out_sqnr_db": decibels(self.held_out_relative_l2),
            "rank": self.rank,
            "chosen": self.chosen,
        }
        return {k: v for k, v in fields.items() if v is not None}


def decibels(relative_l2: float | None) -> float | None:
    """Signal-to-quantisation-noise ratio; None where there is no noise."""
    return round(-20 * float(np.log10(relative_l2)), 2) if relative_l2 else None


def pareto(points: Sequence[Point]) -> list[Point]:
    """Points that no other one beats, by size; the smallest and the most faithful are among them.

    A point beats another if it is worse in nothing: dissimilarity (the error of the answers decides between equals),
    size, and latency where that is known.
    """

    def costs(p: Point) -> tuple[tuple[float, float], tuple[float], tuple[float]]:
        return (p.dissimilarity, p.relative_l2), (p.size_bytes,), (p.latency_ms or 0.0,)

    def beats(a: Point, b: Point) -> bool:
        (x, y, z), (u, v, w) = costs(a), costs(b)
        return costs(a) != costs(b) and x <= u and y <= v and z <= w

    kept = [p for p in points if not any(beats(q, p) for q in points)]
    distinct = {costs(p): p for p in reversed(kept)}
    return sorted(distinct.values(), key=lambda p: (p.size_bytes, p.dissimilarity, p.relative_l2))


def ranked(front: Sequence[Point], resolution: float = 0.0) -> list[Point]:
    """The front with the points nearest to the ideal one marked, objectives scaled to 0..1 over the front.

    Args:
        front: Points of :func:`pareto`.
        resolution: Differences of the dissimilarity below this are not blown up to the whole of 0..1.
    """

    def scaled(values: list[float], least: float = 0.0) -> np.ndarray:
        array = np.array(values, np.float64)
        spread = max(float(np.ptp(array)), least)
        return (array - array.min()) / spread if spread else np.zeros(len(array))

    objectives = [
        scaled([p.dissimilarity for p in front], resolution),
        scaled([p.size_bytes for p in front]),
        scaled([p.latency_ms or 0.0 for p in front]),
    ]
    distance = np.sqrt(sum(o**2 for o in objectives))
    places = {int(at): i + 1 for i, at in enumerate(np.argsort(distance, kind="stable")[:BEST])}
    return [replace(p, rank=places.get(i, 0)) for i, p in enumerate(front)]
