"""A study that is killed or interrupted goes on where it was: nothing lost, nothing doubled, nobody left behind."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import numpy as np
import psutil
import pytest

from dlas.explore.storage import SqliteStorage
from dlas.explore.study import load_result
from dlas.testing import models as networks

POINTS = 4


@pytest.fixture
def command(tmp_path: Path) -> list[str]:
    from dlas.graph.reference import predict

    (tmp_path / "net.onnx").write_bytes(networks.residual().to_bytes())
    x = networks.images(64)
    np.savez(tmp_path / "rows.npz", x=x, y=predict(networks.residual(), x).argmax(1))
    words = [sys.executable, "-m", "dlas.cli.main", "run", str(tmp_path / "net.onnx")]
    words += ["--data", str(tmp_path / "rows.npz"), "--backend", "onnxruntime", "--threads", "1"]
    for pipeline in ("float16", "magnitude:sparsity=0.5", "magnitude:sparsity=0.7"):
        words += ["--compress", pipeline]
    return [*words, "--quick", "--out", str(tmp_path / "out")]


def finished(database: Path) -> dict[str, float]:
    """Keys of the finished points and when each was finished."""
    if not database.exists():
        return {}
    with sqlite3.connect(f"file:{database}?mode=ro", uri=True) as db:
        try:
            return dict(db.execute("SELECT key, finished FROM points"))
        except sqlite3.OperationalError:  # the tables are not there yet
            return {}


def start_and_stop(
    command: list[str], out: Path, signal_number: int, after: int
) -> tuple[int, str, list[int]]:
    """Run until ``after`` points are finished, send the signal; exit code, standard error, processes left."""
    child = subprocess.Popen(command, stdout=subprocess.DEVNULL, stderr=subprocess.PIPE, text=True)
    deadline = time.monotonic() + 90
    while len(finished(out / "study.db")) < after:
        assert child.poll() is None, child.communicate()[1]
        assert time.monotonic() < deadline, "the study does not get on"
        time.sleep(0.02)
    family = [p.pid for p in psutil.Process(child.pid).children(recursive=True)]
    os.kill(child.pid, signal_number)
    _, errors = child.communicate(timeout=60)
    deadline = time.monotonic() + 10
    while any(map(psutil.pid_exists, family)) and time.monotonic() < deadline:
        time.sleep(0.1)
    return child.returncode, errors, [pid for pid in family if psutil.pid_exists(pid)]


@pytest.mark.parametrize(
    "signal_number", [pytest.param(signal.SIGKILL, marks=pytest.mark.slow), signal.SIGINT]
)
def test_a_stopped_study_goes_on_where_it_was(
    command: list[str], tmp_path: Path, signal_number: signal.Signals
) -> None:
    out = tmp_path / "out"
    code, errors, orphans = start_and_stop(command, out, signal_number, after=1)
    assert orphans == []
    if signal_number == signal.SIGINT:
        assert code == 130
        assert "goes on where it was" in errors
        assert "Traceback" not in errors
    before = finished(out / "study.db")
    assert 1 <= len(before) < POINTS

    done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=120)
    assert done.returncode == 0, done.stderr
    after = finished(out / "study.db")
    assert len(after) == POINTS
    assert {key: after[key] for key in before} == before  # finished points were not tried again
    storage = SqliteStorage(out / "study.db", create=False)
    result = load_result(storage, "net")
    storage.close()
    assert result.pending == 0
    assert len({tuple(sorted(p.choices.items())) for p in result.points}) == POINTS
    assert not list(tmp_path.rglob("*.tmp"))
