from __future__ import annotations

import itertools

import numpy as np
import pytest

from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.pareto import hypervolume, non_dominated, pareto_keys, reference_point
from dlas.explore.result import Objective, Point


def brute_front(values: np.ndarray) -> np.ndarray:
    """By definition; of equal rows the first."""
    mask = np.ones(len(values), bool)
    for i, a in enumerate(values):
        for j, b in enumerate(values):
            dominates = bool(np.all(b <= a) and np.any(b < a))
            if dominates or (j < i and bool(np.all(a == b))):
                mask[i] = False
    return mask


def brute_volume(values: np.ndarray, reference: np.ndarray) -> float:
    """Sum of the cells of the grid through all coordinates that some row dominates."""
    grids = [np.unique(np.append(values[:, m][values[:, m] < r], r)) for m, r in enumerate(reference)]
    total = 0.0
    for corner in itertools.product(*(range(len(g) - 1) for g in grids)):
        low = np.array([g[k] for g, k in zip(grids, corner, strict=True)])
        high = np.array([g[k + 1] for g, k in zip(grids, corner, strict=True)])
        if np.any(np.all(values <= low, axis=1)):
            total += float(np.prod(high - low))
    return total


def random_sets(objectives: int, count: int = 50) -> list[np.ndarray]:
    """Half of them on a coarse grid, which makes ties and duplicates; some negative."""
    rng = np.random.default_rng(objectives)
    sets = []
    for number in range(count):
        rows = int(rng.integers(1, 40))
        coarse = rng.integers(-3, 4, (rows, objectives)).astype(float)
        sets.append(coarse if number % 2 else rng.normal(size=(rows, objectives)))
    return sets


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_front_is_what_the_definition_says(objectives: int) -> None:
    for values in random_sets(objectives):
        np.testing.assert_array_equal(non_dominated(values), brute_front(values))


@pytest.mark.parametrize("objectives", [2, 3])
def test_the_front_of_more_rows_than_one_chunk(objectives: int) -> None:
    values = np.random.default_rng(5).integers(0, 40, (530, objectives)).astype(float)
    np.testing.assert_array_equal(non_dominated(values), brute_front(values))


def test_the_front_of_nothing_is_empty() -> None:
    assert non_dominated(np.empty((0, 2))).tolist() == []


@pytest.mark.parametrize("objectives", [2, 3, 4])
def test_a_large_front_holds_only_rows_that_nothing_beats(objectives: int) -> None:
    values = np.random.default_rng(1).random((10_000, objectives))
    mask = non_dominated(values)
    front = values[mask]
    for row in front[:50]:
        assert not ((values <= row).all(axis=1) & (values < row).any(axis=1)).any()
    for row in values[~mask][:50]:
        assert ((front <= row).all(axis=1) & (front < row).any(axis=1)).any()


@pytest.mark.parametrize("objectives", [1, 2, 3, 4])
def test_the_volume_is_the_sum_of_the_cells(objectives: int) -> None:
    for values in random_sets(objectives, 12):
        values = values[:9]
        reference = np.quantile(values, 0.8, axis=0)  # some rows lie outside
        expected = brute_volume(values, reference)
        assert hypervolume(values, reference) == pytest.approx(expected, rel=1e-9, abs=1e-12)


def test_the_volume_of_known_sets() -> None:
    assert hypervolume(np.array([[0.0, 0.0]]), np.array([2.0, 3.0])) == 6.0
    assert hypervolume(np.array([[1.0, 2.0], [2.0, 1.0]]), np.array([3.0, 3.0])) == 3.0
    assert hypervolume(np.array([[1.0, 1.0, 1.0]]), np.array([2.0, 2.0, 3.0])) == 2.0
    assert hypervolume(np.array([[4.0, 4.0]]), np.array([3.0, 3.0])) == 0.0


def test_the_reference_point_lies_beyond_the_worst_whatever_its_sign() -> None:
    values = np.array([[2.0, -0.8], [4.0, -0.5]])
    np.testing.assert_allclose(reference_point(values), [4.4, -0.45])
    assert (values < reference_point(values)).all()


def point(key: str, latency: float | None, top1: float, outcome: Outcome = Outcome.OK) -> Point:
    figures = {"top1": Figure(top1, "fraction", Source.MEASURED)}
    if latency is not None:
        figures["latency_ms"] = Figure(latency, "ms", Source.MEASURED)
    reason = "" if outcome is Outcome.OK else "broken"
    return Point(key, {"compress": key}, Record(outcome, reason, figures))


def test_only_right_points_with_all_figures_stand_in_the_set() -> None:
    points = [
        point("base", 2.0, 0.8),
        point("fast", 1.0, 0.7),
        point("twin", 1.0, 0.7),
        point("worse", 2.5, 0.7),
        point("wrong", 0.1, 0.9, Outcome.WRONG),
        point("untimed", None, 0.99),
    ]
    both = (Objective("latency_ms"), Objective("top1", minimise=False))
    assert pareto_keys(points, both) == ("base", "fast")
    assert pareto_keys(points, (Objective("top1", minimise=False),)) == ("untimed",)
    assert pareto_keys([], both) == ()
