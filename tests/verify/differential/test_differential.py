"""Verdicts: each kind of fault is called by its name, and rounding is not called a fault."""

from __future__ import annotations

import json

import numpy as np
import pytest

from dlas.core.errors import ShapeError
from dlas.core.figure import Figure, Source
from dlas.verify.differential import (
    NoiseFloor,
    Verdict,
    compare_outputs,
    excess_p,
    floor_between,
    sqnr_db,
)


@pytest.fixture
def scores() -> np.ndarray:
    return np.random.default_rng(0).standard_normal((400, 10)).astype(np.float32)


def test_identical_answers_are_equal(scores: np.ndarray) -> None:
    found = compare_outputs(scores, scores.copy())
    assert found.verdict is Verdict.EQUAL
    assert found.sqnr_db is None
    assert found.label_diff is not None
    assert found.label_diff.value == 0


def test_rounding_is_equal_and_scaling_is_score_only(scores: np.ndarray) -> None:
    assert compare_outputs(scores, scores * np.float32(1 + 1e-6)).verdict is Verdict.EQUAL
    assert compare_outputs(scores, scores * 1.01).verdict is Verdict.SCORE_ONLY


def test_other_labels_are_a_difference_with_an_interval(scores: np.ndarray) -> None:
    other = scores.copy()
    other[:40] = -other[:40]
    found = compare_outputs(scores, other)
    assert found.verdict is Verdict.LABEL_DIFF
    assert found.label_diff is not None
    expected = np.mean(scores.argmax(1) != other.argmax(1))
    assert found.label_diff.value == expected
    # Wilson (1927) for 40 of 400: 0.0743 .. 0.1334
    assert found.label_diff.low == pytest.approx(0.0743, abs=2e-4)
    assert found.label_diff.high == pytest.approx(0.1334, abs=2e-4)
    assert set(found.flips) == set(range(40))


def test_differences_within_the_noise_floor_are_not_held_against_a_path(scores: np.ndarray) -> None:
    other = scores.copy()
    other[:4] = -other[:4]
    floor = NoiseFloor(flips=4, rows=400, max_abs=10.0)
    found = compare_outputs(scores, other, floor=floor)
    assert found.verdict is Verdict.SCORE_ONLY
    assert "4 of 400" in found.reason
    assert compare_outputs(scores, other).verdict is Verdict.LABEL_DIFF


@pytest.mark.parametrize(
    ("flips", "floor", "verdict"),
    [
        (5, 0, Verdict.SCORE_ONLY),
        (6, 0, Verdict.LABEL_DIFF),
        (12, 4, Verdict.SCORE_ONLY),
        (15, 4, Verdict.LABEL_DIFF),
    ],
)
def test_flips_count_once_they_are_clearly_more_than_the_floor(
    scores: np.ndarray, flips: int, floor: int, verdict: Verdict
) -> None:
    # One-sided exact test at 2.5 %: 2^-5 = 0.031 does not reject, 2^-6 = 0.016 does; 12 of 16 is p = 0.038,
    # 15 of 19 is p = 0.0096.
    other = scores.copy()
    other[:flips] = -other[:flips]
    assert compare_outputs(scores, other, floor=NoiseFloor(floor, 400, 1e-3)).verdict is verdict


def test_the_excess_test_follows_the_binomial() -> None:
    assert excess_p(6, 100, 0, 100) == pytest.approx(0.5**6)
    assert excess_p(3, 100, 0, 300) == pytest.approx(0.25**3)
    assert excess_p(12, 400, 4, 400) == pytest.approx(0.0384, abs=1e-4)
    assert excess_p(4000, 8000, 4000, 8000) == pytest.approx(0.5, abs=0.01)


def test_flips_that_rounding_cannot_explain_come_first(scores: np.ndarray) -> None:
    other = scores.copy()
    near, far = 7, 3
    order = np.argsort(-scores[near])
    other[near, order[1]] = scores[near, order[0]] + 1e-3
    scores = scores.copy()
    scores[near, order[0]] = scores[near, order[1]] + 1e-4  # a margin that rounding can cross
    other[far] = -other[far]
    found = compare_outputs(scores, other, floor=NoiseFloor(0, 400, 1e-3))
    assert found.flips == (far, near)
    assert found.unexplained == 1


def test_one_label_for_all_rows_is_degenerate(scores: np.ndarray) -> None:
    other = np.zeros_like(scores)
    other[:, 3] = 1
    assert compare_outputs(scores, other).verdict is Verdict.DEGENERATE


def test_nan_and_shape_are_told_apart(scores: np.ndarray) -> None:
    other = scores.copy()
    other[5, 2] = np.nan
    found = compare_outputs(scores, other)
    assert found.verdict is Verdict.NAN
    assert "1 of 400" in found.reason
    assert compare_outputs(scores, scores[:, :9]).verdict is Verdict.SHAPE


def test_outputs_that_are_no_class_scores_have_no_labels() -> None:
    image = np.random.default_rng(0).standard_normal((4, 3, 8, 8))
    found = compare_outputs(image, image + 0.1)
    assert found.label_diff is None
    assert found.verdict is Verdict.SCORE_ONLY


def test_a_reference_without_sense_is_refused(scores: np.ndarray) -> None:
    with pytest.raises(ShapeError, match="reference"):
        compare_outputs(scores * np.nan, scores)
    with pytest.raises(ShapeError, match="reference"):
        compare_outputs(scores[:0], scores[:0])


def test_sqnr_follows_its_formula() -> None:
    a = np.array([[3.0, 4.0]])
    assert sqnr_db(a, a + np.array([[0.05, 0.0]])) == pytest.approx(10 * np.log10(25 / 0.0025))
    assert sqnr_db(a, a) is None
    assert sqnr_db(a * 1e200, a * 1.1e200) == pytest.approx(20)
    assert sqnr_db(a * 1e-200, a * 1.1e-200) == pytest.approx(20)


def test_there_is_no_sqnr_without_a_signal(scores: np.ndarray) -> None:
    assert sqnr_db(np.zeros((2, 2)), np.ones((2, 2))) is None
    found = compare_outputs(np.zeros_like(scores), scores, classify=False)
    assert found.sqnr_db is None
    assert found.max_abs > 0
    assert found.verdict is Verdict.SCORE_DIFF
    json.dumps(found.to_dict(), allow_nan=False)


def test_every_difference_in_json_says_that_it_was_measured(scores: np.ndarray) -> None:
    found = compare_outputs(scores, scores * np.float32(1.01)).to_dict()
    for name, unit in {"sqnr_db": "dB", "max_abs": "score", "relative_l2": "fraction"}.items():
        figure = Figure.from_dict(found[name])
        assert (figure.source, figure.unit, figure.n) == (Source.MEASURED, unit, 400)
    assert found["sqnr_db"]["value"] == pytest.approx(40, abs=0.01)
    assert compare_outputs(scores, scores.copy()).to_dict()["sqnr_db"] is None
    floor = floor_between(scores, scores * np.float32(1.01), "two ways").to_dict()
    assert floor["relative_l2"]["value"] == pytest.approx(0.01, rel=1e-3)
    assert floor["max_abs"]["source"] == "measured"


def test_the_floor_counts_what_moved(scores: np.ndarray) -> None:
    other = scores.copy()
    other[0] = -other[0]
    floor = floor_between(scores, other, "two ways")
    assert floor.flips == 1
    assert floor.rows == 400
    assert floor.max_abs == pytest.approx(2 * np.abs(scores[0]).max())
