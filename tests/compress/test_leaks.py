"""No row plays two parts: calibration, training, validation and test are apart, equal samples included."""

from __future__ import annotations

import numpy as np
from prune_nets import blocks, rows

from dlas.compress.calibration import calibration_batches
from dlas.compress.prune._rounds import rows_of
from dlas.data.dataset import Dataset
from dlas.data.splits import bytes_of, split


def content(data: Dataset) -> set[bytes]:
    return {bytes_of(data, row) for row in range(len(data))}


def test_the_four_parts_are_disjoint_even_where_samples_repeat() -> None:
    once = rows(400)
    data = once.take(np.concatenate([np.arange(400), np.arange(0, 400, 3), np.arange(200)[::-1]]))
    parts = split(data)
    test, given = content(parts["test"]), content(parts["train"])
    batches, _ = calibration_batches(blocks(), parts["train"], 64)
    calibration = {row.tobytes() for batch in batches() for row in batch}
    training, validation = (
        {row.tobytes() for row in part.inputs}
        for part in rows_of(blocks(), parts["train"], "ice", validation=0.2, rows=0, seed=0)
    )
    assert min(len(test), len(calibration), len(training), len(validation)) >= 20
    assert not test & (given | calibration | training | validation)
    assert not training & validation
    assert training | validation == given
    assert calibration <= given
    assert test | given == content(data)


def test_validation_rows_stay_where_they_are_when_the_set_grows() -> None:
    data = rows(400)
    _, before = rows_of(blocks(), data.take(np.arange(300)), "ice", validation=0.2, rows=0, seed=0)
    training, after = rows_of(
        blocks(), data.take(np.arange(400)[::-1]), "ice", validation=0.2, rows=50, seed=3
    )
    assert {r.tobytes() for r in before.inputs} <= {r.tobytes() for r in after.inputs}
    assert len(training) == 50
