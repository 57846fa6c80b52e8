"""Where the steps of a study run.

An executor runs risky steps and holds the sessions that are timed. The one here uses worker processes of this
machine; a cluster or a device farm is another class with the same few methods.
"""

from __future__ import annotations

import math
import threading
from collections.abc import Iterator, Mapping
from contextlib import AbstractContextManager, contextmanager
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlas.core.figure import Figure
from dlas.core.files import explain_write
from dlas.core.locks import folder_lock
from dlas.core.timing import Protocol as TimingProtocol
from dlas.core.worker import Worker, WorkerFailure
from dlas.runtime.bench import WorkerSampler


class Session(Protocol):
    """A loaded artifact that can be run and timed."""

    def open(self, backend: str, folder: str, target: str, threads: int) -> dict[str, Any]:
        """Load; returns facts such as notes."""
        ...

    def outputs(self, x: np.ndarray) -> np.ndarray:
        """Answers on ``(N, ...)`` rows."""
        ...

    def warm_up(self, protocol: TimingProtocol) -> None:
        """Run until caches and lazy initialisation are done."""
        ...

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        """Times of single inferences in ms (see core.timing.Sampler)."""
        ...

    def facts(self, profile_repeats: int) -> dict[str, Any]:
        """Memory, energy and layer times."""
        ...

    def modelled(self) -> dict[str, Figure]:
        """Figures of a device that is not here."""
        ...

    def layers(self, repeats: int) -> list[dict[str, Any]]:
        """Time per layer."""
        ...

    def close(self) -> None:
        """End it."""
        ...


class Executor(Protocol):
    """Runs steps and opens sessions."""

    def call(self, function: str, *args: Any) -> Any:
        """Run ``package.module:function``; raises WorkerFailure."""
        ...

    def session(self, threads: int) -> Session:
        """A fresh place for one artifact."""
        ...

    def busy(self) -> AbstractContextManager[Any]:
        """Around work that would disturb a measurement; waits while somebody measures. May be nested."""
        ...

    def quiet(self) -> AbstractContextManager[Any]:
        """Around a measurement: waits for the work of others to end, and holds it off. Not inside :meth:`busy`."""
        ...

    def close(self) -> None:
        """End everything that still runs."""
        ...


class ProcessExecutor:
    """Worker processes on this machine.

    Args:
        timeout_s: Seconds one step may take.
        memory_bytes: Memory one worker may use.
        home: Folder that all processes on this machine name who want to keep out of each other's measurements (the
            cache); None where there is only this one.
    """

    def __init__(
        self, timeout_s: float = 600.0, memory_bytes: int | None = None, home: Path | None = None
    ) -> None:
        self.timeout_s = timeout_s
        self.home = home
        self._depth: dict[int, int] = {}  # threads inside `busy`: one of them may call it again
        self.memory_bytes = memory_bytes
        self._steps: Worker | None = None
        self._sessions: list[WorkerSession] = []
        self._turn = threading.Lock()  # one step at a time: the worker answers one call after the other

    def call(self, function: str, *args: Any) -> Any:
        """Run a step in the long-lived step worker, which is replaced after a failure."""
        with self.busy(), self._turn:
            worker = self._steps  # `close` may take it away from another thread while a step runs
            if worker is None or not worker.alive:
                worker = self._steps = Worker(memory_bytes=self.memory_bytes, name="steps")
            try:
                return worker.call(function, *args, timeout_s=self.timeout_s)
            finally:
                if not worker.alive:
                    worker.close()

    def session(self, threads: int) -> WorkerSession:
        """A worker process of its own, pinned to ``threads`` cores."""
        session = WorkerSession(threads, self.timeout_s, self.memory_bytes)
        self._sessions.append(session)
        return session

    @contextmanager
    def busy(self) -> Iterator[None]:
        """See Executor."""
        if self.home is None or self._depth.get(threading.get_ident(), 0):
            yield
            return
        gate = self._gate(self.home)
        with folder_lock(gate, shared=True):
            pass  # whoever waits to measure has closed it: those who work already end, nobody new begins
        with folder_lock(self.home, shared=True):
            self._depth[threading.get_ident()] = 1
            try:
                yield
            finally:
                del self._depth[threading.get_ident()]

    @contextmanager
    def quiet(self) -> Iterator[None]:
        """See Executor."""
        if self.home is None:
            yield
            return
        with folder_lock(self._gate(self.home), shared=False), folder_lock(self.home, shared=False):
            yield

    def _gate(self, home: Path) -> Path:
        gate = home / ".turn"
        with explain_write(f"to the cache {home}", "point DLAS_CACHE at a folder that can be written"):
            gate.mkdir(parents=True, exist_ok=True)
        return gate

    def close(self) -> None:
        """Kill all workers."""
        if self._steps is not None:
            self._steps.close()
            self._steps = None
        for session in self._sessions:
            session.close()
        self._sessions.clear()


class WorkerSession(WorkerSampler):
    """One artifact in one worker process."""

    def facts(self, profile_repeats: int) -> dict[str, Any]:
        """Memory, energy, and layer times where the back end can tell them."""
        found: dict[str, Any] = {"memory": self.call("memory")}
        energy = self.call("energy", 1.0)
        if energy:
            found["energy"] = energy
        if profile_repeats:
            try:
                found["layers"] = self.layers(profile_repeats)
            except WorkerFailure as failure:  # a profile is a bonus: the row stands without it, and says why
                found["no_layers"] = failure.reason
        return found

    def modelled(self) -> dict[str, Figure]:
        """Figures of a device that is not here."""
        return {name: Figure.from_dict(f) for name, f in self.call("modelled").items()}

    def layers(self, repeats: int) -> list[dict[str, Any]]:
        """Time per layer."""
        return self.call("profile", repeats)


def limits(spec_limits: Any) -> Mapping[str, Any]:
    """Arguments of ProcessExecutor from the ``[limits]`` table."""
    return {
        "timeout_s": spec_limits.step_timeout_s,
        "memory_bytes": int(spec_limits.memory_gib * 2**30),
    }
