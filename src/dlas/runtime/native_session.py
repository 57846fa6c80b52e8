"""What runs inside a worker process: one model file on the runtime that owns its format, and its times.

The counterpart of :mod:`dlas.runtime.session` for files that nothing was compiled from.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.timing import Protocol, Sampler
from dlas.runtime.native import Runner, answers_of, filled, opened
from dlas.runtime.session import hold_to

__all__ = ["answers", "feed", "hold_to", "open", "sample", "warm_up"]

_runner: Runner | None = None
_sampler: Sampler | None = None


def open(path: str, options: Mapping[str, Any], threads: int) -> None:
    """Load a file; see :func:`dlas.runtime.native.answers`."""
    global _runner, _sampler
    _runner, _sampler = opened(path, options, threads), None


def answers(inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All outputs of the opened file, in its order; see :func:`dlas.runtime.native.answers`."""
    return answers_of(_opened(), inputs)


def feed(inputs: Mapping[str, np.ndarray]) -> None:
    """Run once on one row per input, in the order of the file, and set that as what timed runs compute on."""
    global _sampler
    runner = _opened()
    run, batch = runner.run, runner.batch
    given = [filled(x, batch) if x.ndim else x for x in inputs.values()]
    run(given)
    _sampler = Sampler(lambda: run(given))


def warm_up(protocol: Mapping[str, Any]) -> None:
    """See :func:`dlas.runtime.session.warm_up`."""
    _fed().warm_up(Protocol(**protocol))


def sample(seconds: float, min_samples: int = 1, max_seconds: float | None = None) -> list[float]:
    """See :func:`dlas.runtime.session.sample`."""
    return _fed().sample(seconds, min_samples, float("inf") if max_seconds is None else max_seconds)


def _opened() -> Runner:
    if _runner is None:
        raise DlasError("no file is open in this process", "call dlas.runtime.native_session:open first")
    return _runner


def _fed() -> Sampler:
    if _sampler is None:
        raise DlasError("nothing was fed in this process", "call dlas.runtime.native_session:feed first")
    return _sampler
