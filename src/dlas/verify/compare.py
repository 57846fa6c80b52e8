"""Compare a network with its conversions, each on the runtime that owns its file and on any back end asked for."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DataError, DlasError
from dlas.core.figure import Figure, Outcome
from dlas.core.files import scratch_folder
from dlas.core.options import Choice
from dlas.core.worker import Worker, WorkerFailure, run_in_worker
from dlas.data.dataset import Dataset
from dlas.data.guess import background_class, with_guessed_preprocessing
from dlas.data.metrics import top1
from dlas.graph.guard import import_model
from dlas.graph.model import Model
from dlas.graph.signature import adapt_rows, clipped_share, encoding_of, random_array, to_real
from dlas.runtime.native import owner
from dlas.verify.differential import (
    Comparison,
    NoiseFloor,
    Verdict,
    compare_outputs,
    floor_between,
    is_classifier,
)

Report = Callable[[str], None]

_CLIPPED = 0.05  # calibration with percentiles leaves out less than this


@dataclass(frozen=True)
class Subject:
    """A network under comparison: where it lies and what dlas reads from it."""

    path: Path
    model: Model
    architecture: str = ""

    @classmethod
    def open(cls, path: Path, architecture: str = "") -> Subject:
        """Read a file; raises ModelError when it cannot be."""
        return cls(path, import_model(path, architecture), architecture)


@dataclass(frozen=True)
class PathResult:
    """How one target fared on one path.

    Attributes:
        target: File name of the target.
        path: Back end as written, or ``native`` with the runtime that owns the file.
        outcome: What became of it.
        reason: Why, if it is not ok.
        comparison: The differences, where it ran.
        top1: Accuracy on the rows, where they have labels.
    """

    target: str
    path: str
    outcome: Outcome
    reason: str = ""
    comparison: Comparison | None = None
    top1: Figure | None = None

    @property
    def verdict(self) -> Verdict:
        """Verdict of the comparison; a path that did not run is ``crash``."""
        return self.comparison.verdict if self.comparison else Verdict.CRASH

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
        }


@dataclass(frozen=True)
class CompareReport:
    """Source, noise floor, and one row per target and path."""

    source: str
    rows: int
    floor: NoiseFloor
    source_top1: Figure | None
    paths: tuple[PathResult, ...]
    layers: tuple[dict[str, Any], ...] = ()

    @property
    def right(self) -> bool:
        """Whether every path may be relied on."""
        return all(p.comparison is not None and p.verdict.right for p in self.paths)

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "source": self.source,
            "rows": self.rows,
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
    outputs = source.model.outputs
    if len(outputs) > 1:
        tell(f"only the first of {len(outputs)} outputs is compared: {outputs[0].name}")
    tell(f"run {source.path.name} on {owner(source.path)}")
    x, labels = _rows(source.model, data, rows)
    try:
        reference = _native(source, x, timeout_s)
    except WorkerFailure as failure:
        raise DlasError(f"{source.path.name}: the source itself cannot be run: {failure.reason}") from failure
    if labels is not None and is_classifier(reference) and (hint := background_class(reference, labels)):
        tell(hint)
    floor = _floor(source.model, x)
    results = []
    for target in targets:
        for path in ("native", *paths):
            name = f"native ({owner(target.path)})" if path == "native" else path
            tell(f"run {target.path.name} on {name}")
            results.append(_try(target, path, name, x, data, labels, reference, floor, timeout_s))
    compared = tuple(compare_layers(source.model, targets[0].model, x)) if layers and targets else ()
    return CompareReport(source.path.name, len(x), floor, _top1(reference, labels), tuple(results), compared)


def compare_layers(source: Model, target: Model, x: np.ndarray) -> list[dict[str, Any]]:
    """Differences of the intermediate tensors with the same name and shape, in the order of the source."""
    from dlas.graph.reference import intermediates

    few = x[:16]
    a = intermediates(source, {source.inputs[0].name: few})
    b = intermediates(target, {target.inputs[0].name: adapt_rows(few, target)})
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


def _try(
    target: Subject,
    path: str,
    name: str,
    x: np.ndarray,
    data: Dataset | None,
    labels: np.ndarray | None,
    reference: np.ndarray,
    floor: NoiseFloor,
    timeout_s: float,
) -> PathResult:
    try:
        fed = _fed(target.model, x, data)
        if path == "native":
            answers = _native(target, fed, timeout_s)
        else:
            answers = to_real(_on_backend(target.model, path, fed, timeout_s), target.model)
        if answers.shape != reference.shape:
            answers = _in_model_axes(answers, target)
    except WorkerFailure as failure:
        return PathResult(target.path.name, name, failure.outcome, failure.reason)
    except DlasError as error:
        return PathResult(target.path.name, name, Outcome.UNSUPPORTED, str(error))
    comparison = compare_outputs(reference, answers, floor=floor)
    outcome = Outcome.OK if comparison.verdict.right else Outcome.WRONG
    reason = comparison.reason
    if outcome is Outcome.WRONG:
        reason += _clipping(target.model, x, data)
    return PathResult(target.path.name, name, outcome, reason, comparison, _top1(answers, labels))


def _clipping(model: Model, x: np.ndarray, data: Dataset | None) -> str:
    """What to add to the reason of a wrong answer whose integer input could not hold the source's rows."""
    if data is not None and model.preprocessing is not None:
        return ""
    share, low, high = clipped_share(x, model)
    if share < _CLIPPED:
        return ""
    dtype = model.inputs[0].dtype
    return f"; its {dtype} input holds {low:.4g} to {high:.4g}, and {share:.0%} of the values lie outside"


def _in_model_axes(answers: np.ndarray, target: Subject) -> np.ndarray:
    """Answers of a file that dlas wrote with other axes, in the axes of the network it was written from."""
    from dlas.graph.formats.tflite import read_layouts

    if target.path.suffix.lower() != ".tflite":
        return answers
    order = read_layouts(target.path)["outputs"].get(target.model.outputs[0].name)
    return answers.transpose(np.argsort(order)) if order and len(order) == answers.ndim else answers


def _rows(model: Model, data: Dataset | None, rows: int) -> tuple[np.ndarray, np.ndarray | None]:
    from dlas.data.preprocess import prepare

    if len(model.inputs) != 1:
        raise DataError(
            f"{model.name} has {len(model.inputs)} inputs; only single-input networks can be compared"
        )
    if data is None:
        spec = model.inputs[0]
        shape = (min(rows, 32), *spec.bound(1)[1:])
        return random_array(shape, spec.dtype, np.random.default_rng(0)), None
    few = data.head(rows)
    return prepare(few, model), few.labels


def _fed(model: Model, x: np.ndarray, data: Dataset | None) -> np.ndarray:
    """Rows for a target: prepared by its own rules where it has some, else the source's rows adapted."""
    from dlas.data.preprocess import prepare

    if data is not None and model.preprocessing is not None:
        return prepare(data.head(len(x)), model)
    return adapt_rows(x, model)


def _native(subject: Subject, x: np.ndarray, timeout_s: float) -> np.ndarray:
    answers = run_in_worker(
        "dlas.runtime.native:scores", str(subject.path), x, subject.architecture, timeout_s=timeout_s
    )
    return to_real(answers, subject.model)


def _on_backend(model: Model, backend: str, x: np.ndarray, timeout_s: float) -> np.ndarray:
    choice = str(Choice.parse(backend))
    with scratch_folder() as place, Worker(threads=1) as worker:
        (place / "artifact").mkdir()
        (place / "model.onnx").write_bytes(model.to_bytes())
        build = [choice, str(place / "model.onnx"), "host", str(place / "artifact"), 1]
        worker.call("dlas.runtime.session:build", *build, timeout_s=timeout_s)
        opening = [choice, str(place / "artifact"), "host", 1]
        worker.call("dlas.runtime.session:open", *opening, timeout_s=timeout_s)
        return worker.call("dlas.runtime.session:outputs", x, timeout_s=timeout_s)


def _floor(model: Model, x: np.ndarray) -> NoiseFloor:
    from dlas.graph.reference import predict

    first, second = predict(model, x), predict(model, x, level="disable")
    return floor_between(
        to_real(first, model), to_real(second, model), "onnxruntime, all optimisations against none"
    )


def _top1(scores: np.ndarray, labels: np.ndarray | None) -> Figure | None:
    if labels is None or not is_classifier(scores) or len(scores) != len(labels):
        return None
    return top1(scores, labels)
