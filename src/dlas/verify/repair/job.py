"""What every way of repairing works on: two networks, rows to choose by, and a count of what it costs."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from time import monotonic

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import DlasError, ShapeError
from dlas.core.telling import Tell
from dlas.graph.model import Model, TensorSpec
from dlas.graph.reference import answers
from dlas.graph.signature import adapt_rows, to_real
from dlas.verify.differential import is_classifier
from dlas.verify.repair.patch import Patch

Rows = slice | np.ndarray
_ALL = slice(None)


@dataclass
class Job:
    """A repair in progress.

    Attributes:
        source: Graph that is right, nodes uniquely named.
        target: Graph to repair, likewise.
        x: ``(rows, ...)`` by input of the source: the rows that choices are made on.
        y: The same samples as the target wants them, where it says itself how they are prepared; else None, and the
            source's rows are adapted to whatever the graph at hand takes.
        deadline: Moment of ``time.monotonic`` at which to stop.
        most_runs: Runs of a whole network that may be spent.
        runs: Runs of a whole network on all rows so far. One on some of the rows counts as their share, and one of
            some of its operators as theirs; changes tried on a region cut out of a network do not count.
        starts: How often a whole network was started, on however many rows.
        tell: Receives one line per step.
    """

    source: ir.Model
    target: ir.Model
    x: Mapping[str, np.ndarray]
    y: Mapping[str, np.ndarray] | None = None
    deadline: float = math.inf
    most_runs: int = 10_000
    runs: float = 0
    starts: int = 0
    tell: Tell = lambda text: None
    _wanted: np.ndarray | None = field(default=None, repr=False)

    @property
    def over(self) -> bool:
        """Whether the budget is spent."""
        return monotonic() > self.deadline or self.runs >= self.most_runs

    @property
    def rows(self) -> int:
        """How many samples there are."""
        return len(next(iter(self.x.values())))

    @property
    def wanted(self) -> np.ndarray:
        """The source's first output, ``(rows, ...)`` float32."""
        if self._wanted is None:
            model = Model(self.source)
            self.count()
            self._wanted = _first(model, answers(model, dict(self.x)))
        return self._wanted

    def count(self, rows: int | None = None, runs: float = 1) -> None:
        """Note runs of a whole network, or a share of one, on so many rows; None means all."""
        self.runs += runs if rows in (None, self.rows) else runs * rows / self.rows
        self.starts += math.ceil(runs)

    def fed(self, graph: ir.Model, rows: Rows = _ALL) -> dict[str, np.ndarray]:
        """The rows (or some of them) as a graph takes them, by name of its inputs."""
        model = Model(graph)
        names = [s.name for s in model.inputs]
        if self.y is not None and all(_fits(self.y.get(s.name), s) for s in model.inputs):
            return {n: v[rows] for n, v in self.y.items()}
        given = [self.x[n] for n in names] if set(names) == set(self.x) else list(self.x.values())
        if len(given) != len(names):
            raise ShapeError(f"the network takes {len(names)} inputs, the source {len(given)}")
        return {n: adapt_rows(v[rows], model, i) for i, (n, v) in enumerate(zip(names, given, strict=True))}

    def output(self, graph: ir.Model, rows: Rows = _ALL) -> np.ndarray | None:
        """First output of a graph on the rows (or some), ``(rows, ...)`` float32; None where it cannot be run."""
        wanted = self.wanted[rows]
        self.count(len(wanted))
        try:
            model = Model(graph)
            found = _first(model, answers(model, self.fed(graph, rows)))
        except DlasError:
            return None
        if found.shape != wanted.shape and found.size == wanted.size:
            found = found.reshape(wanted.shape)
        return found if found.shape == wanted.shape and np.isfinite(found).all() else None

    def flipped(self, found: np.ndarray | None) -> np.ndarray:
        """Which rows have another label than the source gives; all of them where there is no answer."""
        if found is None:
            return np.ones(len(self.wanted), bool)
        if not is_classifier(self.wanted):
            return np.zeros(len(self.wanted), bool)
        return found.argmax(1) != self.wanted.argmax(1)

    def error(self, found: np.ndarray | None) -> float:
        """Relative L2 of an answer; infinite where there is none."""
        if found is None:
            return math.inf
        a, b = self.wanted.astype(np.float64), found.astype(np.float64)
        norm = float(np.sqrt(np.square(a).sum()))
        return float(np.sqrt(np.square(a - b).sum())) / norm if norm else math.inf

    def on(self, rows: slice) -> Job:
        """The same two networks on some of the rows."""
        return replace(
            self,
            x={k: v[rows] for k, v in self.x.items()},
            y=None if self.y is None else {k: v[rows] for k, v in self.y.items()},
            runs=0,
            starts=0,
            _wanted=None,
        )


@dataclass(frozen=True)
class Mended:
    """What a strategy did.

    Attributes:
        graph: The repaired graph.
        patches: The changes, in the order they were made; each fits the graph that the ones before it give.
        log: One line per decision, kept or dropped.
        notes: What it leaves.
    """

    graph: ir.Model
    patches: list[Patch]
    log: list[str] = field(default_factory=list)
    notes: list[str] = field(default_factory=list)


def valid(graph: ir.Model) -> str:
    """Why a graph is no valid network, or an empty string: the checker of onnx and its shape inference."""
    try:
        proto = ir.to_proto(graph)
        onnx.checker.check_model(proto)
        onnx.shape_inference.infer_shapes(proto, strict_mode=True)
    except (onnx.checker.ValidationError, onnx.shape_inference.InferenceError, ValueError) as error:
        return " ".join(str(error).split())[:200]
    return ""


def _fits(given: np.ndarray | None, spec: TensorSpec) -> bool:
    """Whether rows can be fed as they are; a repair may have changed what the network takes."""
    if given is None or given.dtype.name != spec.dtype or given.ndim != len(spec.shape):
        return False
    return all(isinstance(d, str) or d == got for d, got in zip(spec.shape[1:], given.shape[1:], strict=True))


def _first(model: Model, found: Mapping[str, np.ndarray]) -> np.ndarray:
    return to_real(found[model.outputs[0].name], model)
