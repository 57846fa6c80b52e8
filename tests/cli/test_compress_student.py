"""``dlas compress MODEL student``: times come from the engine, and a budget out of reach is one line."""

from __future__ import annotations

import json
from pathlib import Path

import numpy as np
import pytest

from dlas.cli.main import run_command
from dlas.graph.format import load_model, save_model
from dlas.kernels.extension import missing_native
from dlas.testing import models

pytestmark = pytest.mark.skipif(bool(missing_native()), reason=missing_native())


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    save_model(models.residual(), tmp_path / "net.onnx")
    labels = np.random.default_rng(2).integers(0, models.CLASSES, 32)
    np.savez(tmp_path / "rows.npz", x=models.images(32, seed=2), y=labels)
    options = ["--data", str(tmp_path / "rows.npz"), "--epochs", "1", "--threads", "1"]
    return ["compress", str(tmp_path / "net.onnx"), "student", *options]


def test_a_student_within_its_time_is_written_and_says_so(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.onnx"
    assert run_command([*command, "--share", "0.8", "--slack", "0.1", "-o", str(target), "--json"]) == 0
    shown = json.loads(capsys.readouterr().out)
    options = load_model(target).history[-1].options
    assert options == shown["history"][-1]["options"]
    assert options["cost_unit"] == "ms"
    assert options["cost_measured"] <= 0.8 * 1.1 * options["cost_before"]
    assert "1 thread" in options["costs"]
    assert any("ms measured" in note for note in shown["notes"])


def test_a_budget_below_the_floor_or_above_the_network(
    command: list[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    target = tmp_path / "small.onnx"
    assert run_command([*command, "--latency-ms", "1e-6", "-o", str(target)]) == 2
    errors = capsys.readouterr().err
    assert "budget = '1e-06 ms' is not accepted: expected at least" in errors
    assert "Traceback" not in errors
    assert not target.exists()
    assert run_command([*command, "--latency-ms", "1000", "--plan"]) == 0
    assert "it is left as it is" in capsys.readouterr().err
