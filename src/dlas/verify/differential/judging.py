"""The answers of one path against the source's: from scores to a row of the report."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path

import numpy as np

from dlas.core.errors import (
    DataError,
    DlasError,
    ModelError,
    ShapeError,
    StorageError,
    UnsupportedError,
)
from dlas.core.figure import Figure, Outcome
from dlas.core.statistics import mcnemar
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.metrics import top1
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.signature import clipped_share
from dlas.runtime.native import owner
from dlas.verify.differential.outputs import Comparison, NoiseFloor, Verdict, compare_outputs, is_classifier
from dlas.verify.differential.ranking import kendall_tau_b, rank_biased_overlap
from dlas.verify.differential.report import PathResult, worst
from dlas.verify.running import fed_rows, turned

_CLIPPED = 0.05  # calibration with percentiles leaves out less than this


@dataclass(frozen=True, eq=False)
class Known:
    """What is known of the source: its rows, its answers and how much these move by themselves."""

    path: Path
    model: Model
    x: Mapping[str, np.ndarray]
    data: Dataset | None
    labels: np.ndarray | None
    answers: list[np.ndarray]
    floors: list[NoiseFloor]

    @property
    def count(self) -> int:
        """Rows compared."""
        return len(next(iter(self.x.values())))


def native_runtime(path: Path) -> str:
    """What the row of a file on its own runtime is called."""
    return f"native ({owner(path)})"


def named_rows(
    model: Model,
    known: Known,
    count: int | None = None,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> dict[str, np.ndarray]:
    """The source's rows as a target takes them, by input; the first ``count`` of them.

    ``axes`` is how an input's axes are known to be turned, as for :func:`dlas.verify.running.fed_rows`.

    Raises:
        ShapeError: They do not fit.
    """
    if count is not None:
        data = known.data and known.data.head(count)
        known = replace(known, x={name: rows[:count] for name, rows in known.x.items()}, data=data)
    return dict(zip((s.name for s in model.inputs), fed_rows(model, known.x, known.data, axes), strict=True))


def judged(
    known: Known,
    model: Model,
    target: str,
    path: str,
    answers: list[np.ndarray],
    orders: Mapping[str, tuple[int, ...]],
) -> PathResult:
    """A row of the report for answers.

    Args:
        known: The source.
        model: The target.
        target: What the target is called.
        path: What the path is called.
        answers: Outputs in the order of the source's.
        orders: How an output's axes are known to be turned, by the target's name for it.
    """
    compared: dict[str, Comparison] = {}
    got = answers
    for i, (spec, wanted) in enumerate(zip(known.model.outputs, known.answers, strict=True)):
        if i >= len(answers):
            compared[spec.name] = Comparison(Verdict.SHAPE, "it is missing", len(wanted))
            continue
        order = orders.get(model.outputs[i].name)
        back = tuple(int(a) for a in np.argsort(order)) if order else None
        got[i] = turned(answers[i], back, wanted.shape)
        compared[spec.name] = compare_outputs(wanted, got[i], floor=known.floors[i])
    first, *others = compared.values()
    decisive = worst(first, *others)
    outcome = Outcome.OK if decisive.verdict.right else Outcome.WRONG
    reason = decisive.reason
    if decisive is not first:
        reason = f"output {next(n for n, c in compared.items() if c is decisive)!r}: {reason}"
    clipped = _clipped(known, model)
    if outcome is Outcome.WRONG:
        reason += _clipping(clipped, model)
    row = PathResult(
        target=target,
        path=path,
        outcome=outcome,
        reason=reason,
        comparison=first,
        top1=top1_of(got[0], known.labels) if np.isfinite(got[0]).all() else None,
        others={name: c for name, c in compared.items() if c is not first},
        clipped=None if clipped is None else clipped[0],
    )
    return _with_rankings(row, known, got[0]) if first.label_diff is not None else row


def failed(known: Known, target: str, path: str, error: DlasError) -> PathResult:
    """A row of the report for a path that gave no answers."""
    if isinstance(error, WorkerFailure):
        timeout = "timeout: " if error.outcome is Outcome.TIMEOUT else ""
        return PathResult(target, path, error.outcome, timeout + error.reason)
    if isinstance(error, StorageError):
        return PathResult(target, path, Outcome.CRASH, error.message)
    if isinstance(error, ShapeError | DataError):
        reason = str(error)
        return PathResult(target, path, Outcome.WRONG, reason, Comparison(Verdict.SHAPE, reason, known.count))
    return PathResult(target, path, Outcome.UNSUPPORTED, str(error))


def unread(target: str, path: Path, error: DlasError) -> PathResult:
    """A row of the report for a file that cannot be read: damaged, or of no format or operator that is known."""
    try:
        runtime = native_runtime(path)
    except ModelError:
        runtime = "native"
        error = UnsupportedError(error.message, error.hint)
    able = not isinstance(error, UnsupportedError)
    return PathResult(target, runtime, Outcome.CRASH if able else Outcome.UNSUPPORTED, str(error))


def top1_of(scores: np.ndarray, labels: np.ndarray | None) -> Figure | None:
    """Accuracy of class scores, where rows have labels."""
    if labels is None or not is_classifier(scores) or len(scores) != len(labels):
        return None
    return top1(scores, labels)


def _with_rankings(row: PathResult, known: Known, scores: np.ndarray) -> PathResult:
    """The row with its labels, rankings and, where rows have labels, the test of its accuracy."""
    wanted = known.answers[0]
    labels, first = scores.argmax(axis=1), wanted.argmax(axis=1)
    p = None
    if known.labels is not None and len(known.labels) == len(labels):
        right, before = labels == known.labels, first == known.labels
        p = mcnemar(int((before & ~right).sum()), int((right & ~before).sum()))
    return replace(
        row,
        kendall_tau=float(kendall_tau_b(wanted, scores).mean()),
        rank_biased_overlap=float(rank_biased_overlap(wanted, scores).mean()),
        mcnemar_p=p,
        labels=labels,
        distances=np.abs(wanted.astype(np.float64) - scores).max(axis=1),
    )


def _clipped(known: Known, model: Model) -> tuple[float, float, float] | None:
    """Share of the real values an integer input cannot hold, and the range it holds; None where it is no integer."""
    from dlas.data.preprocess import prepare

    if model.inputs[0].dtype not in ("int8", "uint8"):
        return None
    own = model.preprocessing
    if known.data is None or own is None:
        return clipped_share(next(iter(known.x.values())), model)
    real = prepare(known.data.head(known.count), _unquantised(own))
    info = np.iinfo(own.dtype)
    low, high = ((end - own.quant_zero_point) * own.quant_scale for end in (info.min, info.max))
    outside = (real < low - own.quant_scale / 2) | (real > high + own.quant_scale / 2)
    return float(outside.mean()), low, high


def _unquantised(own: Preprocessing) -> Preprocessing:
    return replace(own, dtype="float32", quant_scale=1.0, quant_zero_point=0)


def _clipping(clipped: tuple[float, float, float] | None, model: Model) -> str:
    """What to add to the reason of a wrong answer whose integer input could not hold the rows."""
    if clipped is None or clipped[0] < _CLIPPED:
        return ""
    share, low, high = clipped
    dtype = model.inputs[0].dtype
    return f"; its {dtype} input holds {low:.4g} to {high:.4g}, and {share:.0%} of the values lie outside"
