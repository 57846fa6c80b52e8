"""Networks built for paths, each opened in a worker that stays: it gives answers now and times later.

One worker compiles, one path after the other; answers may be asked of several lanes at once, since a worker is held
to its processors only when it is timed. A path whose worker crashes, hangs or finds the disk full raises what became
of it, and the next one is not touched.
"""

from __future__ import annotations

import tempfile
import threading
from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError
from dlas.core.lazy import distribution_version
from dlas.core.timing import Protocol, Timing
from dlas.core.worker import Worker, WorkerFailure
from dlas.graph.model import Model
from dlas.graph.signature import to_real
from dlas.runtime.backend import backends
from dlas.runtime.bench import SESSION, WorkerSampler, measure_survivors
from dlas.verify.paths import RunPath
from dlas.verify.running import Subject

_MEMORY = 8 * 2**30  # bytes that running a network may take
_BLOCK = 64  # rows per call, so that slow is told from hanging
_AT_ONCE = 16  # workers kept open together; a group of paths of this size is timed in turn


@dataclass(eq=False)
class Lane:
    """A network on one path.

    Attributes:
        path: The path.
        model: The network.
        artifact: What the back end made of it.
        timeout_s: Longest time for one call.
        notes: What differs from what was asked, once it was opened.
    """

    path: RunPath
    model: Model
    artifact: Path
    timeout_s: float = 300.0
    notes: tuple[str, ...] = ()
    sampler: WorkerSampler | None = field(default=None, repr=False)

    def open(self) -> WorkerSampler:
        """Load the artifact in a worker, unless it is; raises WorkerFailure."""
        if self.sampler is None:
            self.sampler = WorkerSampler(None, self.timeout_s, _MEMORY)
            path = self.path
            try:
                facts = self.sampler.open(str(path.backend), str(self.artifact), path.target, path.threads)
                # That a batch was fixed is no difference: it is how every path is built.
                self.notes = tuple(n for n in facts["notes"] if not n.startswith("the batch of "))
            except WorkerFailure:
                self.close()
                raise
        return self.sampler

    def answers(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Every output for every row; raises WorkerFailure."""
        worker, parts = self.open(), []
        for start in range(0, len(next(iter(inputs.values()))), _BLOCK):
            given = {n: np.ascontiguousarray(rows[start : start + _BLOCK]) for n, rows in inputs.items()}
            parts.append(worker.call("all_outputs", given))
        return {name: np.concatenate([part[name] for part in parts]) for name in parts[0]}

    def outputs(self, inputs: Mapping[str, np.ndarray]) -> list[np.ndarray]:
        """Every output for every row as real numbers, in the network's order; raises WorkerFailure."""
        found = self.answers(inputs)
        return [to_real(found[spec.name], self.model, i) for i, spec in enumerate(self.model.outputs)]

    @property
    def threads(self) -> int:
        """Processors it is held to when it is timed."""
        return self.path.threads

    def close(self) -> None:
        """End the worker; the artifact stays, and the lane can be opened again."""
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


@dataclass(eq=False)
class NativeLane:
    """A file on the runtime that owns it, to be timed; its answers are had without it."""

    subject: Subject
    timeout_s: float = 300.0
    threads: int = 1
    sampler: WorkerSampler | None = field(default=None, repr=False)

    def open(self) -> WorkerSampler:
        """Load the file in a worker, unless it is; raises WorkerFailure."""
        if self.sampler is None:
            self.sampler = WorkerSampler(None, self.timeout_s, _MEMORY, "dlas.runtime.native_session")
            try:
                self.sampler.call("open", str(self.subject.path), dict(self.subject.options), self.threads)
            except WorkerFailure:
                self.close()
                raise
        return self.sampler

    def close(self) -> None:
        """End the worker; the lane can be opened again."""
        if self.sampler is not None:
            self.sampler.close()
            self.sampler = None


class Compiler:
    """Builds networks for paths, one after the other, in a worker that lives as long as nothing kills it.

    Artifacts are kept in the cache, so that the same network on the same path is compiled once.
    """

    def __init__(self, folder: Path, timeout_s: float) -> None:
        self._folder = folder
        self._timeout_s = timeout_s
        self._worker: Worker | None = None
        self._files: dict[str, Path] = {}
        self._cache = Cache()

    def build(self, model: Model, path: RunPath) -> Lane:
        """A network, built for a path.

        Raises:
            WorkerFailure: Its compiler crashed, hung or refused the network.
            StorageError: There is no room for the artifact.
        """
        member = backends.get(path.backend.name)
        version = distribution_version(member.distribution), distribution_version("dlas")
        batch = fixed_batch(model)
        key = key_of("artifact of a path", model.hash, str(path.backend), path.target, batch, *version)

        def make(folder: Path) -> None:
            if self._worker is None or not self._worker.alive:
                self.close()
                self._worker = Worker(name="compiler", memory_bytes=_MEMORY)
            arguments = [str(path.backend), str(self._file(model)), path.target, str(folder), batch]
            self._worker.call(f"{SESSION}:build", *arguments, timeout_s=self._timeout_s)

        return Lane(path, model, self._cache.folder(key, make), self._timeout_s)

    def close(self) -> None:
        """End the worker."""
        if self._worker is not None:
            self._worker.close()

    def _file(self, model: Model) -> Path:
        if model.hash not in self._files:
            place = Path(tempfile.mkdtemp(dir=self._folder)) / "model.onnx"
            place.write_bytes(model.to_bytes())
            self._files[model.hash] = place
        return self._files[model.hash]

    def __enter__(self) -> Compiler:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def fixed_batch(model: Model) -> int:
    """Rows a network takes per run: what it declares, 1 where it takes any number."""
    first = {spec.shape[0] for spec in model.inputs if spec.shape}
    size = first.pop() if len(first) == 1 else 1
    return size if isinstance(size, int) else 1


def time_lanes(
    lanes: Mapping[str, Lane | NativeLane],
    base: str,
    feeds: Mapping[str, Mapping[str, np.ndarray]],
    protocol: Protocol,
) -> tuple[dict[str, Timing], dict[str, Timing], dict[str, str]]:
    """Time lanes in turn with ``base``, in groups of as many as are kept open together.

    Args:
        lanes: By name, ``base`` among them.
        base: The lane every group is timed with, if there is one of that name.
        feeds: What each computes on: one row by input, by lane.
        protocol: How long and how often.

    Returns:
        Timings by name, those of the base in the same group, and why others have none.
    """
    names = [name for name in lanes if name != base]
    size = _AT_ONCE - 1
    groups = [names[i : i + size] for i in range(0, len(names), size)] or [[]]
    taken: dict[str, Timing] = {}
    bases: dict[str, Timing] = {}
    why: dict[str, str] = {}
    for group in groups:
        ready = {}
        for name in (base, *group) if base in lanes else group:
            try:
                ready[name] = lanes[name].open()
                ready[name].hold_to(lanes[name].threads)
                ready[name].call("feed", {k: np.ascontiguousarray(v) for k, v in feeds[name].items()})
            except DlasError as error:
                ready.pop(name, None)
                why[name] = error.message
        timings, died = measure_survivors(ready, protocol)
        why.update({name: failure.reason for name, failure in died.items()})
        taken.update({name: t for name, t in timings.items() if name != base or base not in taken})
        bases.update(dict.fromkeys(group, timings[base]) if base in timings else {})
        if len(groups) > 1:
            for name in group:
                lanes[name].close()
    if base in taken:
        bases[base] = taken[base]
    return taken, bases, why


class Shelf:
    """Lanes that answered and are kept open for their times: the last ones, as many as are kept together."""

    def __init__(self) -> None:
        self._lock = threading.Lock()
        self._lanes: list[Lane] = []

    def put(self, lane: Lane) -> None:
        """Add one and close the one that has been there longest, if there are too many."""
        with self._lock:
            self._lanes.append(lane)
            if len(self._lanes) > _AT_ONCE:
                self._lanes.pop(0).close()
