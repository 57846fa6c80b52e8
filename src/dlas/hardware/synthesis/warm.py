"""The first call of each tool, which compiles it: ``python -m dlas.hardware.synthesis.warm``.

The tools come as WebAssembly and are compiled for this machine on their first use, for about a minute each. A set-up
step that calls this takes the wait out of the first real use, and out of tests with time limits.
"""

from __future__ import annotations

import sys
import tempfile
import time
from collections.abc import Callable
from pathlib import Path

from dlas.core.errors import DlasError
from dlas.hardware.simulation.tools import run_tool, script
from dlas.hardware.synthesis.fmax import NEXTPNR
from dlas.hardware.synthesis.yosys import YOSYS

LIMIT_S = 900.0


def warm(tell: Callable[[str], None] = lambda line: None) -> None:
    """Call every tool once.

    Args:
        tell: Told what was called and how long it took.

    Raises:
        MissingDependencyError: A tool is not installed.
        DlasError: One failed.
    """
    for name in (YOSYS, NEXTPNR):
        start = time.monotonic()
        with tempfile.TemporaryDirectory() as folder:
            run_tool(name, [script(name), "--version"], Path(folder), LIMIT_S)
        tell(f"{name}: ready after {time.monotonic() - start:.1f} s")


def _say(line: str) -> None:
    sys.stderr.write(f"set-up: {line}\n")


def main() -> int:
    """The command; returns its exit code."""
    try:
        warm(_say)
    except DlasError as error:
        sys.stderr.write(f"error: {error}\n")
        return error.exit_code
    return 0


if __name__ == "__main__":
    sys.exit(main())
