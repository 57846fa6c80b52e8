"""The noise floor of a source, on every set of kernels it can be run with."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

import dlas
from dlas.core.worker import WorkerFailure
from dlas.testing import models
from dlas.verify.differential import NoiseFloor
from dlas.verify.differential.compare import Subject
from dlas.verify.differential.floor import source_floors, widest
from dlas.verify.running import native

X = {"image": models.images(12)}


def test_the_widest_floor_has_the_most_flips_and_the_largest_change() -> None:
    few, many = NoiseFloor(3, 1000, 0.5, 0.1, "a"), NoiseFloor(2, 100, 0.2, 0.2, "b")
    assert widest(few, many) == NoiseFloor(2, 100, 0.5, 0.2, "b")


@pytest.fixture
def int8(tmp_path: Path) -> Subject:
    pytest.importorskip("ai_edge_litert", reason="litert needs ai_edge_litert: pip install 'dlas[tflite]'")
    dlas.save(models.residual_quantized(), tmp_path / "net.tflite")
    return Subject.open(tmp_path / "net.tflite")


def test_the_kernels_of_litert_widen_the_floor_of_its_files(int8: Subject) -> None:
    x = {int8.model.inputs[0].name: next(iter(X.values()))}
    if int8.model.inputs[0].shape[-1] == 3:
        x = {name: rows.transpose(0, 2, 3, 1) for name, rows in x.items()}
    reference = native(int8, [np.ascontiguousarray(rows) for rows in x.values()], 60)
    (found,) = source_floors(int8, x, reference, 60)
    assert found.rows == 12
    assert found.max_abs > 0.01  # its reference kernels round otherwise


def test_kernels_that_cannot_run_leave_the_other_floors(
    int8: Subject, monkeypatch: pytest.MonkeyPatch
) -> None:
    from dlas.core.figure import Outcome
    from dlas.verify.differential import floor

    def died(*_: object, **__: object) -> None:
        raise WorkerFailure(Outcome.CRASH, "killed by SIGSEGV")

    monkeypatch.setattr(floor, "run_in_worker", died)
    monkeypatch.setattr(floor, "floors", lambda model, x: [NoiseFloor(1, 12, 0.1, 0.1, "a")])
    assert source_floors(int8, X, [np.zeros((12, 10))], 60) == [NoiseFloor(1, 12, 0.1, 0.1, "a")]
