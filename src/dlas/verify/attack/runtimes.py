"""What answers for a deployed network: the runtime that owns its file, or a back end."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.core.worker import WorkerFailure
from dlas.graph.signature import to_real
from dlas.runtime.native import owner
from dlas.verify.differential.warm import Compiler, Lane, NativeLane
from dlas.verify.paths import RunPath
from dlas.verify.running import Subject, Unread


class Asker:
    """Scores of a network, from a worker that stays open; one that died is started anew for the next question.

    Attributes:
        path: What it is called.
    """

    def __init__(self, subject: Subject, lane: Lane | NativeLane, path: str) -> None:
        self.path = path
        self._subject, self._lane = subject, lane

    def __call__(self, fed: np.ndarray) -> np.ndarray:
        """First output for what the network is fed, as real numbers; raises WorkerFailure."""
        given = np.ascontiguousarray(fed)
        model = self._subject.model
        try:
            if isinstance(self._lane, Lane):
                return self._lane.outputs({model.inputs[0].name: given})[0]
            return to_real(self._lane.open().call("answers", [given])[0], model)
        except WorkerFailure:
            self._lane.close()
            raise

    def __enter__(self) -> Asker:
        return self

    def __exit__(self, *_: object) -> None:
        self._lane.close()


def asker_of(
    subject: Subject, route: RunPath | None, compiler: Compiler, threads: int, timeout_s: float
) -> Asker:
    """What answers for a network: a back end it is built for, else the runtime of its file.

    Raises:
        WorkerFailure: The back end cannot build it.
    """
    if route is not None:
        return Asker(subject, compiler.build(subject.model, route), route.label)
    return Asker(subject, NativeLane(subject, timeout_s, threads), owner(subject.path))


def named(subject: Subject | Unread, among: Sequence[Subject | Unread]) -> str:
    """What a network is called: its file's name where that tells it from the others."""
    names = [other.path.name for other in among]
    return subject.path.name if names.count(subject.path.name) == 1 else str(subject.path)
