"""A study: every stack becomes a row, whatever its steps do; a second run does nothing again."""

from __future__ import annotations

import contextlib
import dataclasses
import errno
import importlib
import sqlite3
import sys
import time
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest

from dlas.core.cache import Cache
from dlas.core.errors import DlasError, StorageError
from dlas.core.figure import Outcome
from dlas.core.provenance import plugin_hashes
from dlas.core.timing import Protocol
from dlas.core.worker import WorkerFailure
from dlas.explore.claims import claims_in
from dlas.explore.pipeline import Workbench
from dlas.explore.progress import Silent
from dlas.explore.result import StudyResult
from dlas.explore.space import Pipeline
from dlas.explore.spec import StudySpec, spec_of
from dlas.explore.steps import open_rows
from dlas.explore.storage import SqliteStorage
from dlas.explore.study import Study, load_result
from dlas.testing import models as networks


class InlineExecutor:
    """Steps in this process, sessions that answer from the reference engine; back ends can be told to fail."""

    def __init__(self, faults: dict[str, str] | None = None) -> None:
        self.faults = faults or {}
        self.calls: list[str] = []
        self.opened = 0

    def call(self, function: str, *args: Any) -> Any:
        self.calls.append(function.rpartition(":")[2])
        if function.endswith(self.faults.get("full", "nothing")):
            raise StorageError("cannot write x: No space left on device")
        if function.endswith(":build"):
            if self.faults.get(args[0]) == "build":
                raise WorkerFailure(Outcome.CRASH, "killed by SIGSEGV (segmentation fault)", "last words")
            (Path(args[3]) / "model.onnx").write_bytes(Path(args[1]).read_bytes())
            return {"artifact_bytes": 1000, "notes": []}
        if self.faults.get("method") and function.endswith("compress_network"):
            raise WorkerFailure(Outcome.TIMEOUT, "no answer within 1 s")
        module, _, name = function.partition(":")
        return getattr(importlib.import_module(module), name)(*args)

    def session(self, threads: int) -> InlineSession:
        self.opened += 1
        return InlineSession(self)

    busy = quiet = staticmethod(contextlib.nullcontext)

    def close(self) -> None:
        pass


class InlineSession:
    def __init__(self, executor: InlineExecutor) -> None:
        self.executor = executor
        self.fault = ""
        self.folder = ""

    def open(self, backend: str, folder: str, target: str, threads: int) -> dict[str, Any]:
        self.fault, self.folder = self.executor.faults.get(backend, ""), folder
        if self.fault == "interrupt":
            raise KeyboardInterrupt
        return {"notes": [f"note of {backend}"]}

    def outputs(self, x: np.ndarray) -> np.ndarray:
        from dlas.explore.steps import read_network
        from dlas.graph.reference import predict

        answers = predict(read_network(self.folder), np.asarray(x))
        return -answers if self.fault == "wrong" else answers

    def warm_up(self, protocol: Protocol) -> None:
        if self.fault == "hang":
            raise WorkerFailure(Outcome.TIMEOUT, "no answer within 1 s")

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = 0) -> list[float]:
        return [2.0 if self.fault == "slow" else 1.0] * max(min_samples, 2)

    def facts(self, profile_repeats: int) -> dict[str, Any]:
        return {
            "memory": {"peak_bytes": 1 << 20},
            "layers": [{"name": "a", "op": "Conv", "milliseconds": 1.0}],
        }

    def close(self) -> None:
        pass


@pytest.fixture
def spec(tmp_path: Path) -> StudySpec:
    model = networks.residual()
    (tmp_path / "net.onnx").write_bytes(model.to_bytes())
    x = networks.images(60)
    from dlas.graph.reference import predict

    labels = predict(model, x).argmax(1)
    np.savez(tmp_path / "rows.npz", x=x, y=labels)
    return spec_of(
        {
            "data": {"path": str(tmp_path / "rows.npz")},
            "model": {"path": str(tmp_path / "net.onnx")},
            "compress": {"pipeline": ["channel:ratio=0.25"]},
            "runtime": {"backend": ["onnxruntime", "torch"], "threads": [1, 2]},
            "study": {"timing": "quick"},
        },
        "test",
    )


def run(spec: StudySpec, out: Path, executor: InlineExecutor, **options: Any) -> StudyResult:
    study = Study(spec, out, executor=executor, cache=Cache(out / "cache"))
    return study.run(**options)


def workbench(spec: StudySpec, folder: Path) -> Workbench:
    return Workbench(spec, InlineExecutor(), Cache(folder / "cache"), Silent())


def test_every_stack_becomes_a_row_with_its_figures(spec: StudySpec, tmp_path: Path) -> None:
    result = run(spec, tmp_path / "out", InlineExecutor({"torch": "slow"}))
    assert len(result.points) == 2 * 2 * 2
    assert {p.record.outcome for p in result.points} == {Outcome.OK}
    base = next(p for p in result.points if p.baseline)
    assert base.choices == {"compress": "none", "backend": "onnxruntime", "threads": "1", "target": "host"}
    assert base.record.figures["top1"].value == 1.0  # the labels are the network's own answers
    assert base.record.figures["speedup"].value == pytest.approx(1.0)
    slow = next(p for p in result.points if p.choices["backend"] == "torch")
    assert slow.record.figures["speedup"].value == pytest.approx(0.5)
    assert slow.record.facts["verdict"] == "equal"
    pruned = next(p for p in result.points if p.choices["compress"] != "none")
    assert pruned.record.figures["params"].value < base.record.figures["params"].value
    assert result.changes["channel:ratio=0.25"]
    assert set(result.pareto) <= {p.key for p in result.points if p.choices["backend"] == "onnxruntime"}
    assert result.hypervolume["value"] > 0


@pytest.mark.parametrize("split", ["", "test"])
def test_the_judged_rows_and_the_calibration_rows_are_apart(
    spec: StudySpec, tmp_path: Path, split: str
) -> None:
    bench = workbench(dataclasses.replace(spec, data=dataclasses.replace(spec.data, split=split)), tmp_path)
    judged, calibration = open_rows(bench.judged), open_rows(bench.calibration)
    assert len(judged) > len(calibration) > 0
    assert not set(judged.rows) & set(calibration.rows)


@pytest.mark.parametrize(
    "given",
    [
        {"calibration_split": "train"},  # judged on everything, the train rows among it
        {"calibration": "rows.npz", "split": "test"},
        {"calibration": "rows.npz", "split": "test", "calibration_split": "test"},
    ],
)
def test_rows_named_twice_are_divided_all_the_same(
    spec: StudySpec, tmp_path: Path, given: dict[str, str]
) -> None:
    data = dataclasses.replace(spec.data, **given)
    bench = workbench(dataclasses.replace(spec, data=data, folder=tmp_path), tmp_path)
    judged, calibration = (open_rows(rows).samples for rows in (bench.judged, bench.calibration))
    assert len(judged)
    assert len(calibration)
    assert not {row.tobytes() for row in judged} & {row.tobytes() for row in calibration}


@pytest.mark.parametrize(
    ("fault", "outcome", "reason"),
    [
        ("build", Outcome.CRASH, "SIGSEGV"),
        ("hang", Outcome.TIMEOUT, "no answer"),
        ("wrong", Outcome.WRONG, "label"),
    ],
)
def test_a_back_end_that_fails_is_a_row_with_its_reason(
    spec: StudySpec, tmp_path: Path, fault: str, outcome: Outcome, reason: str
) -> None:
    result = run(spec, tmp_path / "out", InlineExecutor({"torch": fault}))
    bad = [p for p in result.points if p.choices["backend"] == "torch"]
    good = [p for p in result.points if p.choices["backend"] == "onnxruntime"]
    assert {p.record.outcome for p in bad} == {outcome}
    assert all(reason in p.record.reason for p in bad)
    assert {p.record.outcome for p in good} == {Outcome.OK}
    assert all("latency_ms" in p.record.figures for p in good)
    assert not set(result.pareto) & {p.key for p in bad}


def test_a_crash_is_built_once_and_keeps_the_last_words(spec: StudySpec, tmp_path: Path) -> None:
    executor = InlineExecutor({"torch": "build"})
    result = run(spec, tmp_path / "out", executor)
    crashed = next(p for p in result.points if p.choices["backend"] == "torch")
    assert crashed.record.stderr_tail == "last words"
    assert crashed.record.figures["top1"].value == 1.0  # what compression cost is known all the same
    assert executor.calls.count("build") == 4  # two networks, two back ends; thread counts share


def test_a_method_that_fails_costs_only_its_own_rows(spec: StudySpec, tmp_path: Path) -> None:
    result = run(spec, tmp_path / "out", InlineExecutor({"method": "yes"}))
    outcomes = {p.choices["compress"]: p.record.outcome for p in result.points}
    assert outcomes == {"none": Outcome.OK, "channel:ratio=0.25": Outcome.TIMEOUT}


def test_a_second_run_does_nothing_again(spec: StudySpec, tmp_path: Path) -> None:
    first = run(spec, tmp_path / "out", InlineExecutor())
    executor = InlineExecutor()
    second = run(spec, tmp_path / "out", executor)
    assert executor.calls == []
    assert executor.opened == 0
    assert second.points == first.points
    assert second.changes == first.changes


def test_fresh_measures_again_but_compresses_nothing_again(spec: StudySpec, tmp_path: Path) -> None:
    run(spec, tmp_path / "out", InlineExecutor())
    executor = InlineExecutor()
    run(spec, tmp_path / "out", executor, fresh=True)
    assert executor.calls == []
    assert executor.opened > 0


def test_an_interrupted_study_goes_on_where_it_was(spec: StudySpec, tmp_path: Path) -> None:
    with pytest.raises(KeyboardInterrupt):
        run(spec, tmp_path / "out", InlineExecutor({"torch": "interrupt"}))
    storage = SqliteStorage(tmp_path / "out" / "study.db", create=False)
    partial = load_result(storage, "test")
    storage.close()
    assert partial.pending == 8 - len(partial.points)
    assert partial.pending > 0
    whole = run(spec, tmp_path / "out", InlineExecutor())
    assert whole.pending == 0
    assert len({p.key for p in whole.points}) == len(whole.points) == 8


def test_a_method_that_needs_rows_is_a_row_when_there_are_none(spec: StudySpec, tmp_path: Path) -> None:
    from dlas.explore.spec import DataSpec

    space = dataclasses.replace(spec.space, compress=(Pipeline(), Pipeline.parse("int8")))
    bare = dataclasses.replace(spec, data=DataSpec(), space=space)
    result = run(bare, tmp_path / "out", InlineExecutor())
    outcomes = {p.choices["compress"]: p.record.outcome for p in result.points}
    assert outcomes == {"none": Outcome.OK, "int8": Outcome.UNSUPPORTED}
    assert [str(o) for o in result.objectives] == ["min:latency_ms", "max:agreement"]


def test_wrong_names_are_refused_before_anything_runs(spec: StudySpec, tmp_path: Path) -> None:
    tables = {"model": {"path": "net.onnx"}, "runtime": {"backend": "onnxruntme"}}
    with pytest.raises(DlasError, match="onnxruntime"):
        Study(spec_of(tables, "x"), tmp_path / "out")
    with pytest.raises(DlasError, match=r"sparsty.*sparsity"):
        Study(spec_of({"compress": {"pipeline": "magnitude:sparsty=0.5"}}, "x"), tmp_path / "out")
    assert not (tmp_path / "out").exists()


def test_only_one_may_measure_everything_again(spec: StudySpec, tmp_path: Path) -> None:
    (tmp_path / "out").mkdir()
    with claims_in(tmp_path / "out"), pytest.raises(DlasError, match="another dlas"):
        run(spec, tmp_path / "out", InlineExecutor(), fresh=True)
    with claims_in(tmp_path / "out", alone=True), pytest.raises(DlasError, match="another dlas"):
        run(spec, tmp_path / "out", InlineExecutor())


def test_what_another_process_tries_is_waited_for_and_not_tried_again(
    spec: StudySpec, tmp_path: Path
) -> None:
    whole = run(spec, tmp_path / "out", InlineExecutor())
    shared = tmp_path / "shared"
    taken = [p.key for p in whole.points[:3]]
    other = SqliteStorage(shared / "study.db")
    executor = InlineExecutor()
    with claims_in(shared) as claims, ThreadPoolExecutor() as pool:
        assert claims.take(taken) == taken
        mine = pool.submit(run, spec, shared, executor)
        while len(other.points("test")) < 5:
            assert not mine.done(), mine.result()
            time.sleep(0.01)
        time.sleep(0.1)
        assert not mine.done()
        for point in whole.points[:2]:
            other.put_point("test", dataclasses.replace(point, seconds=77.0))
        claims.release(taken)  # the third was given up, as by a process that died
        result = mine.result(timeout=60)
    other.close()
    assert result.pending == 0
    assert [p.seconds == 77.0 for p in result.points] == [p.key in taken[:2] for p in result.points]
    assert not (shared / ".claims").exists()


def test_changes_of_an_older_file_are_kept(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    storage.put_study("s", {"keys": [], "changes": {"int8": [{"layer": "a"}]}})
    storage.close()
    with sqlite3.connect(tmp_path / "study.db") as db:
        db.execute("DROP TABLE changes")
        db.execute("PRAGMA user_version = 1")
    db.close()
    storage = SqliteStorage(tmp_path / "study.db", create=False)
    assert storage.changes("s") == {"int8": [{"layer": "a"}]}
    storage.close()


def test_another_baseline_measures_the_speed_ups_again(spec: StudySpec, tmp_path: Path) -> None:
    run(spec, tmp_path / "out", InlineExecutor({"torch": "slow"}))
    turned = dataclasses.replace(spec.space, backends=spec.space.backends[::-1])
    result = run(dataclasses.replace(spec, space=turned), tmp_path / "out", InlineExecutor({"torch": "slow"}))
    (base,) = [p for p in result.points if p.baseline]
    assert base.choices["backend"] == "torch"
    fast = next(p for p in result.points if p.choices["backend"] == "onnxruntime")
    assert fast.record.figures["speedup"].value == pytest.approx(2.0)


def test_what_the_limits_stopped_is_tried_again_under_other_limits(spec: StudySpec, tmp_path: Path) -> None:
    first = run(spec, tmp_path / "out", InlineExecutor({"torch": "hang"}))
    assert {p.record.outcome for p in first.points} == {Outcome.OK, Outcome.TIMEOUT}
    same = InlineExecutor()
    run(spec, tmp_path / "out", same)
    assert same.opened == 0
    patient = dataclasses.replace(spec, limits=dataclasses.replace(spec.limits, step_timeout_s=1200.0))
    executor = InlineExecutor()
    second = run(patient, tmp_path / "out", executor)
    assert {p.record.outcome for p in second.points} == {Outcome.OK}
    assert executor.opened == 4 + 1  # the four that hung, and the baseline they are timed with


def test_a_network_that_answers_with_nan_is_a_wrong_row(spec: StudySpec, tmp_path: Path) -> None:
    whole = networks.residual().to_bytes()
    proto = onnx.load_from_string(whole)
    scores = proto.graph.output[0].name
    for node in proto.graph.node:
        node.output[:] = ["raw" if name == scores else name for name in node.output]
    proto.graph.node.extend(
        [
            onnx.helper.make_node("Sub", ["raw", "raw"], ["zero"], "zero"),
            onnx.helper.make_node("Div", ["raw", "zero"], [scores], "infinite"),
        ]
    )
    (tmp_path / "net.onnx").write_bytes(proto.SerializeToString())
    result = run(spec, tmp_path / "out", InlineExecutor())
    assert {p.record.outcome for p in result.points} == {Outcome.WRONG}
    assert all("NaN or infinity" in p.record.reason for p in result.points)


def test_a_network_that_changes_on_the_disk_is_a_new_network(spec: StudySpec, tmp_path: Path) -> None:
    before = workbench(spec, tmp_path).network
    (tmp_path / "net.onnx").write_bytes(networks.residual(seed=1).to_bytes())
    assert workbench(spec, tmp_path).network.facts["hash"] != before.facts["hash"]


def test_external_weights_are_part_of_the_network(spec: StudySpec, tmp_path: Path) -> None:
    for seed in (0, 1):
        onnx.save_model(
            onnx.load_from_string(networks.residual(seed=seed).to_bytes()),
            str(tmp_path / f"net{seed}.onnx"),
            save_as_external_data=True,
            location=f"net{seed}.bin",
            size_threshold=0,
        )
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=str(tmp_path / "net0.onnx")))
    before = workbench(spec, tmp_path).network
    (tmp_path / "net0.bin").write_bytes((tmp_path / "net1.bin").read_bytes())
    assert workbench(spec, tmp_path).network.facts["hash"] != before.facts["hash"]


def test_a_copy_of_a_network_keeps_its_own_name(spec: StudySpec, tmp_path: Path) -> None:
    assert workbench(spec, tmp_path).network.facts["name"] == "net"
    (tmp_path / "copy.onnx").write_bytes((tmp_path / "net.onnx").read_bytes())
    spec = dataclasses.replace(spec, model=dataclasses.replace(spec.model, path=str(tmp_path / "copy.onnx")))
    assert workbench(spec, tmp_path).network.facts["name"] == "copy"


def test_the_code_of_a_plug_in_is_part_of_the_key(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    package, facts = tmp_path / "dlas_extra", tmp_path / "dlas_extra-1.0.dist-info"
    package.mkdir()
    facts.mkdir()
    (package / "__init__.py").write_text("")
    (package / "mine.py").write_text("one = 1\n")
    (facts / "METADATA").write_text("Metadata-Version: 2.1\nName: dlas-extra\nVersion: 1.0\n")
    (facts / "entry_points.txt").write_text("[dlas.method]\nmine = dlas_extra.mine:Mine\n")
    monkeypatch.setattr(sys, "path", [str(tmp_path), *sys.path])
    before = dict(plugin_hashes.__wrapped__())
    (package / "mine.py").write_text("one = 2\n")
    after = dict(plugin_hashes.__wrapped__())
    assert before["dlas_extra"] != after["dlas_extra"]
    assert "dlas_extra.mine" not in sys.modules  # hashed, not imported


@pytest.mark.parametrize("step", ["compress_network", ":build"])
def test_a_full_disk_stops_the_study_and_leaves_no_row_of_itself(
    spec: StudySpec, tmp_path: Path, step: str
) -> None:
    with pytest.raises(StorageError, match="No space"):
        run(spec, tmp_path / "out", InlineExecutor({"full": step}))
    result = run(spec, tmp_path / "out", InlineExecutor())
    assert {p.record.outcome for p in result.points} == {Outcome.OK}
    assert len(result.points) == 2 * 2 * 2


def test_rows_and_network_that_were_moved_are_the_same(spec: StudySpec, tmp_path: Path) -> None:
    run(spec, tmp_path / "out", InlineExecutor())
    (tmp_path / "moved").mkdir()
    for name in ("net.onnx", "rows.npz"):
        (tmp_path / name).rename(tmp_path / "moved" / name)
    there = dataclasses.replace(
        spec,
        model=dataclasses.replace(spec.model, path=str(tmp_path / "moved" / "net.onnx")),
        data=dataclasses.replace(spec.data, path=str(tmp_path / "moved" / "rows.npz")),
    )
    again = InlineExecutor()
    run(there, tmp_path / "out", again)
    assert again.calls == []


@pytest.mark.parametrize("ends", [KeyboardInterrupt, ValueError, PermissionError])
def test_claims_leave_nothing_and_blame_nobody_else(tmp_path: Path, ends: type[BaseException]) -> None:
    def take_part() -> None:
        with claims_in(tmp_path / "out") as claims:
            claims.take(["a" * 16])
            raise ends(errno.EACCES, "Permission denied", "/data/rows.npz")

    with pytest.raises(ends):
        take_part()
    assert list((tmp_path / "out").iterdir()) == []
