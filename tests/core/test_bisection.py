"""Smallest sets, against all subsets of small ones, and the number of tries."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest

from dlas.core.bisection import smallest_subset, without_spare

Search = Callable[[list[int], Callable[[list[int]], bool]], list[int]]
BOTH = pytest.mark.parametrize("search", [smallest_subset, without_spare])


@BOTH
@pytest.mark.parametrize("seed", range(30))
def test_monotone_properties_give_a_set_of_which_nothing_can_go(search: Search, seed: int) -> None:
    rng = np.random.default_rng(seed)
    items = list(range(int(rng.integers(1, 14))))
    causes = [
        set(rng.choice(items, rng.integers(1, min(4, len(items)) + 1), replace=False)) for _ in range(3)
    ]

    def holds(some: list[int]) -> bool:
        assert some == sorted(some)
        return any(cause <= set(some) for cause in causes)

    found = search(items, holds)
    assert holds(found)
    assert not any(holds([i for i in found if i != left]) for left in found)


@BOTH
def test_a_property_of_the_empty_set_needs_nothing(search: Search) -> None:
    assert search([1, 2, 3], lambda some: True) == []
    assert search([], lambda some: True) == []


@BOTH
def test_what_is_found_holds_even_where_adding_items_undoes_it(search: Search) -> None:
    def odd(some: list[int]) -> bool:
        return len(some) % 2 == 1

    assert odd(search(list(range(7)), odd))


def test_tries_grow_with_the_logarithm() -> None:
    tries = []

    def holds(some: list[int]) -> bool:
        tries.append(len(some))
        return {17, 700} <= set(some)

    assert smallest_subset(list(range(1000)), holds) == [17, 700]
    assert len(tries) < 30
    tries.clear()
    assert without_spare(list(range(1000)), holds) == [17, 700]
    assert len(tries) < 50
