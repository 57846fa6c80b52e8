"""Time one network on several back ends, interleaved, each in a worker process of its own."""

from __future__ import annotations

import math
import tempfile
import typing
from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, field, replace
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.figure import Figure, Outcome, Source
from dlas.core.files import scratch_folder
from dlas.core.options import Choice
from dlas.core.timing import Protocol, Timing, measure_samplers, ratio
from dlas.core.worker import Worker, WorkerFailure
from dlas.graph.model import Model
from dlas.hardware.cpu.roofline import Roofline
from dlas.hardware.target import measured_target
from dlas.runtime.backend import backends as known_backends
from dlas.runtime.backend import deployable
from dlas.runtime.engine.engine import prepared
from dlas.runtime.engine.work import least_ms, work_of

SESSION = "dlas.runtime.session"


@dataclass(frozen=True)
class BenchRow:
    """One back end with one thread count.

    Attributes:
        backend: Back end as written.
        threads: Threads.
        outcome: What became of it.
        reason: Why, if it did not run.
        figures: ``latency_ms``, ``ratio`` (to the first row that ran; above 1 is slower), ``to_fastest`` (the same, to
            the fastest with as many threads), ``peak_memory_bytes``, ``gflops`` (operations of the network over the
            time) and ``limit_fraction`` (least time by the roofline over the time).
        notes: What differs from what was asked.
        layers: Time per layer, where asked for and where the back end can tell: ``name``, ``op``, ``milliseconds``; of
            the engine also ``impl`` and ``nodes``.
    """

    backend: str
    threads: int
    outcome: Outcome
    reason: str = ""
    figures: dict[str, Figure] = field(default_factory=dict)
    notes: tuple[str, ...] = ()
    layers: tuple[dict[str, Any], ...] = ()

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            **asdict(self),
            "outcome": str(self.outcome),
            "figures": {name: f.to_dict() for name, f in self.figures.items()},
        }


class RemoteSampler(typing.Protocol):
    """What is timed: ``core.timing.Sampler`` or anything with its two methods, which may raise WorkerFailure."""

    def warm_up(self, protocol: Protocol) -> None:
        """See Sampler."""
        ...

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        """See Sampler."""
        ...


class WorkerSampler:
    """A loaded artifact in a worker process, with the face of ``core.timing.Sampler``.

    Args:
        threads: Processors the worker stays on; with None on all until :meth:`hold_to`.
        timeout_s: Longest time for one call.
        memory_bytes: Most memory the worker may take.
        session: Module whose functions are called; by default that of artifacts.
    """

    def __init__(
        self, threads: int | None, timeout_s: float, memory_bytes: int | None = None, session: str = ""
    ) -> None:
        self._session = session
        self._worker = Worker(threads=threads, memory_bytes=memory_bytes, name="session")
        self._timeout_s = timeout_s

    def call(self, function: str, *args: Any) -> Any:
        """Call a function of the session in the worker."""
        return self._worker.call(f"{self._session or SESSION}:{function}", *args, timeout_s=self._timeout_s)

    def open(self, backend: str, folder: str, target: str, threads: int) -> dict[str, Any]:
        """Load an artifact; returns facts such as notes."""
        return self.call("open", backend, folder, target, threads)

    def hold_to(self, threads: int) -> None:
        """Let the worker, with all threads it has by now, stay on this many processors."""
        self.call("hold_to", threads)

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """First output on rows ``(N, ...)``."""
        return self.call("outputs", np.ascontiguousarray(x))

    def warm_up(self, protocol: Protocol) -> None:
        """See Sampler."""
        self.call("warm_up", asdict(protocol))

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        """See Sampler."""
        return self.call("sample", seconds, min_samples, max_seconds)

    def close(self) -> None:
        """Kill the worker."""
        self._worker.close()


class _DiedError(Exception):
    """A worker failed while it was timed; says whose it was."""

    def __init__(self, name: str, failure: WorkerFailure) -> None:
        super().__init__(str(failure))
        self.name = name
        self.failure = failure


class _Named:
    """A sampler whose failure says its name."""

    def __init__(self, name: str, sampler: RemoteSampler) -> None:
        self._name = name
        self._sampler = sampler

    def warm_up(self, protocol: Protocol) -> None:
        try:
            self._sampler.warm_up(protocol)
        except WorkerFailure as failure:
            raise _DiedError(self._name, failure) from failure

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        try:
            return self._sampler.sample(seconds, min_samples, max_seconds)
        except WorkerFailure as failure:
            raise _DiedError(self._name, failure) from failure


def measure_survivors(
    samplers: Mapping[str, RemoteSampler], protocol: Protocol
) -> tuple[dict[str, Timing], dict[str, WorkerFailure]]:
    """Time all in turn; one that fails is left out and the rest are timed again, so that rounds stay whole.

    Returns:
        Timings of those that lived and failures of those that did not, by name.
    """
    alive = {name: _Named(name, sampler) for name, sampler in samplers.items()}
    failures: dict[str, WorkerFailure] = {}
    while alive:
        try:
            return measure_samplers(alive, protocol), failures  # type: ignore[arg-type]
        except _DiedError as died:
            failures[died.name] = died.failure
            del alive[died.name]
    return {}, failures


def bench(
    model: Model,
    backends: Sequence[str],
    *,
    threads: Sequence[int] = (1,),
    target: str = "host",
    protocol: Protocol | None = None,
    layers: bool = False,
    timeout_s: float = 600.0,
    tell: Callable[[str], None] = lambda text: None,
) -> list[BenchRow]:
    """Compile and time ``model`` on every back end with every thread count (batch 1).

    Thread counts are timed one after the other; within one, all back ends take turns. The input is random: the time
    of a dense network does not depend on its values.

    Raises:
        UnknownNameError: No such back end, target or option.
        OptionError: An option does not accept the value.
    """
    measured_target(target)
    for backend in backends:
        choice = Choice.parse(backend)
        known_backends.get(choice.name)(**choice.as_dict())
    protocol = protocol or Protocol()
    rows: list[BenchRow] = []
    with scratch_folder() as folder:
        (folder / "model.onnx").write_bytes(model.to_bytes())
        built = {}
        for backend in backends:
            tell(f"compile for {backend}")
            built[backend] = build(backend, folder, target, timeout_s)
        for count in threads:
            tell(f"time with {count} thread(s)")
            rows += _time(built, count, target, protocol, layers, timeout_s)
    return rows


def build(backend: str, folder: Path, target: str, timeout_s: float) -> Path | WorkerFailure:
    """Compile ``model.onnx`` of ``folder`` in a worker: the artifact, or why there is none."""
    place = Path(tempfile.mkdtemp(prefix=Choice.parse(backend).name + "-", dir=folder))
    try:
        with Worker(name="compiler") as worker:
            args = [backend, str(folder / "model.onnx"), target, str(place), 1]
            worker.call(f"{SESSION}:build", *args, timeout_s=timeout_s)
    except WorkerFailure as failure:
        return failure
    return place


def _time(
    built: dict[str, Path | WorkerFailure],
    threads: int,
    target: str,
    protocol: Protocol,
    layers: bool,
    timeout_s: float,
) -> list[BenchRow]:
    """Time everything with one number of threads, in turns."""
    failures: dict[str, WorkerFailure] = {b: p for b, p in built.items() if isinstance(p, WorkerFailure)}
    samplers: dict[str, WorkerSampler] = {}
    notes: dict[str, tuple[str, ...]] = {}

    def start(backend: str) -> None:
        samplers[backend] = WorkerSampler(threads, timeout_s)
        try:
            opened = samplers[backend].open(backend, str(built[backend]), target, threads)
            samplers[backend].warm_up(protocol)
            notes[backend] = tuple(opened.get("notes", ()))
        except WorkerFailure as failure:
            failures[backend] = failure

    try:
        with ThreadPoolExecutor(max_workers=2) as pool:
            list(pool.map(start, [b for b in built if b not in failures]))
        ready = {b: samplers[b] for b in built if b not in failures}
        timings, died = measure_survivors(ready, protocol)
        failures.update(died)
        first = next(iter(timings.values()), None)
        fastest = min(timings.values(), key=lambda t: t.median, default=None)
        rows = []
        for backend in built:
            if backend in failures:
                failure = failures[backend]
                rows.append(BenchRow(backend, threads, failure.outcome, failure.reason))
                continue
            figures = {"latency_ms": timings[backend].figure()}
            if first is not None and fastest is not None:
                figures["ratio"] = ratio(timings[backend], first)
                figures["to_fastest"] = ratio(timings[backend], fastest)
            row = BenchRow(backend, threads, Outcome.OK, "", figures, notes[backend])
            rows.append(_with_details(row, samplers[backend], layers))
        return rows
    finally:
        for sampler in samplers.values():
            sampler.close()


def _with_details(row: BenchRow, sampler: WorkerSampler, layers: bool) -> BenchRow:
    """The row with its memory and, where asked for, its layers; what cannot be had is missing and says why."""
    try:
        peak = sampler.call("memory").get("peak_bytes")
        if peak is not None:
            row = replace(
                row, figures={**row.figures, "peak_memory_bytes": Figure(peak, "bytes", Source.MEASURED)}
            )
        return replace(row, layers=_layers(row.backend, sampler)) if layers else row
    except WorkerFailure as failure:
        return replace(row, reason=f"no per-layer times: {failure.reason}")


def _layers(backend: str, sampler: WorkerSampler) -> tuple[dict[str, Any], ...]:
    if Choice.parse(backend).name != "engine":
        return tuple(sampler.call("profile", 30))
    found = sampler.call("steps", 30)
    if not found["rows"]:
        raise WorkerFailure(Outcome.UNSUPPORTED, found["notes"][-1])
    kept = ("name", "op", "impl", "milliseconds", "nodes")
    return tuple({key: row[key] for key in kept if key in row} for row in found["rows"])


def with_limits(
    rows: Sequence[BenchRow], model: Model, roof_of: Callable[[int], Roofline | None]
) -> list[BenchRow]:
    """The rows with ``gflops`` and ``limit_fraction``, where the work of the network is known.

    Args:
        rows: From :func:`bench`.
        model: The network they timed.
        roof_of: Limits of this machine with some number of threads, or None.
    """
    try:
        works = [work_of(call.node) for call in prepared(deployable(model)).calls if not call.is_alias]
    except DlasError:  # the engine cannot lower it, so nothing is known of its layers
        return list(rows)
    operations = sum(work.operations for work in works)
    roofs = {row.threads: roof_of(row.threads) for row in rows}
    found = []
    for row in rows:
        latency, roof, figures = row.figures.get("latency_ms"), roofs[row.threads], dict(row.figures)
        if latency is not None and latency.value > 0:
            figures["gflops"] = Figure(operations / (1e6 * latency.value), "GFLOP/s", Source.MEASURED)
            if roof is not None:
                least = sum(least_ms(work, roof) for work in works)
                figures["limit_fraction"] = Figure(least / latency.value, "fraction", Source.ESTIMATED)
        found.append(replace(row, figures=figures))
    return found
