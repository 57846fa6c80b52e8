"""The parts of the scale search that need no network: grids, distances, and the evolution itself."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlas.compress.quantize._search.distance import DISTANCES, infonce, mean_distance
from dlas.compress.quantize._search.evolution import Settings, State, child_of, search
from dlas.compress.quantize._search.uniform import UniformGrid, omse_grid
from dlas.core.errors import ModelError

UNITS = [(0, 1), (2,), (3,)]


def settings(**changed: object) -> Settings:
    given = {
        "passes": 4, "cycles": 3, "population": 5, "sample": 4, "radius": 0.02, "relative": True, "budget": 0,
        "seed": 0,
    } | changed  # fmt: skip
    return Settings(**given)  # type: ignore[arg-type]


class Landscape:
    """The loss is the distance of all scales from their targets; counts how often it is asked."""

    def __init__(self) -> None:
        rng = np.random.default_rng(5)
        self.target = {i: rng.uniform(0.5, 2.0, 4).astype(np.float32) for i in range(4)}
        self.calls: list[tuple[int, ...]] = []

    def start(self, seed: int = 0) -> State:
        scales = {i: np.ones(4, np.float32) for i in range(4)}
        return State(scales, self.of(scales), np.random.default_rng(seed))

    def of(self, scales: dict[int, np.ndarray]) -> float:
        return float(sum(np.abs(scales[i] - self.target[i]).sum() for i in scales))

    def prepare(self, unit: int, state: State):
        adopted = dict(state.scales)

        def fitness(scales) -> float:
            self.calls.append(tuple(scales))
            return self.of(adopted | dict(scales))

        return fitness


def test_the_loss_never_rises_and_falls_in_the_end() -> None:
    land = Landscape()
    first = land.start()
    before = first.loss
    end = search(first, UNITS, land.prepare, settings())
    losses = [before] + [loss for *_, loss in end.history]
    assert losses == sorted(losses, reverse=True)
    assert end.loss < before
    assert end.loss == pytest.approx(land.of(end.scales))


def test_units_are_visited_last_to_first_pass_after_pass() -> None:
    land = Landscape()
    end = search(land.start(), UNITS, land.prepare, settings(passes=2, cycles=2))
    assert [(p, u) for p, u, *_ in end.history] == [(1, 2), (1, 1), (1, 0), (2, 2), (2, 1), (2, 0)]
    assert land.calls == [(3,)] * 2 + [(2,)] * 2 + [(0, 1)] * 2 + [(3,)] * 2 + [(2,)] * 2 + [(0, 1)] * 2


@pytest.mark.parametrize(("budget", "expected"), [(0, 36), (1, 1), (7, 7), (36, 36), (1000, 36)])
def test_the_budget_is_kept_exactly(budget: int, expected: int) -> None:
    land = Landscape()
    end = search(land.start(), UNITS, land.prepare, settings(budget=budget))
    assert len(land.calls) == end.evaluations == expected == settings(budget=budget).evaluations(3)


@pytest.mark.parametrize("relative", [True, False])
def test_a_child_stays_within_the_radius_and_above_zero(relative: bool) -> None:
    rng = np.random.default_rng(0)
    parent = {0: np.float32([1e-4, 1e-3, 0.5, 2.0])}
    for _ in range(200):
        child = child_of(parent, settings(relative=relative, radius=0.02), rng)[0]
        bound = 0.02 * parent[0] if relative else np.full(4, 0.02)
        assert (np.abs(child - parent[0]) <= bound * (1 + 1e-5) + 1e-7).all()  # also where it passed 0
        assert (child > 0).all()
        assert child.dtype == np.float32


def test_a_scale_that_would_be_zero_is_not() -> None:
    class Minus:
        def uniform(self, low: float, high: float, shape: tuple[int, ...]) -> np.ndarray:
            return np.full(shape, -0.25)

    child = child_of({0: np.float32([0.25])}, settings(relative=False), Minus())  # type: ignore[arg-type]
    assert child[0][0] > 0


def test_the_seed_decides() -> None:
    def run(seed: int) -> State:
        land = Landscape()
        return search(land.start(seed), UNITS, land.prepare, settings())

    first, again, other = run(1), run(1), run(2)
    assert first.history == again.history
    assert first.history != other.history
    for i in range(4):
        np.testing.assert_array_equal(first.scales[i], again.scales[i])


def test_a_stored_state_goes_on_as_if_it_had_never_stopped() -> None:
    whole = Landscape()
    end = search(whole.start(), UNITS, whole.prepare, settings())
    half, stored = Landscape(), []

    class KilledError(Exception):
        pass

    def stop(state: State) -> None:
        if state.visits == 5:
            stored.append(json.dumps(state.to_dict()))
            raise KilledError

    with pytest.raises(KilledError):
        search(half.start(), UNITS, half.prepare, settings(), stop)
    resumed = search(State.from_dict(json.loads(stored[0])), UNITS, half.prepare, settings())
    assert resumed.history == end.history
    assert resumed.loss == end.loss
    for i in range(4):
        np.testing.assert_array_equal(resumed.scales[i], end.scales[i])


def test_the_parent_is_the_best_of_the_sample() -> None:
    """With a sample of one, worse parents are taken as well: the search from the best of many is ahead."""
    land = Landscape()
    greedy = np.mean(
        [search(land.start(s), UNITS, land.prepare, settings(cycles=30, sample=40)).loss for s in range(5)]
    )
    blind = np.mean(
        [search(land.start(s), UNITS, land.prepare, settings(cycles=30, sample=1)).loss for s in range(5)]
    )
    assert greedy < blind


@pytest.mark.parametrize("bits", [3, 4, 8])
def test_grids_hold_zero_and_shrinking_pays(bits: int) -> None:
    rng = np.random.default_rng(0)
    weight = (rng.standard_t(3, (8, 40)) + 0.3).astype(np.float32)
    grid = omse_grid(weight, 0, bits)
    codes = grid.quantize(weight)
    assert codes.min() >= 0
    assert codes.max() <= 2**bits - 1
    assert grid.zero_point.max() <= 2**bits - 1
    assert not grid.dequantize(np.broadcast_to(grid.zero_point[:, None], weight.shape)).any()
    low, high = np.minimum(weight.min(1), 0), np.maximum(weight.max(1), 0)
    full = grid.scaled(((high - low) / (2**bits - 1)).astype(np.float32))
    ours = ((grid.rounded(weight) - weight) ** 2).sum(1)
    theirs = ((full.rounded(weight) - weight) ** 2).sum(1)
    assert (ours <= theirs * (1 + 1e-5)).all()
    assert bits == 8 or ours.sum() < theirs.sum()


def test_no_other_shrink_is_better() -> None:
    """Against a plain loop over one channel."""
    row = np.random.default_rng(1).normal(0.1, 1, 200).astype(np.float32)
    grid = omse_grid(row[None], 0, 3)
    full = (row.max() - row.min()) / 7
    zero = np.rint(-row.min() / full)
    errors = []
    for shrink in range(90):
        scale = full * (1 - shrink / 100)
        codes = np.clip(np.rint(row / scale) + zero, 0, 7)
        errors.append(((codes - zero) * scale - row) @ ((codes - zero) * scale - row))
    found = ((grid.rounded(row[None]) - row) ** 2).sum()
    assert found == pytest.approx(min(errors), rel=1e-4)
    assert int(np.argmin(errors)) > 0


def test_grids_follow_the_axis_and_cope_with_dead_channels() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5)).astype(np.float32)
    weight[:, 2] = 0
    grid = omse_grid(weight, 1, 4)
    assert grid.scale.shape == grid.zero_point.shape == (5,)
    assert (grid.scale > 0).all()
    assert not grid.rounded(weight)[:, 2].any()
    np.testing.assert_array_equal(grid.rounded(weight), omse_grid(weight.T, 0, 4).rounded(weight.T).T)
    assert not omse_grid(np.zeros((2, 2), np.float32), 0, 4).rounded(np.zeros((2, 2), np.float32)).any()


def test_infinite_weights_are_refused_by_name() -> None:
    with pytest.raises(ModelError, match="conv1"):
        omse_grid(np.float32([[np.nan, 1]]), 0, 4, name="conv1")


def test_rounding_of_halves_is_that_of_the_standard() -> None:
    grid = UniformGrid(np.float32([1.0]), np.uint8([4]), 4, 0)
    np.testing.assert_array_equal(grid.quantize(np.float32([[0.5, 1.5, -0.5, 99, -99]])), [[4, 6, 4, 15, 0]])


def test_infonce_is_the_cross_entropy_of_finding_oneself() -> None:
    rng = np.random.default_rng(0)
    ours, exact = rng.normal(size=(6, 4)), rng.normal(size=(6, 4))
    expected = 0.0
    for i in range(6):
        similar = [
            np.exp(ours[i] @ exact[j] / np.linalg.norm(ours[i]) / np.linalg.norm(exact[j]) / 3)
            for j in range(6)
        ]
        expected -= np.log(similar[i] / sum(similar)) * 6 / 6
    assert infonce(ours, exact) == pytest.approx(expected)


@pytest.mark.parametrize("name", sorted(DISTANCES))
def test_the_same_answers_are_nearest(name: str) -> None:
    rng = np.random.default_rng(0)
    exact = rng.normal(size=(50, 10)).astype(np.float32)
    same = mean_distance(name, exact, exact, 20)
    slightly = mean_distance(name, exact + 0.1 * rng.normal(size=exact.shape), exact, 20)
    shuffled = mean_distance(name, exact[::-1], exact, 20)
    assert same < slightly < shuffled
    if name != "infonce":
        assert same == pytest.approx(0, abs=1e-9)


def test_batches_weigh_the_same() -> None:
    exact = np.random.default_rng(0).normal(size=(30, 4))
    ours = exact + 1
    halves = [infonce(ours[i : i + 20], exact[i : i + 20]) for i in (0, 20)]
    assert mean_distance("infonce", ours, exact, 20) == pytest.approx(np.mean(halves))
    assert mean_distance("mse", ours, exact, 20) == pytest.approx(1.0)
