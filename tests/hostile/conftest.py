"""Attempts with hostile files in a worker, held to limits of time and memory."""

from __future__ import annotations

from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest

from dlas.core.worker import Worker

SECONDS = 20
MEMORY = 2 * 2**30
Attempt = Callable[..., dict[str, Any]]


class Victim:
    """A worker, replaced when a file killed it."""

    def __init__(self) -> None:
        self._worker: Worker | None = None

    def call(self, kind: str, path: Path) -> dict[str, Any]:
        if self._worker is None or not self._worker.alive:
            self.close()
            self._worker = Worker(memory_bytes=3 * 2**30, name="victim")
        return self._worker.call("hostile_child:attempt", kind, str(path), timeout_s=60)

    def close(self) -> None:
        if self._worker is not None:
            self._worker.close()


@pytest.fixture(scope="module")
def victim() -> Iterator[Victim]:
    made = Victim()
    yield made
    made.close()


@pytest.fixture
def attempt(victim: Victim) -> Attempt:
    """``attempt(kind, path)``: what came of it, after it was found to be in one line, quick and small."""

    def made(kind: str, path: Path, *, growth: int = MEMORY) -> dict[str, Any]:
        found = victim.call(kind, path)
        assert found["seconds"] < SECONDS
        assert found["growth"] < growth
        if found["error"]:
            assert found["ours"], found
            assert found["code"] == 2
            assert "\n" not in found["message"]
            assert len(found["message"]) < 5000
        return found

    return made


@pytest.fixture
def refused(attempt: Attempt) -> Attempt:
    """As ``attempt``; the file must be refused, and the message is returned."""

    def made(kind: str, path: Path, **limits: int) -> str:
        found = attempt(kind, path, **limits)
        assert found["error"], f"{path.name} was accepted"
        return found["message"]

    return made
