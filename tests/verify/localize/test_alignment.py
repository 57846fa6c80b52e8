"""Tensors that hold the same values with their axes in another order are found again, others are not."""

from __future__ import annotations

import itertools

import numpy as np
import pytest

from dlas.verify.localize.alignment import Candidates, orders, relative, squeezed, turned

RNG = np.random.default_rng(0)
ROWS = 6


def _values(*shape: int) -> np.ndarray:
    return RNG.standard_normal((ROWS, 1, *shape)).astype(np.float32)


@pytest.mark.parametrize("order", list(itertools.permutations(range(3))))
@pytest.mark.parametrize("shape", [(3, 4, 5), (4, 4, 5), (4, 4, 4)])
def test_every_order_of_axes_is_found(order: tuple[int, ...], shape: tuple[int, ...]) -> None:
    source = _values(*shape)
    target = source.transpose(0, 1, *(a + 2 for a in order))
    match = Candidates([("s", source)]).find("t", target, 1e-3)
    assert match is not None
    assert (match.source, match.order, match.ambiguous) == ("s", order, False)
    assert match.error == 0
    assert np.array_equal(turned(source, match.order, target.shape[1:]), target)


def test_axes_of_size_one_come_and_go() -> None:
    source = _values(7, 1, 1)
    target = source.reshape(ROWS, 1, 7)
    match = Candidates([("s", source)]).find("t", target, 1e-3)
    assert match is not None
    assert match.order == (0,)
    assert turned(source, match.order, (1, 1, 7, 1)).shape == (ROWS, 1, 1, 7, 1)


def test_values_that_do_not_tell_axes_apart_are_ambiguous() -> None:
    plane = RNG.standard_normal((ROWS, 1, 3, 4, 4)).astype(np.float32)
    symmetric = plane + plane.transpose(0, 1, 2, 4, 3)
    found = Candidates([("s", symmetric)]).find("t", symmetric, 1e-3)
    assert found is not None
    assert found.ambiguous
    clear = Candidates([("s", plane)]).find("t", plane, 1e-3)
    assert clear is not None
    assert not clear.ambiguous


def test_of_ambiguous_orders_the_one_that_changes_nothing_is_taken() -> None:
    constant = np.ones((ROWS, 1, 4, 4, 4), np.float32)
    match = Candidates([("s", constant)]).find("t", constant, 1e-3)
    assert match is not None
    assert match.ambiguous
    assert match.order == (0, 1, 2)


def test_the_error_decides_between_orders() -> None:
    plane = RNG.standard_normal((ROWS, 1, 4, 4)).astype(np.float32)
    nearly = plane + plane.transpose(0, 1, 3, 2)
    nearly[:, :, 0, 1] += 0.001
    match = Candidates([("s", nearly)]).find("t", nearly.transpose(0, 1, 3, 2), 0.1)
    assert match is not None
    assert match.order == (1, 0)


def test_other_values_and_other_sizes_are_no_match() -> None:
    source = _values(3, 4)
    known = Candidates([("s", source)])
    assert known.find("t", _values(3, 4), 1e-3) is None
    assert known.find("t", source * 1.01, 1e-3) is None
    assert known.find("t", source * 1.01, 0.02) is not None
    assert known.find("t", source[:, :, :, :3], 1e-3) is None
    assert known.find("t", source.reshape(ROWS, 1, 12), 1e-3) is None
    assert known.find("t", -source, 1e-3) is None


def test_rows_correspond() -> None:
    source = _values(3, 4)
    assert Candidates([("s", source)]).find("t", source[::-1].copy(), 1e-3) is None


def test_zero_tensors_are_like_zero_tensors_only() -> None:
    zero, other = np.zeros((ROWS, 1, 3, 4), np.float32), _values(3, 4)
    known = Candidates([("zero", zero), ("s", other)])
    match = known.find("t", zero, 1e-3)
    assert match is not None
    assert (match.source, match.error) == ("zero", 0)
    assert Candidates([("s", other)]).find("t", zero, 1e-3) is None
    assert Candidates([("zero", zero)]).find("t", other, 1e-3) is None


def test_the_first_rows_may_be_zero() -> None:
    source = _values(3, 4)
    source[:4] = 0
    match = Candidates([("s", source)]).find("t", source.transpose(0, 1, 3, 2), 1e-3)
    assert match is not None
    assert match.order == (1, 0)


def test_of_duplicates_the_named_one_is_taken_then_the_next_in_order() -> None:
    source = _values(3, 4)
    known = Candidates([("a", source), ("b", source.copy()), ("c", source.copy())])

    def of(**given) -> str:
        match = known.find("t", source, 1e-3, **given)
        assert match is not None
        return match.source

    assert of() == "a"
    assert of(prefer="c") == "c"
    assert of(after=known.place("b")) == "b"
    assert of(after=known.place("b"), prefer="a") == "a"
    assert of(after=99) == "a"


def test_of_alike_ones_the_nearest_is_taken() -> None:
    source = _values(3, 4)
    noise = RNG.standard_normal(source.shape).astype(np.float32)
    known = Candidates([("far", source + 5e-4 * noise), ("near", source + 1e-6 * noise)])
    match = known.find("t", source, 1e-2, prefer="far")
    assert match is not None
    assert match.source == "near"


def test_what_is_no_finite_number_is_left_out() -> None:
    bad = _values(3, 4)
    bad[1, 0, 2, 2] = np.nan
    codes = np.ones((ROWS, 1, 3, 4), np.int8)
    known = Candidates([("nan", bad), ("codes", codes), ("inf", np.full_like(bad, np.inf))])
    assert not known.values
    assert known.find("t", bad, 1e-3) is None
    known = Candidates([("ones", codes.astype(np.float32))])
    assert known.find("t", codes, 1e-3) is None


def test_relative_error() -> None:
    a = np.float32([[3, 4]])
    assert relative(a, a) == 0
    assert relative(a, np.zeros_like(a)) == pytest.approx(1)
    assert relative(a, a * 1.5) == pytest.approx(0.5)
    assert relative(np.zeros_like(a), np.zeros_like(a)) == 0
    assert relative(np.zeros_like(a), a) == float("inf")
    assert relative(a, np.full_like(a, np.nan)) == float("inf")
    assert relative(np.float32([1e30]), np.float32([2e30])) == pytest.approx(1)  # no overflow of squares


def test_orders_begin_with_none_and_end_where_there_are_too_many() -> None:
    assert next(orders((3, 4, 5), (3, 4, 5))) == (0, 1, 2)
    assert list(orders((3, 4), (4, 3))) == [(1, 0)]
    assert len(list(orders((2, 2, 2), (2, 2, 2)))) == 6
    assert list(orders((3, 4), (3, 5))) == []
    assert list(orders((2,) * 6, (2,) * 6)) == []


def test_squeezing_keeps_the_rows() -> None:
    assert squeezed(np.zeros((1, 1, 3, 1, 2))).shape == (1, 3, 2)
    assert squeezed(np.zeros((4, 1, 1, 1))).shape == (4,)
