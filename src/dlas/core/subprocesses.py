"""A foreign program under watch: with a time limit, its whole process group killed, its last words kept.

:mod:`dlas.core.worker` is for functions of this package; this is for interpreters and tools that do not have it.
"""

from __future__ import annotations

import contextlib
import ctypes
import os
import re
import signal
import subprocess
import threading
import time
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path

from dlas.core.text import printable

_PR_SET_PDEATHSIG = 1
_TAIL_LINES = 20
_LINE = 2000  # characters of a line of output
_LIBC = ctypes.CDLL(None)  # loaded before any fork


@dataclass(frozen=True)
class Ended:
    """How a program ended.

    Attributes:
        code: Exit code; negative for a signal; None when it was stopped because its time was up.
        seconds: How long it ran.
        tail: The last lines it wrote.
    """

    code: int | None
    seconds: float
    tail: str

    @property
    def signal(self) -> str:
        """Name of the signal that killed it, or an empty string."""
        if self.code is None or self.code >= 0:
            return ""
        try:
            return signal.Signals(-self.code).name
        except ValueError:
            return f"signal {-self.code}"


def run_program(
    command: Sequence[str | Path],
    *,
    folder: Path,
    timeout_s: float,
    env: Mapping[str, str] | None = None,
    on_line: Callable[[str], None] = lambda line: None,
) -> Ended:
    """Run a program to its end and return how that was; it dies with this process.

    Args:
        command: Program and arguments.
        folder: Where it runs and keeps its temporary files.
        timeout_s: Longest time; then it is killed with everything it started.
        env: Environment variables to add.
        on_line: Told every line the program writes, as it comes, from another thread.

    Raises:
        OSError: There is no such program.
    """
    start = time.monotonic()
    process = subprocess.Popen(
        [str(part) for part in command],
        cwd=folder,
        stdin=subprocess.DEVNULL,
        stdout=subprocess.PIPE,
        stderr=subprocess.STDOUT,
        env={**os.environ, "TMPDIR": str(folder), **(env or {})},
        start_new_session=True,
        preexec_fn=_die_with_parent,
    )
    lines: list[str] = []
    reader = threading.Thread(target=_read, args=(process, lines, on_line), daemon=True)
    reader.start()
    code: int | None = None
    try:
        with contextlib.suppress(subprocess.TimeoutExpired):
            process.wait(timeout_s)
            code = process.returncode
    finally:  # also on Ctrl-C; a group outlives its leader when that left children behind
        with contextlib.suppress(ProcessLookupError, PermissionError):
            os.killpg(process.pid, signal.SIGKILL)
        process.wait()
        reader.join(5)
    return Ended(code, time.monotonic() - start, "\n".join(lines[-_TAIL_LINES:]))


def _read(process: subprocess.Popen[bytes], lines: list[str], on_line: Callable[[str], None]) -> None:
    assert process.stdout is not None
    with process.stdout as stream:
        for raw in iter(lambda: stream.readline(_LINE * 4), b""):
            text = re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", raw.decode(errors="replace"))
            text = printable(text.rstrip().rsplit("\r", 1)[-1], _LINE, lines=False).rstrip()
            if text:
                lines.append(text)
                del lines[:-_TAIL_LINES]
                on_line(text)


def _die_with_parent() -> None:
    _LIBC.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
