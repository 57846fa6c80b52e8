"""Do two networks, or two ways to run one network, give the same answers?

Scores are compared row by row. Labels that differ are counted with a 95 % Wilson interval and set against the *noise
floor*: how much the answers of the reference itself move when only its kernels change. Only flips that are clearly
more than that floor are held against a path. Follows the DeltaNN line of work (differential testing over frameworks,
optimisation levels and devices), with the floor added.
"""

from __future__ import annotations

import math
from dataclasses import asdict, dataclass
from enum import StrEnum
from typing import Any

import numpy as np

from dlas.core.errors import ShapeError
from dlas.core.figure import Figure, Source
from dlas.core.statistics import proportion

EQUAL_RELATIVE_L2 = 1e-4  # float32 kernels that sum in another order stay below this on deep networks
WRONG_RELATIVE_L2 = (
    10**-0.5
)  # noise of a tenth of the signal's energy (10 dB): no longer the same map or boxes
SIGNIFICANT = 0.025  # one-sided: more flips than the noise floor
DEGENERATE_SHARE = 0.9  # one label for this share of the rows, where the reference gives several


class Verdict(StrEnum):
    """Whether a path is still right, worst first."""

    CRASH = "crash"
    SHAPE = "shape"
    NAN = "nan"
    DEGENERATE = "degenerate"
    LABEL_DIFF = "label-diff"
    SCORE_DIFF = "score-diff"
    SCORE_ONLY = "score-only"
    EQUAL = "equal"

    @property
    def right(self) -> bool:
        """Whether the answers may be relied on."""
        return self in (Verdict.EQUAL, Verdict.SCORE_ONLY)


@dataclass(frozen=True)
class NoiseFloor:
    """How much the reference's answers move when only its kernels change.

    Attributes:
        flips: Rows whose label moved.
        rows: Rows looked at.
        max_abs: Largest change of any score.
        relative_l2: ``||a - b|| / ||a||`` over all scores.
        paths: The two ways the reference was run.
    """

    flips: int = 0
    rows: int = 0
    max_abs: float = 0.0
    relative_l2: float = 0.0
    paths: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        figures = {
            "max_abs": measured(self.max_abs, "score", self.rows),
            "relative_l2": measured(self.relative_l2, "fraction", self.rows),
        }
        return {**asdict(self), **figures}


@dataclass(frozen=True)
class Comparison:
    """How the answers of one path differ from the reference's.

    Attributes:
        verdict: Whether the path is still right.
        reason: Why, in one line.
        rows: Rows compared.
        label_diff: Fraction of rows with another label; None when the outputs are no class scores.
        topk_agreement: Mean overlap of the top-k labels, with k; None likewise.
        max_abs: Largest difference of any score.
        relative_l2: ``||a - b|| / ||a||``.
        sqnr_db: Signal-to-noise ratio in dB; None where there is none: the answers are identical (``max_abs`` is 0),
            or the reference's are all zero.
        flips: Rows whose label differs, those that rounding cannot explain first.
        unexplained: How many of them rounding cannot explain.
    """

    verdict: Verdict
    reason: str
    rows: int
    label_diff: Figure | None = None
    topk_agreement: Figure | None = None
    max_abs: float = 0.0
    relative_l2: float = 0.0
    sqnr_db: float | None = None
    flips: tuple[int, ...] = ()
    unexplained: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "verdict": str(self.verdict),
            "reason": self.reason,
            "rows": self.rows,
            "label_diff": self.label_diff.to_dict() if self.label_diff else None,
            "topk_agreement": self.topk_agreement.to_dict() if self.topk_agreement else None,
            "max_abs": measured(self.max_abs, "score", self.rows),
            "relative_l2": measured(self.relative_l2, "fraction", self.rows),
            "sqnr_db": measured(self.sqnr_db, "dB", self.rows),
            "flips": list(self.flips[:50]),
            "unexplained": self.unexplained,
        }


def measured(value: float | None, unit: str, rows: int | None = None) -> dict[str, Any] | None:
    """A difference as a figure, fit for JSON; None where there is none or it is beyond any float."""
    if value is None or not math.isfinite(value):
        return None
    return Figure(value, unit, Source.MEASURED, n=rows).to_dict()


def sqnr_db(reference: np.ndarray, other: np.ndarray) -> float | None:
    """Signal-to-quantisation-noise ratio ``10 log10(sum a^2 / sum (a-b)^2)`` in dB.

    None where the ratio is no number: a equals b, or a is zero everywhere, which leaves no signal.
    """
    a, b = reference.astype(np.float64), other.astype(np.float64)
    peak = max(np.abs(a).max(initial=0.0), np.abs(b).max(initial=0.0)) or 1.0
    # Squares of very large or very small numbers are no float64; the ratio does not change with the unit.
    noise, signal = float(np.sum((a / peak - b / peak) ** 2)), float(np.sum((a / peak) ** 2))
    return 10.0 * float(np.log10(signal / noise)) if signal and noise else None


def is_classifier(scores: np.ndarray) -> bool:
    """Whether ``(N, ...)`` outputs can be read as class scores: one vector of at least two numbers per row."""
    return scores.ndim == 2 and scores.shape[1] >= 2


def excess_p(count: int, rows: int, floor_count: int, floor_rows: int) -> float:
    """Chance that a path with no more label flips than the floor shows at least this many.

    The exact conditional test of two rates (Przyborowski & Wilenski 1940): given all flips of both, those of the
    path are binomial with its share of the rows. It sees six flips of 80 rows against none, where two intervals
    still overlap.
    """
    total, share = count + floor_count, rows / (rows + floor_rows)
    # In logarithms: the binomials of thousands of flips overflow a float.
    logs = (
        math.lgamma(total + 1)
        - math.lgamma(k + 1)
        - math.lgamma(total - k + 1)
        + k * math.log(share)
        + (total - k) * math.log1p(-share)
        for k in range(count, total + 1)
    )
    return min(1.0, math.fsum(map(math.exp, logs)))


def floor_between(first: np.ndarray, second: np.ndarray, paths: str) -> NoiseFloor:
    """Noise floor from two runs of the reference under different kernels, ``(N, ...)`` each."""
    a, b = first.astype(np.float64), second.astype(np.float64)
    flips = int(np.sum(a.argmax(1) != b.argmax(1))) if is_classifier(a) else 0
    norm = float(np.linalg.norm(a))
    return NoiseFloor(
        flips=flips,
        rows=len(a),
        max_abs=float(np.max(np.abs(a - b), initial=0.0)),
        relative_l2=float(np.linalg.norm(a - b)) / norm if norm else 0.0,
        paths=paths,
    )


def compare_outputs(
    reference: np.ndarray,
    other: np.ndarray,
    *,
    floor: NoiseFloor | None = None,
    k: int = 5,
    classify: bool | None = None,
) -> Comparison:
    """Compare the answers of a path with the reference's.

    Args:
        reference: ``(N, ...)`` scores of the reference.
        other: Scores of the path, same shape.
        floor: Noise floor of the reference; None means none was measured, so any difference counts.
        k: Labels per row whose overlap is reported.
        classify: Whether the outputs are class scores; by default read off the shape.

    Raises:
        ShapeError: The reference itself holds no rows or no finite numbers.
    """
    floor = floor or NoiseFloor()
    if len(reference) == 0 or not np.isfinite(reference.astype(np.float64)).all():
        raise ShapeError(
            "the reference's own outputs are empty or not finite", "check the source model and its inputs"
        )
    rows = len(reference)
    if other.shape != reference.shape:
        reason = f"outputs are {list(other.shape)}, the reference's {list(reference.shape)}"
        return Comparison(Verdict.SHAPE, reason, rows)
    a, b = reference.astype(np.float64), other.astype(np.float64)
    if not np.isfinite(b).all():
        bad = int(np.sum(~np.isfinite(b.reshape(rows, -1)).all(axis=1)))
        return Comparison(Verdict.NAN, f"{bad} of {rows} rows hold NaN or infinity", rows)

    norm = float(np.linalg.norm(a))
    common = {
        "rows": rows,
        "max_abs": float(np.max(np.abs(a - b), initial=0.0)),
        "relative_l2": float(np.linalg.norm(a - b)) / norm if norm else float(np.linalg.norm(b)),
        "sqnr_db": sqnr_db(a, b),
    }
    same_scores = common["relative_l2"] <= max(EQUAL_RELATIVE_L2, 2 * floor.relative_l2)
    if not (is_classifier(a) if classify is None else classify):
        if same_scores:
            return Comparison(Verdict.EQUAL, "", **common)
        reason = f"scores differ by {common['relative_l2']:.2g} relative (L2)"
        wrong = common["relative_l2"] > max(WRONG_RELATIVE_L2, 2 * floor.relative_l2)
        return Comparison(Verdict.SCORE_DIFF if wrong else Verdict.SCORE_ONLY, reason, **common)
    return _compare_labels(a, b, floor, k, same_scores, common)


def _compare_labels(
    a: np.ndarray, b: np.ndarray, floor: NoiseFloor, k: int, same_scores: bool, common: dict[str, Any]
) -> Comparison:
    rows = len(a)
    flipped = np.flatnonzero(a.argmax(1) != b.argmax(1))
    count = len(flipped)
    common["label_diff"] = proportion(count, rows)
    common["topk_agreement"] = _topk_agreement(a, b, min(k, a.shape[1]))
    explained = _margins(a)[flipped] < 2 * max(floor.max_abs, 1e-12)
    common["flips"] = tuple(int(i) for i in [*flipped[~explained], *flipped[explained]])
    common["unexplained"] = int(np.sum(~explained))

    shares = np.bincount(b.argmax(1)).max() / rows
    if count and shares >= DEGENERATE_SHARE and np.bincount(a.argmax(1)).max() / rows < DEGENERATE_SHARE:
        reason = f"one label for {shares:.0%} of the rows, where the reference gives several"
        return Comparison(Verdict.DEGENERATE, reason, **common)
    alike = np.bincount(a.argmax(1)).max() / rows >= DEGENERATE_SHARE
    wrong = common["relative_l2"] > max(WRONG_RELATIVE_L2, 2 * floor.relative_l2)
    words = f"{count} of {rows} labels differ"
    known = f"the noise floor is {floor.flips} of {floor.rows}" if floor.rows else "no noise floor is known"
    if count and (not floor.rows or excess_p(count, rows, floor.flips, floor.rows) < SIGNIFICANT):
        return Comparison(Verdict.LABEL_DIFF, f"{words}; {known}", **common)
    if alike and wrong:  # labels that are all the same say nothing about the scores behind them
        reason = (
            f"the reference gives one label for {DEGENERATE_SHARE:.0%} of the rows or more, and scores differ by "
            f"{common['relative_l2']:.2g} relative (L2)"
        )
        return Comparison(Verdict.SCORE_DIFF, reason, **common)
    if count:
        return Comparison(Verdict.SCORE_ONLY, f"{words}, not clearly more than noise: {known}", **common)
    if same_scores:
        return Comparison(Verdict.EQUAL, "", **common)
    reason = f"all labels agree, scores differ by {common['relative_l2']:.2g} relative (L2)"
    return Comparison(Verdict.SCORE_ONLY, reason, **common)


def _topk_agreement(a: np.ndarray, b: np.ndarray, k: int) -> Figure:
    """Mean share of the reference's top-k labels that are in the path's top-k."""
    top_a = np.argpartition(-a, k - 1, axis=1)[:, :k]
    top_b = np.argpartition(-b, k - 1, axis=1)[:, :k]
    overlap = (top_a[:, :, None] == top_b[:, None, :]).any(axis=2).mean()
    return Figure(float(overlap), "fraction", Source.MEASURED, n=len(a), note=f"top {k}")


def _margins(scores: np.ndarray) -> np.ndarray:
    """Distance between the best and the second-best score of each row."""
    two = np.partition(scores, -2, axis=1)[:, -2:]
    return two[:, 1] - two[:, 0]
