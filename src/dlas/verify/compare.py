"""Compare a network with its conversions, each on the runtime that owns its file and on any back end asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.figure import Figure, Outcome
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.guess import background_class, with_guessed_preprocessing
from dlas.data.metrics import top1
from dlas.graph.model import Model
from dlas.graph.signature import clipped_share, encoding_of
from dlas.runtime.native import OURSELVES, owner
from dlas.verify.differential import Comparison, NoiseFloor, Verdict, compare_outputs, is_classifier
from dlas.verify.running import (
    Subject,
    axes_of,
    fed_rows,
    floors,
    in_order,
    native,
    on_backend,
    source_rows,
    turned,
)

__all__ = ["CompareReport", "PathResult", "Subject", "compare_files", "compare_layers"]

Report = Callable[[str], None]

_CLIPPED = 0.05  # calibration with percentiles leaves out less than this


class SourceError(DlasError):
    """The source itself cannot be run: there is nothing to compare with."""


@dataclass(frozen=True)
class PathResult:
    """How one target fared on one path.

    Attributes:
        target: File name of the target.
        path: Back end as written, or ``native`` with the runtime that owns the file.
        outcome: What became of it.
        reason: Why, if it is not ok.
        comparison: The differences of the first output, where it ran.
        top1: Accuracy on the rows, where they have labels.
        others: The differences of the other outputs, by the source's name.
    """

    target: str
    path: str
    outcome: Outcome
    reason: str = ""
    comparison: Comparison | None = None
    top1: Figure | None = None
    others: Mapping[str, Comparison] = field(default_factory=dict)

    @property
    def verdict(self) -> Verdict:
        """The worst verdict of all outputs; a path that did not run is ``crash``."""
        if self.comparison is None:
            return Verdict.CRASH
        return worst(self.comparison, *self.others.values()).verdict

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "target": self.target,
            "path": self.path,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "verdict": "unsupported" if self.outcome is Outcome.UNSUPPORTED else str(self.verdict),
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "top1": self.top1.to_dict() if self.top1 else None,
            "others": {name: c.to_dict() for name, c in self.others.items()},
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

    @property
    def right(self) -> bool:
        """Whether every path may be relied on."""
        return all(p.comparison is not None and p.verdict.right for p in self.paths)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "source": self.source,
            "rows": self.rows,
            "random": self.random,
            "noise_floor": self.floor.to_dict(),
            "source_top1": self.source_top1.to_dict() if self.source_top1 else None,
            "paths": [p.to_dict() for p in self.paths],
            "layers": list(self.layers),
        }


def compare_files(
    source: Subject,
    targets: Sequence[Subject],
    *,
    data: Dataset | None = None,
    paths: Sequence[str] = (),
    rows: int = 200,
    layers: bool = False,
    timeout_s: float = 300.0,
    tell: Report = lambda text: None,
) -> CompareReport:
    """Compare targets with a source on the same rows.

    Args:
        source: The network that is right by definition, run by the runtime that owns its file.
        targets: Its conversions.
        data: Rows; without them, 32 random inputs are used (they show differences, not accuracy).
        paths: Back ends to run each target on besides its own runtime; with none, only its own runtime.
        rows: Rows to use at most.
        layers: Also compare every intermediate tensor that has the same name and shape in both.
        timeout_s: Longest time for one run.
        tell: Receives one line per step.

    Raises:
        DataError: The rows do not fit the source.
        DlasError: The source itself cannot be run.
    """
    if data is not None and source.model.preprocessing is None:
        model, note = with_guessed_preprocessing(source.model, data)
        source = replace(source, model=model)
        tell(note)
    tell(f"run {source.path.name} on {owner(source.path)}")
    if owner(source.path) == OURSELVES:
        tell(f"no runtime runs {source.path.suffix} files: what dlas reads from it stands for it")
    x, labels = source_rows(source.model, data, rows)
    try:
        reference = native(source, list(x.values()), timeout_s)
    except WorkerFailure as failure:
        raise SourceError(
            f"{source.path.name}: the source itself cannot be run: {failure.reason}"
        ) from failure
    first = reference[0]
    if labels is not None and is_classifier(first) and (hint := background_class(first, labels)):
        tell(hint)
    known = Known(source.path, source.model, x, data, labels, reference, floors(source.model, x))
    results = []
    for target in targets:
        for path in ("native", *paths):
            name = f"native ({owner(target.path)})" if path == "native" else path
            tell(f"run {target.path.name} on {name}")
            results.append(_try(known, target, path, name, timeout_s))
    compared = tuple(compare_layers(source.model, targets[0].model, x)) if layers and targets else ()
    count = len(next(iter(x.values())))
    return CompareReport(
        source.path.name, count, known.floors[0], _top1(first, labels), tuple(results), compared, data is None
    )


def compare_layers(source: Model, target: Model, x: Mapping[str, np.ndarray]) -> list[dict[str, Any]]:
    """Differences of the intermediate tensors with the same name and shape, in the order of the source."""
    from dlas.graph.reference import intermediates

    few = {name: rows[:16] for name, rows in x.items()}
    a = intermediates(source, few)
    names = [spec.name for spec in target.inputs]
    b = intermediates(target, dict(zip(names, fed_rows(target, few, None), strict=True)))
    found = []
    for name, value in a.items():
        other = b.get(name)
        if other is not None and np.issubdtype(other.dtype, np.integer):
            other = _decoded(other, target, name)
        if other is None or other.shape != value.shape or not np.issubdtype(value.dtype, np.floating):
            continue
        # Masks hold -inf on purpose: there is no distance to measure.
        if value.size == 0 or not np.isfinite(value).all():
            continue
        result = compare_outputs(value, other.astype(value.dtype), classify=False)
        found.append(
            {
                "tensor": name,
                "sqnr_db": result.sqnr_db,
                "max_abs": result.max_abs,
                "relative_l2": result.relative_l2,
            }
        )
    return found


def _decoded(codes: np.ndarray, model: Model, name: str) -> np.ndarray | None:
    """The real values that an integer tensor of a quantised network stands for; None if it stands for none."""
    for node in model.ir.graph:
        if node.op_type == "QuantizeLinear" and node.outputs[0].name == name:
            known = encoding_of(node)
            return None if known is None else (codes.astype(np.float32) - known[1]) * np.float32(known[0])
    return None


@dataclass(frozen=True)
class Known:
    """What is known of the source: its rows, its answers and how much these move by themselves."""

    path: Path
    model: Model
    x: Mapping[str, np.ndarray]
    data: Dataset | None
    labels: np.ndarray | None
    answers: list[np.ndarray]
    floors: list[NoiseFloor]


def worst(*found: Comparison) -> Comparison:
    """The comparison with the worst verdict, the earliest of equals."""
    order = list(Verdict)
    return min(found, key=lambda c: order.index(c.verdict))


def _try(known: Known, target: Subject, path: str, name: str, timeout_s: float) -> PathResult:
    try:
        axes = axes_of(target, known.path) if path == "native" else {"inputs": {}, "outputs": {}}
        fed = fed_rows(target.model, known.x, known.data, axes["inputs"])
        own = path == "native"
        found = native(target, fed, timeout_s) if own else on_backend(target.model, path, fed, timeout_s)
        answers = in_order(found, target.model, known.model)
    except WorkerFailure as failure:
        return PathResult(target.path.name, name, failure.outcome, failure.reason)
    except DlasError as error:
        return PathResult(target.path.name, name, Outcome.UNSUPPORTED, str(error))
    compared: dict[str, Comparison] = {}
    for i, (spec, wanted) in enumerate(zip(known.model.outputs, known.answers, strict=True)):
        if i < len(answers):
            order = axes["outputs"].get(target.model.outputs[i].name)
            back = tuple(int(a) for a in np.argsort(order)) if order else None
            got = turned(answers[i], back, wanted.shape)
            compared[spec.name] = compare_outputs(wanted, got, floor=known.floors[i])
        elif own:  # back ends give the first output only
            compared[spec.name] = Comparison(Verdict.SHAPE, "it is missing", len(wanted))
    first, *others = compared.values()
    decisive = worst(first, *others)
    outcome = Outcome.OK if decisive.verdict.right else Outcome.WRONG
    reason = decisive.reason
    if decisive is not first:
        reason = f"output {next(n for n, c in compared.items() if c is decisive)!r}: {reason}"
    if outcome is Outcome.WRONG:
        reason += _clipping(target.model, known.x, known.data)
    top1_of = _top1(answers[0], known.labels)
    rest = {n: c for n, c in compared.items() if c is not first}
    return PathResult(target.path.name, name, outcome, reason, first, top1_of, rest)


def _clipping(model: Model, x: Mapping[str, np.ndarray], data: Dataset | None) -> str:
    """What to add to the reason of a wrong answer whose integer input could not hold the source's rows."""
    if data is not None and model.preprocessing is not None:
        return ""
    share, low, high = clipped_share(next(iter(x.values())), model)
    if share < _CLIPPED:
        return ""
    dtype = model.inputs[0].dtype
    return f"; its {dtype} input holds {low:.4g} to {high:.4g}, and {share:.0%} of the values lie outside"


def _top1(scores: np.ndarray, labels: np.ndarray | None) -> Figure | None:
    if labels is None or not is_classifier(scores) or len(scores) != len(labels):
        return None
    return top1(scores, labels)
