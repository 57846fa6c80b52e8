"""The space of a study: which stacks there are, and in which order they are tried."""

from __future__ import annotations

import itertools
from collections.abc import Iterator
from dataclasses import dataclass

from dlas.core.errors import OptionError
from dlas.core.options import Choice
from dlas.hardware.target import is_accelerator

DESIGNS = ("grid", "one-at-a-time")
ACCELERATED_BY = "engine"  # the back end with a driver for accelerators


@dataclass(frozen=True)
class Pipeline:
    """Compression methods in the order they are applied; empty means the network as it is."""

    steps: tuple[Choice, ...] = ()

    @classmethod
    def parse(cls, text: str) -> Pipeline:
        """Read ``none``, ``int8`` or ``channel:ratio=0.5 + int8``."""
        parts = [part.strip() for part in text.split("+")]
        if parts == ["none"]:
            return cls()
        if "none" in parts or "" in parts:
            raise OptionError("compress.pipeline", text, "none, or methods joined by +")
        return cls(tuple(Choice.parse(part) for part in parts))

    def __str__(self) -> str:
        return " + ".join(map(str, self.steps)) or "none"


@dataclass(frozen=True)
class Stack:
    """One choice per layer; data and model are those of the study."""

    compress: Pipeline
    backend: Choice
    threads: int
    target: Choice

    def choices(self) -> dict[str, str]:
        """Axis name to the choice as written."""
        return {
            "compress": str(self.compress),
            "backend": str(self.backend),
            "threads": str(self.threads),
            "target": str(self.target),
        }


@dataclass(frozen=True)
class Space:
    """Choices per axis; the first of each axis makes up the baseline.

    Attributes:
        compress: Compression pipelines; the uncompressed network comes first.
        backends: Back ends.
        threads: Thread counts.
        targets: Devices.
    """

    compress: tuple[Pipeline, ...]
    backends: tuple[Choice, ...]
    threads: tuple[int, ...]
    targets: tuple[Choice, ...]

    @property
    def baseline(self) -> Stack:
        """The stack the others are compared with."""
        target = self.targets[0]
        return Stack(self.compress[0], self.runs_on(target)[0], self.threads[0], target)

    def runs_on(self, target: Choice) -> tuple[Choice, ...]:
        """Back ends for a target: those of the study, or for an accelerator the engine, which alone drives one."""
        return (Choice.of(ACCELERATED_BY),) if is_accelerator(target) else self.backends

    def grid(self) -> Iterator[Stack]:
        """Every combination, with the back ends that each target has."""
        for compress, target in itertools.product(self.compress, self.targets):
            for backend, threads in itertools.product(self.runs_on(target), self.threads):
                yield Stack(compress, backend, threads, target)

    def one_at_a_time(self) -> Iterator[Stack]:
        """The baseline and every stack that differs from it in one axis only; another target may bring its back end."""
        base = self.baseline
        for stack in self.grid():
            moved = stack.target != base.target
            changed = (
                stack.compress != base.compress,
                stack.backend != (self.runs_on(stack.target)[0] if moved else base.backend),
                stack.threads != base.threads,
                moved,
            )
            if sum(changed) <= 1:
                yield stack

    def stacks(self, design: str) -> list[Stack]:
        """Stacks of a design, the baseline first.

        Raises:
            OptionError: There is no design of that name.
        """
        if design not in DESIGNS:
            raise OptionError("study.design", design, "one of " + ", ".join(DESIGNS))
        found = list(self.grid() if design == "grid" else self.one_at_a_time())
        found.remove(self.baseline)
        return [self.baseline, *found]
