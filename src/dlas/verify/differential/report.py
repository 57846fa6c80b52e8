"""What a comparison found: a row for every target and path, whatever became of it."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.core.figure import Figure, Outcome
from dlas.verify.differential.flips import LISTED, FlippedRow, flipped_rows
from dlas.verify.differential.matrix import LabelMatrix
from dlas.verify.differential.outputs import Comparison, NoiseFloor, Verdict, measured
from dlas.verify.differential.times import PathTime


@dataclass(frozen=True, eq=False)
class Answers:
    """Labels the source gives.

    Attributes:
        labels: ``(N,)`` class with the best score.
        margins: ``(N,)`` distance to the second best.
        truth: ``(N,)`` labels of the rows, where they have some.
    """

    labels: np.ndarray
    margins: np.ndarray
    truth: np.ndarray | None = None


@dataclass(frozen=True)
class PathResult:
    """How one target fared on one path.

    Attributes:
        target: File name of the target.
        path: Path as written, or ``native`` with the runtime that owns the file.
        outcome: What became of it.
        reason: Why, if it is not ok.
        comparison: The differences of the first output, where it ran.
        top1: Accuracy on the rows, where they have labels.
        others: The differences of the other outputs, by the source's name.
        kendall_tau: Mean tau-b of the top labels against the source's.
        rank_biased_overlap: Mean overlap of the rankings, p = 0.9.
        mcnemar_p: Chance that source and path are right equally often, where rows have labels.
        clipped: Share of the input values that an integer input cannot hold; None where it is no integer.
        notes: What differs from what was asked, such as another precision.
        time: What it costs, where it was timed.
        labels: ``(N,)`` label of every row, where the outputs are class scores.
        distances: ``(N,)`` largest difference of any score of the row.
    """

    target: str
    path: str
    outcome: Outcome
    reason: str = ""
    comparison: Comparison | None = None
    top1: Figure | None = None
    others: Mapping[str, Comparison] = field(default_factory=dict)
    kendall_tau: float | None = None
    rank_biased_overlap: float | None = None
    mcnemar_p: float | None = None
    clipped: float | None = None
    notes: tuple[str, ...] = ()
    time: PathTime | None = None
    labels: np.ndarray | None = field(default=None, compare=False, repr=False)
    distances: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all outputs; a path that did not run is ``crash``."""
        if self.comparison is None:
            return Verdict.CRASH
        return worst(self.comparison, *self.others.values()).verdict

    @property
    def word(self) -> str:
        """The verdict, or ``unsupported`` for a path that cannot run such a network."""
        return "unsupported" if self.outcome is Outcome.UNSUPPORTED else str(self.verdict)

    @property
    def shown(self) -> str:
        """The word for readers: equal answers that a higher level gives more slowly are ``time-only``."""
        return "time-only" if self.word == "equal" and self.time and self.time.degradation else self.word

    @property
    def why(self) -> str:
        """All there is to say besides figures: the reason, what was slower, what differs from what was asked."""
        slower = missing = ""
        if self.time is not None and self.time.degradation is not None:
            slower = f"{self.time.degradation.value:.3g} times the time of {self.time.lowest}"
        if self.time is not None and self.time.latency is None:
            missing = f"no time: {self.time.reason}"
        return "; ".join(filter(None, (self.reason, slower, missing, *self.notes)))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "target": self.target,
            "path": self.path,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "verdict": self.word,
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "top1": self.top1.to_dict() if self.top1 else None,
            "kendall_tau": self.kendall_tau,
            "rank_biased_overlap": self.rank_biased_overlap,
            "mcnemar_p": self.mcnemar_p,
            "clipped": self.clipped,
            "notes": list(self.notes),
            "others": {name: c.to_dict() for name, c in self.others.items()},
            "time": self.time.to_dict() if self.time else None,
        }


@dataclass(frozen=True)
class CompareReport:
    """Source, noise floor of its first output, and one row per target and path; ``random`` without data."""

    source: str
    rows: int
    floor: NoiseFloor
    source_top1: Figure | None
    paths: tuple[PathResult, ...]
    layers: tuple[dict[str, Any], ...] = ()
    random: bool = False
    matrix: LabelMatrix | None = None
    base: str = ""
    versions: Mapping[str, str] = field(default_factory=dict)
    answers: Answers | None = field(default=None, compare=False, repr=False)

    @property
    def right(self) -> bool:
        """Whether every path may be relied on."""
        return all(p.comparison is not None and p.verdict.right for p in self.paths)

    @property
    def flips(self) -> list[FlippedRow]:
        """Rows with another label somewhere, the unexplained ones first."""
        return flipped_rows(self)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; two runs differ in ``time`` alone."""
        flips = self.flips
        return {
            "source": self.source,
            "rows": self.rows,
            "random": self.random,
            "noise_floor": self.floor.to_dict(),
            "source_top1": self.source_top1.to_dict() if self.source_top1 else None,
            "paths": [p.to_dict() for p in self.paths],
            "matrix": self.matrix.to_dict() if self.matrix else None,
            "flips": [row.to_dict() for row in flips[:LISTED]],
            "flips_left_out": max(0, len(flips) - LISTED),
            "layers": [_with_figures(layer) for layer in self.layers],
            "base": self.base,
            "versions": dict(self.versions),
        }


_UNITS = {"sqnr_db": "dB", "max_abs": "value", "relative_l2": "fraction"}


def _with_figures(layer: Mapping[str, Any]) -> dict[str, Any]:
    return {**layer, **{name: measured(layer[name], unit) for name, unit in _UNITS.items() if name in layer}}


def worst(*found: Comparison) -> Comparison:
    """The comparison with the worst verdict, the earliest of equals."""
    order = list(Verdict)
    return min(found, key=lambda c: order.index(c.verdict))
