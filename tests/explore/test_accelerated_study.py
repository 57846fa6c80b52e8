"""Accelerators as targets: they come with their back end, and a model of them, not a clock, says how long they take."""

from __future__ import annotations

from pathlib import Path

import pytest

from dlas.cli.run import show_table
from dlas.core.figure import Source
from dlas.core.options import Choice
from dlas.explore.result import Point, StudyResult
from dlas.explore.space import Pipeline, Space
from dlas.explore.spec import spec_of
from dlas.explore.study import Study
from dlas.kernels.extension import native
from dlas.report.data import page_data

HOST, VM, SA = (Choice.parse(text) for text in ("host", "vm:units=2", "sa"))


def _space(*targets: Choice) -> Space:
    int8 = Pipeline.parse("int8")
    backends = (Choice.of("onnxruntime"), Choice.of("tvm"))
    return Space((Pipeline(), int8), backends, (1, 2), targets)


def test_an_accelerator_is_driven_by_the_engine_and_by_nothing_else() -> None:
    pairs = {(str(s.target), str(s.backend)) for s in _space(HOST, VM).stacks("grid")}
    assert pairs == {("host", "onnxruntime"), ("host", "tvm"), ("vm:units=2", "engine")}
    assert str(_space(VM, HOST).baseline.backend) == "engine"


def test_one_at_a_time_reaches_an_accelerator_in_one_step() -> None:
    found = _space(HOST, VM, SA).stacks("one-at-a-time")
    moved = [s for s in found if s.target != HOST]
    assert [(str(s.target), str(s.backend), s.threads, str(s.compress)) for s in moved] == [
        ("vm:units=2", "engine", 1, "none"),
        ("sa", "engine", 1, "none"),
    ]
    assert len(found) == len(set(found)) == 1 + 1 + 1 + 1 + 2


@pytest.fixture(scope="module")
def result(tmp_path_factory: pytest.TempPathFactory) -> StudyResult:
    """The shipped network on this machine and on two accelerators."""
    if native() is None:
        pytest.skip("the native kernels were not built")
    folder = tmp_path_factory.mktemp("study")
    with pytest.MonkeyPatch.context() as patch:
        patch.setenv("DLAS_CACHE", str(folder / "cache"))
        spec = spec_of(
            {
                "model": {"path": "digits-cnn"},
                "data": {"path": "digits", "rows": 100, "check_rows": 20},
                "compress": {"pipeline": ["none", "int8"]},
                "hardware": {"target": ["vm:units=1", "host", "vm:units=4,mhz=150"]},
                "study": {"timing": "quick"},
            },
            "boards",
        )
        return Study(spec, folder / "out").run()


def _point(result: StudyResult, compress: str, target: str) -> Point:
    return next(
        p for p in result.points if (p.choices["compress"], p.choices["target"]) == (compress, target)
    )


def test_its_answers_are_checked_and_its_time_is_a_sum_that_says_so(result: StudyResult) -> None:
    point = _point(result, "int8", "vm:units=1")
    figures = point.record.figures
    assert str(point.record.outcome) == "ok"
    assert point.record.facts["comparison"]["rows"] == 20
    terms = [figures[f"{term}_ms"] for term in ("accelerator", "dma", "cpu")]
    assert [t.source for t in terms] == [Source.SIMULATED, Source.ESTIMATED, Source.MEASURED]
    assert figures["latency_ms"].source == Source.ESTIMATED
    assert figures["latency_ms"].value == pytest.approx(sum(t.value for t in terms))
    assert "peak_memory_bytes" not in figures  # of the simulation
    layers = point.record.facts["layers"]
    there = [row for row in layers if row["source"] == "simulated"]
    assert sum(row["milliseconds"] for row in there) == pytest.approx(figures["accelerator_ms"].value)
    assert {row["source"] for row in layers} == {"simulated", "measured"}
    assert any("100 MHz" in note for note in point.record.facts["notes"])


def test_points_that_differ_in_their_target_have_names_of_their_own(result: StudyResult) -> None:
    labels = [p.label for p in result.points]
    assert len(labels) == len(set(labels))
    assert _point(result, "int8", "vm:units=1").label == "int8 · engine · 1 thread · vm:units=1"


def test_a_faster_clock_and_more_units_take_less(result: StudyResult) -> None:
    slow, fast = (
        _point(result, "int8", target).record.figures for target in ("vm:units=1", "vm:mhz=150,units=4")
    )
    assert fast["accelerator_ms"].value < slow["accelerator_ms"].value / 3
    assert 0 < slow["bytes_in"].value < 1e6


def test_there_is_no_speed_up_over_a_time_of_another_kind(result: StudyResult) -> None:
    """The baseline, a float network on an accelerator, cannot run: nothing has a speed-up."""
    assert not any("speedup" in p.record.figures for p in result.points if p.choices["target"] != "host")


def test_a_float_network_is_unsupported_and_says_what_to_do(result: StudyResult) -> None:
    record = _point(result, "none", "vm:units=1").record
    assert str(record.outcome) == "unsupported"
    assert "dlas compress MODEL int8" in record.reason


def test_table_and_page_name_the_source(result: StudyResult, capsys: pytest.CaptureFixture[str]) -> None:
    show_table(result)
    shown = capsys.readouterr().out
    assert shown.count(" estimated") >= 2
    letters = {letter for s in page_data(result)["layers"]["sets"] for _, _, letter in s}
    assert letters == {"m", "s"}


def test_two_accelerators_are_compared(tmp_path: Path) -> None:
    """Where the baseline is simulated too, a ratio means something."""
    from dlas import api

    if native() is None:
        pytest.skip("the native kernels were not built")
    model = tmp_path / "digits.onnx"
    model.write_bytes(api.compress("digits-cnn", "int8", data="digits").to_bytes())
    spec = spec_of(
        {
            "model": {"path": str(model)},
            "data": {"path": "digits", "rows": 60, "check_rows": 20},
            "compress": {"pipeline": ["none"]},
            "hardware": {"target": ["vm:units=1", "vm:units=4"]},
            "study": {"timing": "quick"},
        },
        "boards",
    )
    points = Study(spec, tmp_path / "out").run().points
    ratios = {p.choices["target"]: p.record.figures["speedup"] for p in points}
    assert {f.source for f in ratios.values()} == {Source.ESTIMATED}
    assert ratios["vm:units=1"].value == pytest.approx(1, abs=0.2)
    assert 1 < ratios["vm:units=4"].value < 4
