"""Timing of several workers in turn: one that dies costs only its own row."""

from __future__ import annotations

import math

from dlas.core.figure import Outcome
from dlas.core.timing import Protocol
from dlas.core.worker import WorkerFailure
from dlas.runtime.bench import measure_survivors

SHORT = Protocol(warmup_runs=1, warmup_s=0.0, min_samples=6, min_s=0.0, rounds=3)


class Counted:
    """Takes 1 ms by its own account; dies in the round after ``lives`` samples."""

    def __init__(self, lives: float = math.inf, warm: bool = True) -> None:
        self.lives = lives
        self.warm = warm

    def warm_up(self, protocol: Protocol) -> None:
        if not self.warm:
            raise WorkerFailure(Outcome.TIMEOUT, "no answer within 1 s")

    def sample(self, seconds: float, min_samples: int = 1, max_seconds: float = math.inf) -> list[float]:
        self.lives -= min_samples
        if self.lives < 0:
            raise WorkerFailure(Outcome.CRASH, "killed by SIGSEGV")
        return [1.0] * min_samples


def test_those_that_live_are_timed_whole_and_the_others_say_why() -> None:
    samplers = {"a": Counted(), "b": Counted(lives=3), "c": Counted(warm=False), "d": Counted()}
    timings, failures = measure_survivors(samplers, SHORT)
    assert list(timings) == ["a", "d"]
    assert {len(t.rounds) for t in timings.values()} == {3}
    assert {len(t.samples_ms) for t in timings.values()} == {6}
    assert {name: f.outcome for name, f in failures.items()} == {"b": Outcome.CRASH, "c": Outcome.TIMEOUT}


def test_when_all_die_there_is_no_timing() -> None:
    timings, failures = measure_survivors({"a": Counted(lives=0)}, SHORT)
    assert not timings
    assert failures["a"].reason == "killed by SIGSEGV"
