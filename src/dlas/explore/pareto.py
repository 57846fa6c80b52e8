"""Pareto mathematics: which points no other point beats, and how much they dominate. Everything is minimised here."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.figure import Outcome
from dlas.explore.result import Objective, Point

_CHUNK = 512


def non_dominated(values: np.ndarray) -> np.ndarray:
    """Mask ``(N,) bool`` of the rows of ``(N, M)`` that no row dominates; of equal rows the first is kept.

    A row dominates another if it is nowhere larger and somewhere smaller.
    """
    values = np.asarray(values, np.float64)
    count = len(values)
    mask = np.zeros(count, bool)
    if count == 0:
        return mask
    # In lexicographic order a row can only be dominated by an earlier one; stable, so the first of equals wins.
    order = np.lexsort((np.arange(count), *values.T[::-1]))
    ordered = values[order]
    if values.shape[1] == 2:
        best = np.minimum.accumulate(ordered[:, 1])
        mask[order] = np.concatenate([[True], ordered[1:, 1] < best[:-1]])
        return mask
    front = np.empty((0, values.shape[1]))
    for start in range(0, count, _CHUNK):
        chunk = ordered[start : start + _CHUNK]
        alive = ~np.any(np.all(front[None] <= chunk[:, None], axis=2), axis=1)
        inside = np.all(chunk[None] <= chunk[:, None], axis=2)  # [i, j]: j is nowhere larger than i
        alive &= ~np.any(np.tril(inside, -1), axis=1)
        mask[order[start : start + _CHUNK][alive]] = True
        front = np.concatenate([front, chunk[alive]])
    return mask


def values_of(points: Sequence[Point], objectives: Sequence[Objective]) -> tuple[list[Point], np.ndarray]:
    """Points that count (outcome ok, all objectives known) and their values ``(N, M)``, maximised ones negated."""
    kept = [
        p
        for p in points
        if p.record.outcome is Outcome.OK and all(o.figure in p.record.figures for o in objectives)
    ]
    rows = [[(1 if o.minimise else -1) * p.record.figures[o.figure].value for o in objectives] for p in kept]
    return kept, np.array(rows, np.float64).reshape(len(kept), len(objectives))


def pareto_keys(points: Sequence[Point], objectives: Sequence[Objective]) -> tuple[str, ...]:
    """Keys of the points no other point beats, in the order of ``points``."""
    kept, values = values_of(points, objectives)
    return tuple(p.key for p, good in zip(kept, non_dominated(values), strict=True) if good)


def reference_point(values: np.ndarray) -> np.ndarray:
    """The worst value of every objective, moved outwards by a tenth of its size; ``(M,)``."""
    worst = np.asarray(values, np.float64).max(axis=0)
    return worst + 0.1 * np.abs(worst)


def hypervolume(values: np.ndarray, reference: np.ndarray) -> float:
    """Volume between ``reference`` and the rows of ``(N, M)`` that lie below it, by slicing along the last axis."""
    values, reference = np.asarray(values, np.float64), np.asarray(reference, np.float64)
    inside = values[(values < reference).all(axis=1)]
    if len(inside) == 0:
        return 0.0
    return _sliced(inside[non_dominated(inside)], reference)


def _sliced(front: np.ndarray, reference: np.ndarray) -> float:
    if front.shape[1] == 1:
        return float(reference[0] - front.min())
    front = front[np.argsort(front[:, -1], kind="stable")]
    ends = np.append(front[1:, -1], reference[-1])
    volume = 0.0
    for index, (start, end) in enumerate(zip(front[:, -1], ends, strict=True)):
        if end > start:
            below = front[: index + 1, :-1]
            volume += (end - start) * _sliced(below[non_dominated(below)], reference[:-1])
    return float(volume)
