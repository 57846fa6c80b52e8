from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import DataError, OptionError
from dlas.core.statistics import wilson
from dlas.data.metrics import hits, top1, topk

SCORES = np.array([[0.1, 0.9, 0.0], [0.8, 0.1, 0.1], [0.2, 0.3, 0.5], [0.4, 0.35, 0.25]])
LABELS = np.array([1, 1, 2, 2])


def test_fractions_with_interval():
    figure = top1(SCORES, LABELS)
    assert (figure.value, figure.unit, figure.source, figure.n) == (0.5, "fraction", "measured", 4)
    assert (figure.low, figure.high) == wilson(2, 4)
    assert topk(SCORES, LABELS, 2).value == 0.75
    assert topk(SCORES, LABELS, 3).value == 1.0


def test_topk_against_sorting():
    rng = np.random.default_rng(0)
    for dtype in (np.float32, np.int8):
        scores = (rng.normal(size=(200, 20)) * 3).astype(dtype)  # int8 makes ties
        labels = rng.integers(0, 20, 200)
        for k in (1, 3, 5):
            best = np.argsort(-scores.astype(np.float64), axis=1, kind="stable")[:, :k]
            assert topk(scores, labels, k).value == (best == labels[:, None]).any(1).mean()
        assert top1(scores, labels).value == (scores.argmax(1) == labels).mean()


def test_background_class_is_shifted_only_when_asked():
    with pytest.raises(DataError, match="label_offset"):
        top1(SCORES, LABELS + 1)
    assert top1(SCORES, LABELS + 1, label_offset=-1).value == 0.5
    assert top1(SCORES, LABELS - 1, label_offset=1).value == 0.5


def test_nan_counts_as_wrong_and_is_mentioned():
    scores = SCORES.copy()
    scores[0, 0] = np.nan
    right, note = hits(scores, LABELS)
    assert right.tolist() == [False, False, True, False]
    assert note == "1 samples have NaN scores"
    assert top1(np.full((4, 3), np.nan), LABELS).value == 0.0


def test_shapes():
    assert top1(SCORES[:, :, None, None], LABELS).value == 0.5
    with pytest.raises(DataError, match="4 rows of scores but 3 labels"):
        top1(SCORES, LABELS[:3])
    with pytest.raises(DataError, match="0 rows"):
        top1(SCORES[:0], LABELS[:0])
    for k in (0, 4):
        with pytest.raises(OptionError, match=r"1\.\.3"):
            topk(SCORES, LABELS, k)
