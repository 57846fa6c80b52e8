"""What the commands of accelerators share."""

from __future__ import annotations

from collections.abc import Callable
from typing import Annotated

import typer

from dlas.cli._shared import Bar

Chosen = Annotated[str, typer.Argument(help="Accelerator with its options, such as vm:units=4.")]
Level = Annotated[str, typer.Option(help="tlm: the exact model; rtl: the simulated hardware.")]


def told(bar: Bar) -> Callable[[float, str], None]:
    """A bar in thousandths."""
    bar.start(1000)
    done = 0

    def tell(fraction: float, text: str) -> None:
        nonlocal done
        bar.step(text)
        now = round(1000 * fraction)
        bar.advance(max(0, now - done))
        done = max(done, now)

    return tell
