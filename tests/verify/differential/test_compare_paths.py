"""Comparisons on paths: every outcome is a row, two runs say the same, and a build fails on what it should."""

from __future__ import annotations

import csv
import json
import os
import sys
import xml.etree.ElementTree as ET
from pathlib import Path

import numpy as np
import onnx
import pytest

import dlas
from dlas.cli.main import run_command
from dlas.core.errors import DataError, UnknownNameError
from dlas.core.figure import Figure, Source
from dlas.core.timing import Protocol, Timing
from dlas.core.worker import Worker
from dlas.verify.differential import Comparison, NoiseFloor, Verdict
from dlas.verify.differential.flips import write_csv
from dlas.verify.differential.gate import failures, read_baseline
from dlas.verify.differential.junit import write_junit
from dlas.verify.differential.report import Answers, CompareReport, PathResult
from dlas.verify.differential.times import path_times
from dlas.verify.paths import parse_paths

FAST = Protocol(warmup_runs=2, warmup_s=0.0, min_samples=3, min_s=0.0, max_s=1.0, rounds=3)


@pytest.fixture(scope="module")
def hurt(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The small digits network with the weights of one convolution turned round."""
    from dlas.models.pretrained import pretrained_path

    model = onnx.load(pretrained_path("digits-cnn"))  # type: ignore[arg-type]
    weight = next(w for w in model.graph.initializer if len(w.dims) == 4)
    weight.CopyFrom(onnx.numpy_helper.from_array(-onnx.numpy_helper.to_array(weight), weight.name))
    path = tmp_path_factory.mktemp("hurt") / "hurt.onnx"
    onnx.save(model, path)
    return path


def test_paths_are_rows_with_labels_rankings_and_times() -> None:
    report = dlas.compare(
        "digits-cnn",
        "digits-cnn",
        data="digits",
        split="test",
        rows=70,
        paths=["ort:O0,ort:all"],
        timing=FAST,
    )
    assert [p.path for p in report.paths] == ["ort:O0", "ort:all"]
    assert report.right
    for row in report.paths:
        assert row.kendall_tau == pytest.approx(1, abs=0.01)
        assert row.rank_biased_overlap == pytest.approx(1, abs=0.01)
        assert row.mcnemar_p == 1
        assert row.time is not None
        assert row.time.latency is not None
        assert row.time.latency.value > 0
    base = report.paths[1].time
    assert base is not None
    assert base.ratio is not None
    assert base.ratio.value == 1
    assert report.matrix is not None
    assert report.matrix.names == ("source", "ort:O0", "ort:all")
    assert {"dlas", "onnxruntime"} <= set(report.versions)


@pytest.mark.slow
def test_a_network_alone_runs_on_every_back_end_that_is_there(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("dlas.verify.paths.installed_backends", lambda: ["onnxruntime", "torch"])
    rows = {"data": "digits", "split": "test", "rows": 8}
    assert [row.path for row in dlas.compare("digits-cnn", **rows).paths] == [
        "ort:O0",
        "onnxruntime",
        "torch",
    ]
    assert [row.path for row in dlas.compare("digits-cnn", paths=["ort:O1"], **rows).paths] == ["ort:O1"]
    command = ["compare", "digits-cnn", "--data", "digits", "--split", "test", "--rows", "8", "--no-time"]
    assert run_command(command) == 0
    printed = capsys.readouterr().out
    assert all(word in printed for word in ("ort:O0", "onnxruntime", "torch"))


def test_a_file_on_its_own_runtime_is_timed_beside_its_paths(hurt: Path) -> None:
    asked = {"data": "digits", "split": "test", "rows": 4, "timing": FAST}
    report = dlas.compare("digits-cnn", hurt, paths=["ort:O0"], **asked)
    assert [row.path for row in report.paths] == ["native (onnxruntime)", "ort:O0"]
    (alone,) = dlas.compare("digits-cnn", hurt, **asked).paths
    for row in (*report.paths, alone):
        assert row.time is not None
        assert row.time.latency is not None
        assert row.time.ratio is not None
        assert row.time.degradation is None
        assert 0.05 < row.time.ratio.value < 20


def test_a_row_without_times_says_why(hurt: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    from dlas.core.errors import UnsupportedError
    from dlas.verify.differential import compare, warm

    def refuse(*_: object) -> warm.Lane:
        raise UnsupportedError("no such base")

    monkeypatch.setattr(compare.Compiler, "build", refuse)
    asked = {"data": "digits", "split": "test", "rows": 4, "timing": FAST}
    told: list[str] = []
    (row,) = dlas.compare("digits-cnn", hurt, tell=told.append, **asked).paths
    assert any("no such base" in line for line in told)
    assert row.time is not None
    assert row.time.latency is not None
    assert row.time.ratio is None
    monkeypatch.setattr("dlas.runtime.bench.WorkerSampler.hold_to", refuse)
    (row,) = dlas.compare("digits-cnn", hurt, **asked).paths
    assert row.why.endswith("no time: no such base")


def test_whatever_becomes_of_a_path_is_a_row(monkeypatch: pytest.MonkeyPatch) -> None:
    pytest.importorskip("ai_edge_litert", reason="litert needs ai_edge_litert: pip install 'dlas[tflite]'")
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    assert str(Path(__file__).parent) in sys.path
    for module in ("dlas.runtime.bench", "dlas.verify.differential.warm"):
        monkeypatch.setattr(f"{module}.SESSION", "misbehaving_session")
    paths = "ort:O1,ort:O2,ort:O3,litert:ref,ort:O0,ort@x86-64-v2,ort:all,litert:builtin"
    report = dlas.compare(
        "digits-cnn",
        "digits-cnn",
        data="digits",
        split="test",
        rows=8,
        paths=[paths],
        timing=FAST,
        timeout_s=10,
    )
    found = {row.path: row for row in report.paths}
    assert {name: row.word for name, row in found.items()} == {
        "ort:O1": "crash",
        "ort:O2": "crash",
        "ort:O3": "crash",
        "litert:ref": "crash",
        "ort:O0": "nan",
        "ort@x86-64-v2": "unsupported",
        "ort:all": "equal",
        "litert:builtin": "equal",
    }
    assert "SIGSEGV" in found["ort:O1"].reason
    assert found["ort:O2"].reason.startswith("timeout: no answer within 10 s")
    assert "No space left" in found["ort:O3"].reason
    assert found["litert:ref"].reason.startswith("killed")
    assert all("\n" not in row.reason for row in report.paths)
    died = found["litert:builtin"].time  # it answered, and died when it was timed
    assert died is not None
    assert "SIGABRT" in died.reason
    assert found["ort:all"].time is not None
    assert found["ort:all"].time.latency is not None


def test_a_worker_is_held_to_its_processors_when_it_is_timed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.syspath_prepend(str(Path(__file__).parent))
    allowed = len(os.sched_getaffinity(0))
    with Worker() as worker:
        assert worker.call("misbehaving_session:processors") == allowed
        worker.call("misbehaving_session:hold_to", 1)
        assert worker.call("misbehaving_session:processors") == 1


@pytest.mark.slow
def test_what_a_path_does_otherwise_than_asked_is_told() -> None:
    report = dlas.compare(
        "digits-cnn", "digits-cnn", data="digits", split="test", rows=4, paths=["tvm:O0/2,ort:all/2"]
    )
    tvm, ort = report.paths
    if tvm.word == "unsupported":
        pytest.skip(tvm.reason)
    assert any("one thread" in note for note in tvm.notes)
    assert "one thread" in tvm.why
    assert ort.notes == ()


@pytest.mark.slow
def test_two_runs_say_the_same(hurt: Path) -> None:
    def run() -> str:
        found = dlas.compare(
            "digits-cnn", hurt, data="digits", split="test", rows=40, paths=["ort:O0..O1"], timing=FAST
        ).to_dict()
        assert all(row["time"] for row in found["paths"][1:])
        for row in found["paths"]:
            row["time"] = None
        return json.dumps(found)

    assert run() == run()


def test_an_unknown_path_is_told_before_any_work(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(UnknownNameError, match="did you mean"):
        dlas.compare("digits-cnn", paths=["onnxruntme"])
    assert run_command(["compare", "no-such-file.onnx", "--paths", "ort:O9"]) == 2
    assert "did you mean 'ort:O3'" in capsys.readouterr().err


@pytest.mark.slow
def test_a_build_gets_its_files_and_a_baseline_holds_it_to_what_is_worse(
    hurt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    files = {name: tmp_path / f"found.{name}" for name in ("html", "xml", "csv")}
    common = ["--data", "digits", "--split", "test", "--rows", "40", "--no-time", "--paths", "ort:O0"]
    command = ["compare", "digits-cnn", str(hurt), *common]
    outputs = ["--report", str(files["html"]), "--junit", str(files["xml"]), "--csv", str(files["csv"])]
    assert run_command([*command, *outputs, "--json"]) == 1
    told = capsys.readouterr()
    stored = json.loads(told.out)
    assert 2 <= told.err.count("fails: hurt.onnx on ") <= 10
    (tmp_path / "before.json").write_text(told.out)
    assert run_command([*command, "--baseline", str(tmp_path / "before.json")]) == 0
    printed = capsys.readouterr()
    assert "rounding does not explain" in printed.out
    (tmp_path / "good.json").write_text(
        told.out.replace('"label-diff"', '"equal"').replace('"degenerate"', '"equal"')
    )
    assert run_command([*command, "--baseline", str(tmp_path / "good.json")]) == 1
    assert "was equal" in capsys.readouterr().err

    cases = ET.parse(files["xml"]).getroot().findall("testsuite/testcase")
    assert [case.get("name") for case in cases] == ["native (onnxruntime)", "ort:O0"]
    assert all(len((case[0].text or "").splitlines()) <= 10 for case in cases)
    rows = list(csv.DictReader(files["csv"].open()))
    assert len(rows) == 80
    flipped = [int(r["row"]) for r in rows if r["flipped"] == "1" and r["path"] == "ort:O0"]
    assert sorted(stored["paths"][1]["comparison"]["flips"]) == flipped
    page = files["html"].read_text()
    assert "<script" not in page
    assert "data:image/png;base64," in page


def test_a_target_that_cannot_be_read_is_a_row_and_the_others_are_compared(
    hurt: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    cut, text, other = (tmp_path / name for name in ("cut.onnx", "text.onnx", "notes.txt"))
    cut.write_bytes(hurt.read_bytes()[:3000])
    text.write_text("no network")
    other.write_text("no network")
    rows = ["--data", "digits", "--split", "test", "--rows", "20", "--no-time"]
    good = tmp_path / "good.onnx"
    dlas.save(dlas.load("digits-cnn"), good)
    assert run_command(["compare", "digits-cnn", str(cut), str(good), str(other), *rows, "--json"]) == 1
    told = capsys.readouterr()
    found = json.loads(told.out)["paths"]
    assert [(row["target"], row["verdict"]) for row in found] == [
        ("cut.onnx", "crash"),
        ("good.onnx", "equal"),
        ("notes.txt", "unsupported"),
    ]
    assert "cut.onnx" in found[0]["reason"]
    assert ".txt" in found[2]["reason"]
    assert "fails: cut.onnx" in told.err
    assert run_command(["compare", "digits-cnn", str(other), str(good), *rows]) == 0
    assert run_command(["compare", "digits-cnn", str(good), str(cut), *rows, "--fail-on", "none"]) == 0
    capsys.readouterr()
    assert run_command(["compare", "digits-cnn", str(cut), str(text), *rows]) == 2
    assert "cut.onnx" in capsys.readouterr().err.splitlines()[-1]
    assert run_command(["compare", "digits-cnn", str(good), str(tmp_path / "no-such.onnx"), *rows]) == 2


def test_files_that_cannot_be_written_are_told_before_any_work(
    tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    for option in ("--report", "--junit", "--csv"):
        assert run_command(["compare", "no-such-file.onnx", option, str(tmp_path / "no" / "x")]) == 2
        assert "is not a folder" in capsys.readouterr().err
        assert run_command(["compare", "no-such-file.onnx", option, str(tmp_path)]) == 2
        assert "it is a folder" in capsys.readouterr().err


def test_passes_are_asked_about_the_source_alone(capsys: pytest.CaptureFixture[str]) -> None:
    assert run_command(["compare", "a.onnx", "--passes", "onnxslim", "--paths", "ort"]) == 2
    assert "--passes" in capsys.readouterr().err


def row(
    word: str = "equal", *, path: str = "ort:O0", count: int = 0, unexplained: int = 0, rows: int = 100
) -> PathResult:
    from dlas.core.figure import Outcome
    from dlas.core.statistics import proportion

    if word in ("crash", "unsupported"):
        return PathResult("net.onnx", path, Outcome(word), "it died")
    compared = Comparison(
        Verdict(word),
        word,
        rows,
        proportion(count, rows),
        None,
        flips=tuple(range(count)),
        unexplained=unexplained,
    )
    outcome = Outcome.OK if compared.verdict.right else Outcome.WRONG
    return PathResult("net.onnx", path, outcome, word, compared)


def report_of(*rows: PathResult) -> CompareReport:
    return CompareReport("source.onnx", 100, NoiseFloor(), None, rows)


@pytest.mark.parametrize(
    ("found", "fail_on", "fails"),
    [
        (row("equal"), "score-only", False),
        (row("score-only"), "label-diff", False),
        (row("score-only"), "score-only", True),
        (row("score-only", count=2, unexplained=1), "unexplained-flip", True),
        (row("score-only", count=2), "unexplained-flip", False),
        (row("label-diff", count=20), "label-diff", True),
        (row("label-diff", count=20), "none", False),
        (row("nan"), "label-diff", True),
        (row("crash"), "label-diff", True),
        (row("crash"), "none", False),
        (row("unsupported"), "score-only", False),
    ],
)
def test_what_fails(found: PathResult, fail_on: str, fails: bool) -> None:
    assert bool(failures(report_of(found), fail_on)) is fails


@pytest.mark.parametrize(
    ("before", "now", "fails"),
    [
        (row("label-diff", count=20), row("label-diff", count=20), False),
        (row("label-diff", count=20), row("label-diff", count=21), True),
        (row("label-diff", count=20, rows=100), row("label-diff", count=42, rows=200), False),
        (row("label-diff", count=20, rows=100), row("label-diff", count=90, rows=200), True),
        (row("label-diff", count=20), row("degenerate", count=20), True),
        (row("degenerate", count=80), row("label-diff", count=20), False),
        (row("unsupported"), row("crash"), True),
        (row("crash"), row("crash"), False),
        (row("crash"), row("nan"), False),
        (row("equal", path="ort:O1"), row("nan"), True),
    ],
)
def test_a_baseline_forgives_what_it_has(
    tmp_path: Path, before: PathResult, now: PathResult, fails: bool
) -> None:
    path = tmp_path / "before.json"
    path.write_text(json.dumps(report_of(before).to_dict()))
    assert bool(failures(report_of(now), "label-diff", read_baseline(path))) is fails


@pytest.mark.parametrize(
    "text", ["", "[]", "{}", '{"paths": [{}]}', '{"paths": [{"target": 1}]}', "[" * 100_000, None]
)
def test_a_baseline_that_is_none_is_one_line(tmp_path: Path, text: str | None) -> None:
    path = tmp_path / "before.json"
    if text is not None:
        path.write_text(text)
    with pytest.raises(DataError) as caught:
        read_baseline(path)
    assert "\n" not in str(caught.value)


def test_hostile_names_stay_data(tmp_path: Path) -> None:
    name = "=cmd()<script>&\x1b]\x00\ufffe"
    labels = np.array([0, 1])
    one = PathResult(
        name,
        "ort",
        row("label-diff").outcome,
        name,
        Comparison(Verdict.LABEL_DIFF, name, 2, flips=(1,), unexplained=1),
        labels=labels,
        distances=np.zeros(2),
    )
    answers = Answers(np.array([0, 0]), np.array([1.0, 2.0]))
    report = CompareReport(name, 2, NoiseFloor(), None, (one, row("unsupported")), answers=answers)
    write_junit(report, failures(report, "label-diff"), tmp_path / "a.xml")
    suite = ET.parse(tmp_path / "a.xml").getroot()[0]
    assert (suite.get("failures"), suite.get("skipped"), suite.get("errors")) == ("1", "1", "0")
    write_csv(report, tmp_path / "a.csv")
    cells = [r["target"] for r in csv.DictReader((tmp_path / "a.csv").open(newline=""))]
    assert cells[0].startswith("'=")

    from dlas.report.compare import render_comparison

    page = render_comparison(report)
    assert "<script" not in page
    assert "&lt;script&gt;" in page
    assert "default-src 'none'" in page


def test_only_a_clearly_slower_higher_level_is_time_only() -> None:
    low, high, other = parse_paths("ort:O0,ort:all,litert")
    rng = np.random.default_rng(0)

    def timing(milliseconds: float) -> Timing:
        return Timing(tuple(milliseconds + 0.01 * rng.random(10) for _ in range(5)))

    taken = {"low": timing(1.0), "high": timing(2.0), "other": timing(9.0)}
    paths = {"low": (0, low), "high": (0, high), "other": (0, other)}
    found = path_times(taken, dict.fromkeys(taken, timing(1.0)), {}, paths)
    assert found["high"].degradation is not None
    assert found["high"].lowest == "ort:O0"
    assert found["low"].degradation is None
    assert found["other"].degradation is None
    slower = PathResult("a", "ort:all", row().outcome, "", row().comparison, time=found["high"])
    assert (slower.shown, slower.word) == ("time-only", "equal")
    assert not failures(report_of(slower), "score-only")
    assert isinstance(found["high"].ratio, Figure)
    assert found["high"].ratio.source is Source.MEASURED
    same = path_times({"low": timing(1.0), "high": timing(1.0)}, {}, {}, paths)
    assert same["high"].degradation is None
    assert same["other"].reason == "it did not run"
