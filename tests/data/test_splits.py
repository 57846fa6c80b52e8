from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import DataError, OptionError
from dlas.data.dataset import Dataset
from dlas.data.splits import sample, split


def numbered(n=1000, classes=4):
    return Dataset("numbers", [b"%d" % i for i in range(n)], np.arange(n) % classes)


def test_split_does_not_depend_on_order_or_company():
    data = numbered()
    test = set(split(data)["test"].samples)
    assert 150 < len(test) < 250
    shuffled = data.take(np.random.default_rng(0).permutation(1000)[:700])
    assert set(split(shuffled)["test"].samples) == test & set(shuffled.samples)


def test_equal_samples_stay_together():
    data = Dataset("twice", [b"%d" % (i // 2) for i in range(400)])
    parts = split(data)
    assert not set(parts["train"].samples) & set(parts["test"].samples)


def test_parts_are_disjoint_complete_and_may_leave_some_out():
    data = numbered()
    parts = split(data, {"a": 0.5, "b": 0.3, "c": 0.2})
    assert sorted(np.concatenate([p.rows for p in parts.values()])) == list(range(1000))
    assert len(split(data, {"a": 0.5})["a"]) == len(parts["a"])
    arrays = Dataset("arrays", np.arange(1000, dtype=np.float32).reshape(500, 2))
    assert sum(map(len, split(arrays).values())) == 500


def test_bad_shares_and_empty_parts():
    for fractions in ({}, {"a": 0.0}, {"a": 0.9, "b": 0.2}):
        with pytest.raises(OptionError, match="fractions"):
            split(numbered(), fractions)
    with pytest.raises(DataError, match="no samples"):
        split(numbered(2), {"a": 1e-6})


def test_sample_is_balanced_in_every_beginning_and_fixed_by_its_seed():
    data = numbered()
    drawn = sample(data, 40, seed=3)
    assert np.bincount(drawn.labels).tolist() == [10] * 4
    assert np.bincount(drawn.head(8).labels).tolist() == [2] * 4
    assert len(set(drawn.rows)) == 40
    assert sample(data, 40, seed=3).rows.tolist() == drawn.rows.tolist()
    assert sample(data, 40, seed=4).rows.tolist() != drawn.rows.tolist()


def test_sample_of_uneven_classes_takes_what_there_is():
    labels = np.array([0] * 98 + [1] * 2)
    data = Dataset("uneven", [b"%d" % i for i in range(100)], labels)
    assert np.bincount(sample(data, 20).labels).tolist() == [18, 2]
    assert len(sample(data, 500)) == 100
    assert len(sample(Dataset("bare", data.samples), 7)) == 7
    plain = sample(data, 50, balanced=False)
    assert np.bincount(plain.labels, minlength=2)[0] > 44
    with pytest.raises(OptionError, match="n = 0"):
        sample(data, 0)
