"""Points with less work and more time: found with their interval, and only against a fair reference."""

from __future__ import annotations

from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.result import Objective, Point, StudyResult
from dlas.explore.setbacks import setbacks


def point(compress: str, backend: str = "a", threads: str = "1", *, speedup: float = 1.0, work: float = 1e6,
          spread: float = 0.01, outcome: Outcome = Outcome.OK, target: str = "host") -> Point:  # fmt: skip
    figures = {
        "speedup": Figure(speedup, "ratio", Source.MEASURED, speedup - spread, speedup + spread),
        "macs": Figure(1e6, "count", Source.ESTIMATED),
        "nonzero_macs": Figure(work, "count", Source.ESTIMATED),
    }
    choices = {"compress": compress, "backend": backend, "threads": threads, "target": target}
    baseline = (compress, backend, threads, target) == ("none", "a", "1", "host")
    return Point(
        repr(choices), choices, Record(outcome, "" if outcome is Outcome.OK else "why", figures), baseline
    )


def found(*points: Point) -> list[str]:
    return [s.label for s in setbacks(StudyResult("s", points, (Objective("latency_ms"),)))]


def test_less_work_and_more_time_is_found_worst_first() -> None:
    points = (
        point("none"),
        point("magnitude:sparsity=0.5", "csr", speedup=0.5, work=5e5),
        point("magnitude:sparsity=0.9", "csr", speedup=2.0, work=1e5),
        point("channel", speedup=0.4, work=4e5),
        point("none", "csr", speedup=0.3),  # slower, but the work is the same
        point("int8", speedup=0.5, work=0.98e6),  # a few zeros of its own
    )
    first, second = setbacks(StudyResult("s", points, (Objective("latency_ms"),)))
    assert (first.index, second.index) == (3, 1)
    assert first.label == "channel · a · 1 thread"
    assert second.sentence == "50% of the multiply-accumulates, 2.00 times the time"


def test_what_intervals_do_not_tell_apart_is_not_called_slower() -> None:
    assert found(point("none"), point("m", speedup=0.97, spread=0.04, work=1e5)) == []
    assert found(point("none"), point("m", speedup=0.97, spread=0.02, work=1e5)) == ["m · a · 1 thread"]
    assert (
        found(point("none", speedup=1.1), point("m", speedup=1.05, work=1e5)) == []
    )  # the baseline is 1 by definition


def test_the_reference_has_as_many_threads_and_the_same_device() -> None:
    two = point("none", threads="2", speedup=1.8)
    slow = point("m", threads="2", speedup=1.5, work=1e5)
    assert found(point("none"), two, slow) == ["m · a · 2 threads"]
    assert found(point("none"), slow) == []
    assert found(point("none"), point("m", speedup=0.5, work=1e5, target="board")) == []


def test_failed_points_and_studies_without_a_baseline_say_nothing() -> None:
    slow = point("m", speedup=0.5, work=1e5)
    assert found() == []
    assert found(slow) == []
    assert found(point("none", outcome=Outcome.CRASH), slow) == []
    assert found(point("none"), point("m", speedup=0.5, work=1e5, outcome=Outcome.WRONG)) == []
    bare = Point("k", slow.choices, Record(Outcome.OK))
    assert found(point("none"), bare) == []
