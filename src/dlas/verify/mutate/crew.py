"""Warm worker processes for many short jobs: each thread keeps one, and gets another when it dies."""

from __future__ import annotations

import threading
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor, as_completed
from types import TracebackType
from typing import Any, TypeVar

from dlas.core.worker import Worker

_MEMORY = 8 * 2**30  # bytes that a compiler and the network may take together
_PREPARATION_S = 600.0

T = TypeVar("T")
R = TypeVar("R")


class Crew:
    """Several workers.

    Args:
        size: How many.
    """

    def __init__(self, size: int) -> None:
        self.size = size
        self._own = threading.local()
        self._all: list[Worker] = []
        self._lock = threading.Lock()
        self._closed = False

    def call(
        self, function: str, *arguments: Any, timeout_s: float, first: tuple[Any, ...] | None = None
    ) -> Any:
        """Run ``function`` in this thread's worker; errors as :meth:`dlas.core.worker.Worker.call`.

        Args:
            function: ``package.module:function``.
            arguments: Its arguments.
            timeout_s: Longest time to wait.
            first: A call (function and arguments) that each new worker must have made before, without that limit.
        """
        worker, ready = self._worker()
        if first is not None and first not in ready:
            worker.call(*first, timeout_s=_PREPARATION_S)
            ready.add(first)
        return worker.call(function, *arguments, timeout_s=timeout_s)

    def map(self, work: Callable[[T], R], items: list[T], done: Callable[[T, R], None]) -> None:
        """Do ``work`` on all items, several at once; ``done`` is called in this thread as each is finished.

        What ``work`` raises ends the run: what has begun is given up.
        """
        pool = ThreadPoolExecutor(self.size, "dlas-mutants")
        try:
            waiting = {pool.submit(work, item): item for item in items}
            for future in as_completed(waiting):
                done(waiting[future], future.result())
        except BaseException:
            self.close()
            raise
        finally:
            pool.shutdown(wait=True, cancel_futures=True)

    def close(self) -> None:
        """End all workers."""
        with self._lock:
            self._closed = True
            for worker in self._all:
                worker.close()

    def __enter__(self) -> Crew:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        self.close()

    def _worker(self) -> tuple[Worker, set[Any]]:
        worker: Worker | None = getattr(self._own, "worker", None)
        if worker is None or not worker.alive:
            # Not tied to a processor: several of them would be tied to the same one.
            count = dict.fromkeys(("OMP_NUM_THREADS", "TVM_NUM_THREADS", "OPENBLAS_NUM_THREADS"), "1")
            with self._lock:
                if self._closed:
                    raise RuntimeError("the run has ended")
                if worker is not None:
                    worker.close()
                    self._all.remove(worker)
                worker = Worker(
                    memory_bytes=_MEMORY,
                    env={**count, "TVM_BIND_THREADS": "0"},
                    preload=["dlas.verify.mutate.answers"],
                )
                self._all.append(worker)
            self._own.worker, self._own.ready = worker, set()
        return worker, self._own.ready
