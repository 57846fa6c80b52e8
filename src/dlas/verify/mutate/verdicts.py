"""What became of a mutant on a path: did the rows at hand notice it?"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from dlas.core.figure import Figure, Outcome
from dlas.core.worker import WorkerFailure
from dlas.verify.differential import Comparison, NoiseFloor, Verdict, compare_outputs

NEAR_ULPS = 4  # as far as the rounding of one or two operations goes


class Fate(StrEnum):
    """What became of a mutant on a path, the most telling first."""

    CRASH = "crash"
    DEGENERATE = "degenerate"
    KILLED = "killed"
    SCORE_KILLED = "score-killed"
    NEAR_EQUIVALENT = "near-equivalent"
    EQUIVALENT = "equivalent"
    COMPILED_AWAY = "compiled-away"
    OUT_OF_BOUNDS = "out-of-bounds"
    UNSUPPORTED = "unsupported"

    @property
    def noticed(self) -> bool:
        """Whether labels, or a crash, gave it away."""
        return self in (Fate.CRASH, Fate.DEGENERATE, Fate.KILLED)

    @property
    def counts(self) -> bool:
        """Whether it belongs to the mutants that could have been noticed."""
        return self not in (Fate.EQUIVALENT, Fate.COMPILED_AWAY, Fate.OUT_OF_BOUNDS, Fate.UNSUPPORTED)


@dataclass(frozen=True)
class PathFate:
    """How one mutant fared on one path.

    Attributes:
        fate: What became of it.
        reason: Why, in one line.
        label_diff: Fraction of rows with another label than the original's on the same path; None where the outputs
            are no class scores, or it did not run.
        max_abs: Largest difference of any score; None where it is no number.
    """

    fate: Fate
    reason: str = ""
    label_diff: Figure | None = None
    max_abs: float | None = None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "fate": str(self.fate),
            "reason": self.reason,
            "label_diff": self.label_diff.to_dict() if self.label_diff else None,
            "max_abs": self.max_abs,
        }

    @classmethod
    def from_dict(cls, fields: dict[str, Any]) -> PathFate:
        """Inverse of :meth:`to_dict`."""
        figure = fields["label_diff"]
        return cls(
            Fate(fields["fate"]),
            fields["reason"],
            Figure.from_dict(figure) if figure else None,
            fields["max_abs"],
        )


def failed(failure: WorkerFailure) -> PathFate:
    """The fate of a mutant that did not run: its own limit, or a crash (a hang is one)."""
    unsupported = failure.outcome is Outcome.UNSUPPORTED
    return PathFate(Fate.UNSUPPORTED if unsupported else Fate.CRASH, failure.reason)


def judge(
    original: Sequence[np.ndarray], mutant: Sequence[np.ndarray], floors: Sequence[NoiseFloor]
) -> PathFate:
    """The fate of a mutant that ran; the most telling of its outputs decides.

    Args:
        original: All outputs of the unchanged network on the same path, ``(N, ...)`` each.
        mutant: Those of the mutant.
        floors: Noise floor of each output.
    """
    fates = list(Fate)
    found = [_judge(a, b, floor) for a, b, floor in zip(original, mutant, floors, strict=True)]
    return min(found, key=lambda fate: fates.index(fate.fate))


def _judge(original: np.ndarray, mutant: np.ndarray, floor: NoiseFloor) -> PathFate:
    if original.shape == mutant.shape and np.array_equal(original, mutant, equal_nan=True):
        return PathFate(Fate.EQUIVALENT, label_diff=compare_outputs(original, mutant).label_diff, max_abs=0.0)
    found = compare_outputs(original, mutant, floor=floor)
    if found.verdict in (Verdict.SHAPE, Verdict.NAN):
        return PathFate(Fate.KILLED, found.reason)
    fate = _fate(found, floor)
    if fate is Fate.SCORE_KILLED and found.max_abs <= _ulps(original):
        fate = Fate.NEAR_EQUIVALENT
    return PathFate(fate, found.reason, found.label_diff, found.max_abs)


def _fate(found: Comparison, floor: NoiseFloor) -> Fate:
    if found.verdict is Verdict.DEGENERATE:
        return Fate.DEGENERATE
    if found.label_diff is None:
        return Fate.KILLED if found.verdict is Verdict.SCORE_DIFF else Fate.SCORE_KILLED
    if found.unexplained:
        # On one path nothing but the mutant changes, so one flip that rounding cannot explain is enough.
        above = found.label_diff.value > (floor.flips / floor.rows if floor.rows else 0.0)
        return Fate.KILLED if above else Fate.SCORE_KILLED
    return Fate.SCORE_KILLED


def _ulps(scores: np.ndarray) -> float:
    """A few units in the last place of the largest score; 0 for integers."""
    if not np.issubdtype(scores.dtype, np.floating):
        return 0.0
    return NEAR_ULPS * float(np.spacing(np.abs(scores).max(initial=0)))
