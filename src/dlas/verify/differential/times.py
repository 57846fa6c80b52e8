"""What a path costs in time, against the source's base path and against its own lower levels."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import Any

from dlas.core.figure import Figure
from dlas.core.timing import Protocol, Timing, is_clear, ratio
from dlas.verify.paths import RunPath

# DeltaNN warms up for 10 runs and repeats 30 times at least; slow code ends after 20 s.
PROTOCOL = Protocol(warmup_runs=10, warmup_s=0.05, min_samples=30, min_s=0.3, max_s=20.0, rounds=5)
BASE = "ort:all"
"""The path of the source that every time is set against."""


@dataclass(frozen=True)
class PathTime:
    """Time of one inference on a path.

    Attributes:
        latency: Median with its interval, in ms.
        ratio: Against the source's base path, timed in turn; above 1 is slower.
        degradation: Against the lowest level of the same back end, where a higher one is clearly slower.
        lowest: That level.
        reason: Why there are no times.
    """

    latency: Figure | None = None
    ratio: Figure | None = None
    degradation: Figure | None = None
    lowest: str = ""
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        figures = {"latency_ms": self.latency, "ratio": self.ratio, "degradation": self.degradation}
        found: dict[str, Any] = {name: f.to_dict() if f else None for name, f in figures.items()}
        verdict = "time-only" if self.degradation else ""
        return {**found, "lowest": self.lowest, "verdict": verdict, "reason": self.reason}


def path_times(
    taken: Mapping[str, Timing],
    bases: Mapping[str, Timing],
    why: Mapping[str, str],
    paths: Mapping[str, tuple[int, RunPath | None]],
) -> dict[str, PathTime]:
    """Times by name of path.

    Args:
        taken: Timings.
        bases: Timing of the source's base path in the same rounds.
        why: Why others have none.
        paths: Number of the target and the path of every name; None is the runtime that owns the file.
    """
    found = {}
    for name, (target, path) in paths.items():
        if name not in taken:
            found[name] = PathTime(reason=why.get(name, "it did not run"))
            continue
        against = ratio(taken[name], bases[name]) if name in bases else None
        lower = [
            (other.level, key, other)
            for key, (at, other) in paths.items()
            if path is not None and other is not None and key in taken and at == target
            if path.ladder is not None and other.ladder == path.ladder
        ]
        slower, lowest = None, ""
        if path is not None and lower and (first := min(lower, key=lambda o: o[0]))[0] < path.level:
            change = ratio(taken[name], taken[first[1]])
            if is_clear(change) and change.value > 1:
                slower, lowest = change, first[2].label
        found[name] = PathTime(taken[name].figure(), against, slower, lowest)
    return found
