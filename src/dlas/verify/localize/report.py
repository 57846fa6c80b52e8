"""Localise faults of a file against its source, in a worker, and say it in one table."""

from __future__ import annotations

import io
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np
import onnx

from dlas.core.errors import ModelError, OptionError
from dlas.core.figure import Source
from dlas.core.files import explain_write, write_atomic
from dlas.core.telling import Tell, tell_caller
from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.signature import clipped_share
from dlas.verify.localize.alignment import relative
from dlas.verify.localize.engine import find, named
from dlas.verify.localize.runtime import Backend, find_in_runtime
from dlas.verify.paths import parse_paths
from dlas.verify.running import Subject, axes_of, fed_rows, source_rows

_MEMORY = 8 * 2**30
ROWS = 32
_ROUNDING = 0.15  # share of the labels that differ between a network in 8 bits and its float twin where both are right

_ENOUGH = 16  # samples on which this share means anything
_LOST = 0.05  # relative L2 that random numbers may lose in an integer input


@dataclass(frozen=True)
class LocalizeReport:
    """Faults of a target against its source.

    Attributes:
        source: File name of the network that is right.
        target: File name of the one in question.
        faults: In the order of execution; each a dictionary of :meth:`Fault.to_dict`.
        flips: Labels that differ on the rows used; None where outputs are no class scores.
        rows: Rows used.
        random: Whether they were random numbers.
        matched: Tensors of the target that agree with one of the source.
        tensors: Operators of the target that depend on its input.
        tolerance: Relative L2 up to which two tensors are the same.
        typical: Median relative L2 of those that agree.
        origin: What is known of where the target came from.
        notes: Anything else worth knowing.
        reproducers: One ``(ONNX file, arrays)`` per fault; empty where the place is larger than three operators.
    """

    source: str
    target: str
    faults: tuple[Mapping[str, Any], ...]
    flips: int | None
    rows: int
    random: bool
    matched: int
    tensors: int
    tolerance: float
    typical: float
    origin: Mapping[str, str]
    notes: tuple[str, ...] = ()
    reproducers: tuple[tuple[bytes, Mapping[str, np.ndarray]], ...] = ()

    @property
    def explained(self) -> bool:
        """Whether no more labels differ than the faults, or rounding that adds up, can be blamed for."""
        # Few samples say nothing, and on random ones scores lie close together.
        few = self.random or self.rows < _ENOUGH
        return bool(self.faults) or few or (self.flips or 0) <= _ROUNDING * self.rows

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; without the reproducers."""
        return {
            "figures": str(Source.MEASURED),
            "source": self.source,
            "target": self.target,
            "faults": [dict(f) for f in self.faults],
            "flips": self.flips,
            "rows": self.rows,
            "random": self.random,
            "matched": self.matched,
            "tensors": self.tensors,
            "tolerance": self.tolerance,
            "typical": self.typical,
            "origin": dict(self.origin),
            "explained": self.explained,
            "notes": list(self.notes),
        }

    def write_reproducers(self, folder: Path) -> list[Path]:
        """Write ``fault-1.onnx`` and ``fault-1.npz`` (inputs and expected result) for each fault that has one."""
        written = []
        for number, (proto, arrays) in enumerate(self.reproducers, 1):
            if not proto:
                continue
            with explain_write(f"to {folder}", "name a folder that can be written"):
                folder.mkdir(parents=True, exist_ok=True)
            path = folder / f"fault-{number}.onnx"
            write_atomic(path, proto)
            buffer = io.BytesIO()
            np.savez_compressed(buffer, allow_pickle=False, **{k: np.asarray(v) for k, v in arrays.items()})
            write_atomic(path.with_suffix(".npz"), buffer.getvalue())
            written.append(path)
        return written


def localize_files(
    source: Subject,
    target: Subject,
    *,
    data: Dataset | None = None,
    rows: int = ROWS,
    budget_s: float = 300.0,
    tell: Tell = lambda text: None,
) -> LocalizeReport:
    """Find the places where ``target`` does something else than ``source``.

    Args:
        source: The network that is right by definition.
        target: Its conversion, in any format.
        data: Samples; without them random numbers are fed, which may saturate quantised networks.
        rows: Samples at most; fewer where activations would not fit into memory.
        budget_s: Seconds for the search for explanations.
        tell: Receives one line per step.

    Raises:
        DataError: The samples do not fit.
        ModelError: The source gives no finite numbers, or the two networks have different outputs or classes, or
            nothing in common.
        UnsupportedError: Control flow, or a batch larger than one that is written into the network.
    """
    x, y = paired_rows(source, target, data, rows)
    count = len(next(iter(x.values())))
    tell(
        f"feed {count} samples to {source.path.name} and {target.path.name}, {budget_s:g} s at most to explain"
    )
    found = in_worker(
        "dlas.verify.localize.report:search", source.model.to_bytes(), target.model.to_bytes(), x, y, budget_s,
        budget_s=budget_s, tell=tell,
    )  # fmt: skip
    return LocalizeReport(
        source.path.name,
        target.path.name,
        tuple(found["faults"]),
        found["flips"],
        found["rows"],
        data is None,
        found["matched"],
        found["tensors"],
        found["tolerance"],
        found["typical"],
        dict(target.model.source),
        (*_lost(target, x, random=data is None), *found["notes"]),
        tuple((bytes(p), a) for p, a in found["reproducers"]),
    )


def localize_path(
    subject: Subject,
    path: str,
    *,
    data: Dataset | None = None,
    rows: int = 8,
    timeout_s: float = 300.0,
    tell: Tell = lambda text: None,
) -> LocalizeReport:
    """Find the operators of a network that a back end computes otherwise than the network says.

    Args:
        subject: The network.
        path: Back end and level, such as ``tvm:O3``.
        data: Samples; without them random numbers are fed.
        rows: Samples at most.
        timeout_s: Longest time for compiling or running once.
        tell: Receives one line per step.

    Raises:
        DlasError: The back end cannot compile or run the network as a whole.
    """
    ways = parse_paths(path)
    if len(ways) != 1:
        raise OptionError("path", path, "one back end at one level")
    path = ways[0].label
    x, _ = source_rows(subject.model, data, rows)
    graph = opened(subject.model.to_bytes())
    with Backend(ways[0], timeout_s) as run:
        try:
            found = find_in_runtime(graph, x, run, path=path, tell=tell)
        except WorkerFailure as failure:
            raise ModelError(f"{path} does not run {subject.path.name}: {failure.reason}") from failure
    return LocalizeReport(
        subject.path.name,
        f"{subject.path.name} on {path}",
        tuple(f.to_dict() for f in found.faults),
        found.flips,
        found.rows,
        data is None,
        found.matched,
        found.tensors,
        found.tolerance,
        found.typical,
        {"path": path},
        tuple(found.notes),
        tuple((f.reproducer, f.samples) for f in found.faults),
    )


def paired_rows(
    source: Subject, target: Subject, data: Dataset | None, rows: int
) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray]]:
    """The same samples for both networks, ``(N, ...)`` by name of input; raises ModelError where classes differ."""
    _refuse_other_classes(source, target)
    x, _ = source_rows(source.model, data, rows)
    given = fed_rows(target.model, x, data, axes_of(target, source.path)["inputs"])
    return x, {spec.name: v for spec, v in zip(target.model.inputs, given, strict=True)}


def _lost(target: Subject, x: Mapping[str, np.ndarray], *, random: bool) -> list[str]:
    """What to know where random numbers do not fit into an input of few bits."""
    if not random or len(x) != 1:
        return []
    values = next(iter(x.values()))
    share, low, high = clipped_share(values, target.model)
    if not np.isfinite(low):
        return []
    step = (high - low) / 255
    lost = relative(values, np.clip(np.round(values / step) * step, low, high))
    if lost <= _LOST:
        return []
    return [
        f"the input of {target.path.name} holds {low:.3g} to {high:.3g} in steps of {step:.3g}: the random numbers "
        f"lose {lost:.0%} there ({share:.0%} of them lie outside), so give real samples with --data"
    ]


def _refuse_other_classes(source: Subject, target: Subject) -> None:
    shapes = [s.model.outputs[0].shape for s in (source, target)]
    counts = [s[1] if len(s) == 2 and isinstance(s[1], int) else 0 for s in shapes]
    if all(counts) and counts[0] != counts[1]:
        raise ModelError(
            f"{target.path.name} gives {counts[1]} values per sample, {source.path.name} gives {counts[0]}: "
            "it is not the same network",
            "give a conversion with the source's own classes",
        )


def in_worker(function: str, *given: Any, budget_s: float, tell: Tell) -> dict[str, Any]:
    """Call ``function`` in a worker of its own; its failure becomes a ModelError of one line."""
    try:
        return run_in_worker(function, *given, timeout_s=budget_s + 300, memory_bytes=_MEMORY, tell=tell)
    except WorkerFailure as failure:
        raise ModelError(failure.reason) from failure


def search(
    source: bytes, target: bytes, x: Mapping[str, np.ndarray], y: Mapping[str, np.ndarray], budget_s: float
) -> dict[str, Any]:
    """In a worker: :func:`find` on two ONNX files; plain values only."""
    a, b = opened(source), opened(target)
    found = find(a, b, x, y, budget_s=budget_s, tell=tell_caller)
    return {
        "faults": [f.to_dict() for f in found.faults],
        "reproducers": [
            [f.reproducer, {k: np.asarray(v) for k, v in f.samples.items()}] for f in found.faults
        ],
        "flips": found.flips,
        "rows": found.rows,
        "matched": found.matched,
        "tensors": found.tensors,
        "tolerance": found.tolerance,
        "typical": found.typical,
        "notes": found.notes,
    }


def opened(proto: bytes) -> Any:
    """A graph with uniquely named nodes from an ONNX file that dlas wrote."""
    model = Model.from_proto(onnx.ModelProto.FromString(proto))
    graph = model.editable()
    named(graph)
    return graph
