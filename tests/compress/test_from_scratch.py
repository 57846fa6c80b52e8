"""Training an architecture from random weights."""

from __future__ import annotations

import numpy as np
import pytest

from dlas import api
from dlas.compress.from_scratch import accuracy, from_scratch
from dlas.compress.training import Schedule
from dlas.core.errors import DataError
from dlas.data.dataset import Dataset

SCHEDULE = Schedule(3, 0.1, batch_size=64, threads=1, precision="float32")


def test_it_learns_and_says_how() -> None:
    train, test = api.dataset("digits", "train"), api.dataset("digits", "test")
    assert train is not None
    assert test is not None
    model = from_scratch("digits-cnn:width=8", train.head(600), SCHEDULE, judged=test)
    step = model.history[0]
    assert step.action == "train"
    assert step.options["seed"] == 0
    assert step.options["epochs"] == 3
    assert step.options["test_top1"] == accuracy(model, test) > 0.5
    assert model.source["architecture"] == "digits-cnn:width=8"
    again = from_scratch("digits-cnn:width=8", train.head(600), SCHEDULE, judged=test)
    assert again.hash == model.hash


def test_labels_must_fit() -> None:
    x = np.zeros((4, 8, 8, 1), np.uint8)
    with pytest.raises(DataError, match="10 outputs"):
        from_scratch("digits-cnn", Dataset("d", x, np.int64([0, 1, 2, 10])), SCHEDULE)
    with pytest.raises(DataError, match="no labelled rows"):
        from_scratch("digits-cnn", Dataset("d", x), SCHEDULE)
