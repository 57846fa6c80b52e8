"""Points that compute less than the uncompressed network and take longer all the same."""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.figure import Figure, Outcome
from dlas.explore.result import Point, StudyResult

LESS = 0.95
"""Share of the multiply-accumulates that counts as fewer: rounding to a grid makes a few zeros of its own."""


@dataclass(frozen=True)
class Setback:
    """One point.

    Attributes:
        index: Its position in the study.
        label: Its choices.
        work: Its multiply-accumulates by weights that are not 0, over those of the network it is compared with.
        time: Its time over that network's.
    """

    index: int
    label: str
    work: float
    time: float

    @property
    def sentence(self) -> str:
        """Both in words."""
        return f"{self.work:.0%} of the multiply-accumulates, {self.time:.2f} times the time"


def setbacks(result: StudyResult) -> list[Setback]:
    """Points with fewer multiply-accumulates and more time than the uncompressed network, the worst first.

    Each is compared with the network and back end of the baseline, on as many threads of the same device. Zeros count
    as work saved. Only where the intervals of the two speed-ups do not touch is one called slower.
    """
    references = {_place(p): p for p in result.points if _is_reference(p, result)}
    found = []
    for index, point in enumerate(result.points):
        reference = references.get(_place(point))
        if reference is None or point is reference or point.record.outcome is not Outcome.OK:
            continue
        work, before = _work(point), _work(reference)
        if work is None or before is None or work.value > LESS * before.value:
            continue
        time = _slower(point, reference)
        if time is not None:
            found.append(Setback(index, point.label, work.value / before.value, time))
    return sorted(found, key=lambda s: -s.time)


def _place(point: Point) -> tuple[str, str]:
    return point.choices.get("threads", "1"), point.choices.get("target", "host")


def _is_reference(point: Point, result: StudyResult) -> bool:
    base = next((p for p in result.points if p.baseline), None)
    if base is None or point.record.outcome is not Outcome.OK:
        return False
    return all(point.choices.get(axis) == base.choices.get(axis) for axis in ("compress", "backend"))


def _work(point: Point) -> Figure | None:
    return point.record.figures.get("nonzero_macs") or point.record.figures.get("macs")


def _slower(point: Point, reference: Point) -> float | None:
    """Time of the point over that of the reference where it is certainly longer, else None."""
    mine, other = (p.record.figures.get("speedup") for p in (point, reference))
    if mine is None or (other is None and not reference.baseline):
        return None
    # All speed-ups are ratios to the baseline, timed in turn: that of the baseline is 1 by definition.
    value, low = (
        (1.0, 1.0) if reference.baseline or other is None else (other.value, other.low or other.value)
    )
    if (mine.high or mine.value) >= low or mine.value <= 0:
        return None
    return value / mine.value
