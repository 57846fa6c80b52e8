"""kill -9 at random moments, of the main process or of a worker: nothing lost, nothing doubled, nothing left."""

from __future__ import annotations

import random
import subprocess
import time

import onnx
import pytest
from faults_bench import SIGKILLED, Bench

from dlas.graph.format import load_model

POINTS = 4

STUDY = ["run", "net.onnx", "--data", "rows.npz", "--backend", "onnxruntime", "--threads", "1", "--quick"]
STUDY += [
    "--compress",
    "int8",
    "--compress",
    "float16",
    "--compress",
    "magnitude:sparsity=0.5",
    "--out",
    "out",
]
COMPRESS = ["compress", "net.onnx", "channel:ratio=0.3,finetune_epochs=12,batch_size=8,lr=0.01"]
COMPRESS += ["--data", "rows.npz", "-o", "small.onnx", "--force"]
CONVERT = ["convert", "net.onnx", "net.tflite", "--force"]


def whole_time(bench: Bench, words: list[str]) -> float:
    """Seconds that a run without a fault takes here, on an empty cache."""
    started = time.monotonic()
    bench.run(*words).assert_well()
    return time.monotonic() - started


def wait_for_checkpoint(bench: Bench, child: subprocess.Popen[str]) -> None:
    """Until training has begun and left something to go on from, or the child has ended."""
    until = time.monotonic() + 120
    while child.poll() is None and not list(bench.cache.rglob("*.ckpt")):
        assert time.monotonic() < until, "no checkpoint appears"
        time.sleep(0.01)


@pytest.mark.slow  # tests/explore/test_kill.py stops a study in every run
@pytest.mark.parametrize("kills", [1, 20])
def test_a_study(bench: Bench, kills: int) -> None:
    dice, seconds, hit = random.Random(kills), whole_time(bench, STUDY), []
    assert len(bench.finished()) == POINTS
    bench.forget()
    while len(hit) < kills:
        before = bench.finished()
        if len(before) == POINTS:
            bench.forget()
            before = {}
        child = bench.start(*STUDY)
        what = bench.kill(child, dice, dice.uniform(0.1, 1.0) * seconds)
        after = bench.finished()
        assert {key: after.get(key) for key in before} == before, "a finished point was lost or tried again"
        if not what:
            bench.outcome(child).assert_well()
            continue
        hit.append(what)
        if what == "worker":
            bench.outcome(child).assert_well_or_clear()
        else:
            assert child.returncode == SIGKILLED
            assert bench.processes() == []
        report = bench.files / "out" / "report.html"
        assert not report.exists() or report.read_text().rstrip().endswith("</html>")
    before = bench.finished()
    bench.run(*STUDY).assert_well()
    after = bench.finished()
    assert len(after) == POINTS
    assert {key: after[key] for key in before} == before
    assert bench.leftovers() == []


@pytest.mark.parametrize("kills", [1, pytest.param(20, marks=pytest.mark.slow)])
def test_a_compression_with_fine_tuning(bench: Bench, kills: int) -> None:
    dice, seconds, hit, resumed = random.Random(kills), whole_time(bench, COMPRESS), 0, 0
    target = bench.files / "small.onnx"
    want = target.read_bytes()
    bench.forget()
    while hit < kills:
        target.write_bytes(b"old")
        child = bench.start(*COMPRESS)
        if hit % 2 == 0:  # the time until training begins varies more than the training takes
            wait_for_checkpoint(bench, child)
            killed = bench.kill(child, dice, dice.uniform(0.0, 0.3))
        else:
            killed = bench.kill(child, dice, dice.uniform(0.1, 1.0) * seconds)
        resumed += "resumed at step" in bench.outcome(child).errors
        assert target.read_bytes() in (b"old", want)
        hit += bool(killed)
        if not killed:
            bench.outcome(child).assert_well()
            assert target.read_bytes() == want, "going on after a kill made another network"
            bench.forget()
    done = bench.run(*COMPRESS)
    done.assert_well()
    resumed += "resumed at step" in done.errors
    assert target.read_bytes() == want
    onnx.checker.check_model(onnx.load(target), full_check=True)
    assert resumed > 0
    assert bench.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("kills", [1, 20])
def test_a_conversion(bench: Bench, kills: int) -> None:
    dice, seconds, hit = random.Random(kills), whole_time(bench, CONVERT), 0
    target = bench.files / "net.tflite"
    want = target.read_bytes()
    while hit < kills:
        target.write_bytes(b"old")
        child = bench.start(*CONVERT)
        what = bench.kill(child, dice, dice.uniform(0.1, 1.0) * seconds)
        assert target.read_bytes() in (b"old", want)
        hit += bool(what)
        if what == "worker":
            done = bench.outcome(child)
            if done.code == 1:  # the file is written; the check of it says who died
                assert "killed" in done.answer
            else:
                done.assert_well_or_clear()
    bench.run(*CONVERT).assert_well()
    assert target.read_bytes() == want
    load_model(target)
    assert bench.leftovers() == []
