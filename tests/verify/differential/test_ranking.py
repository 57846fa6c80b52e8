"""Agreement of rankings against slow definitions of the same measures."""

from __future__ import annotations

import numpy as np
import pytest
from scipy.stats import kendalltau

from dlas.verify.differential.matrix import LabelMatrix
from dlas.verify.differential.ranking import kendall_tau_b, rank_biased_overlap

RNG = np.random.default_rng(3)


def slow_tau(a: np.ndarray, b: np.ndarray, k: int) -> float:
    if k == 1 and a.argmax() == b.argmax():
        return 1.0
    first, second = list(np.argsort(-a, kind="stable")[:k]), list(np.argsort(-b, kind="stable")[:k])
    union = sorted({*first, *second})
    places = [[top.index(label) if label in top else k for label in union] for top in (first, second)]
    return float(kendalltau(*places).statistic)


def slow_rbo(a: np.ndarray, b: np.ndarray, p: float) -> float:
    first, second = list(np.argsort(-a, kind="stable")), list(np.argsort(-b, kind="stable"))
    depth = len(a)
    shared = [len({*first[:d]} & {*second[:d]}) for d in range(1, depth + 1)]
    series = sum(shared[d - 1] / d * p**d for d in range(1, depth + 1))
    return shared[-1] / depth * p**depth + (1 - p) / p * series


@pytest.mark.parametrize(("classes", "k"), [(10, 5), (3, 5), (30, 5), (12, 1)])
def test_kendall_is_what_scipy_says_of_the_union(classes: int, k: int) -> None:
    a = RNG.standard_normal((40, classes))
    b = a + RNG.standard_normal((40, classes))
    found = kendall_tau_b(a, b, k)
    for i in range(40):
        wanted = slow_tau(a[i], b[i], min(k, classes))
        assert found[i] == pytest.approx(wanted)


@pytest.mark.parametrize("classes", [2, 10, 40])
def test_overlap_is_its_definition(classes: int) -> None:
    a, b = RNG.standard_normal((2, 20, classes))
    found = rank_biased_overlap(a, b)
    np.testing.assert_allclose(found, [slow_rbo(x, y, 0.9) for x, y in zip(a, b, strict=True)])


def test_same_and_reversed_rankings_are_the_ends() -> None:
    a = np.arange(5.0)[None]
    assert kendall_tau_b(a, a)[0] == 1
    assert kendall_tau_b(a, -a)[0] == -1
    assert rank_biased_overlap(a, a)[0] == pytest.approx(1)
    assert rank_biased_overlap(a, -a)[0] == pytest.approx(slow_rbo(a[0], -a[0], 0.9))
    assert rank_biased_overlap(a, -a)[0] < 0.8


def test_ties_go_to_the_lower_index_as_argmax_has_it() -> None:
    tied = np.zeros((1, 4))
    assert kendall_tau_b(tied, np.array([[3.0, 2, 1, 0]]))[0] == 1


def test_the_matrix_is_symmetric_with_wilson_intervals() -> None:
    labels = {name: RNG.integers(0, 3, 50) for name in "abc"}
    matrix = LabelMatrix.of(labels)
    assert (matrix.counts == matrix.counts.T).all()
    assert not matrix.counts.diagonal().any()
    assert matrix.counts[0, 2] == (labels["a"] != labels["c"]).sum()
    low, high = matrix.interval(0, 1)
    assert low < matrix.counts[0, 1] / 50 < high
    stored = matrix.to_dict()
    assert stored["label_diff"][0][2] == matrix.counts[0, 2] / 50
    assert stored["high"][1][0] == high
