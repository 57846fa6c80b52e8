"""A foreign program is watched: its end, its time limit, its group, its words."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dlas.core.subprocesses import run_program


def python(code: str) -> list[str]:
    return [sys.executable, "-I", "-c", textwrap.dedent(code)]


def is_gone(pid: int) -> bool:
    try:
        state = Path(f"/proc/{pid}/stat").read_text().rsplit(")", 1)[1].split()[0]
    except (FileNotFoundError, ProcessLookupError):
        return True
    return state == "Z"


def wait_gone(pid: int, limit_s: float = 5.0) -> bool:
    until = time.monotonic() + limit_s
    while not is_gone(pid) and time.monotonic() < until:
        time.sleep(0.02)
    return is_gone(pid)


def test_the_end_and_the_last_words(tmp_path: Path) -> None:
    heard: list[str] = []
    ended = run_program(
        python("import sys\nfor i in range(40): print('line', i)\nprint('\\x1b[31mred')\nsys.exit(3)"),
        folder=tmp_path,
        timeout_s=30,
        on_line=heard.append,
    )  # fmt: skip
    assert ended.code == 3
    assert ended.signal == ""
    assert len(ended.tail.splitlines()) == 20
    assert "line 39" in ended.tail
    assert "\x1b" not in ended.tail
    assert len(heard) == 41


def test_a_signal_has_a_name(tmp_path: Path) -> None:
    ended = run_program(
        python("import os, signal; os.kill(os.getpid(), signal.SIGSEGV)"), folder=tmp_path, timeout_s=30
    )
    assert ended.signal == "SIGSEGV"


def test_what_takes_too_long_is_killed_with_its_children(tmp_path: Path) -> None:
    code = """
        import os, subprocess, sys, time
        child = subprocess.Popen([sys.executable, "-c", "import time; time.sleep(60)"])
        print(os.getpid(), child.pid, flush=True)
        time.sleep(60)
    """
    heard: list[str] = []
    start = time.monotonic()
    ended = run_program(python(code), folder=tmp_path, timeout_s=3, on_line=heard.append)
    assert ended.code is None
    assert time.monotonic() - start < 30
    for pid in map(int, heard[0].split()):
        assert wait_gone(pid)


def test_it_does_not_outlive_who_started_it(tmp_path: Path) -> None:
    code = f"""
        from pathlib import Path
        from dlas.core.subprocesses import run_program
        command = [{sys.executable!r}, "-c", "import os, time; print(os.getpid(), flush=True); time.sleep(60)"]
        run_program(command, folder=Path({str(tmp_path)!r}), timeout_s=60, on_line=lambda t: print(t, flush=True))
    """
    parent = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert parent.stdout is not None
    pid = int(parent.stdout.readline())
    parent.send_signal(signal.SIGKILL)
    parent.wait()
    assert wait_gone(pid)


def test_no_such_program(tmp_path: Path) -> None:
    with pytest.raises(FileNotFoundError):
        run_program([tmp_path / "none"], folder=tmp_path, timeout_s=1)
