"""How a long run tells where it is; the command line draws it, everything else ignores it."""

from __future__ import annotations

from typing import Protocol


class Progress(Protocol):
    """Receives the state of a long run."""

    def start(self, total: int) -> None:
        """``total`` units of work lie ahead."""
        ...

    def step(self, text: str) -> None:
        """What is being done now."""
        ...

    def advance(self, units: int = 1) -> None:
        """So many units are finished."""
        ...


class Silent:
    """Progress nobody looks at."""

    def start(self, total: int) -> None:
        """Nothing."""

    def step(self, text: str) -> None:
        """Nothing."""

    def advance(self, units: int = 1) -> None:
        """Nothing."""
