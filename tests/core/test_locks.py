"""Locks between processes: one holder, given back on death, no file left behind."""

from __future__ import annotations

import errno
import os
import signal
import subprocess
import sys
import threading
import time
from pathlib import Path

import pytest

from dlas.core.errors import StorageError
from dlas.core.locks import folder_lock, locked

HOLD = """
import sys, time
from pathlib import Path
from dlas.core.locks import folder_lock, locked
kind, path = sys.argv[1], Path(sys.argv[2])
with locked(path) if kind == "file" else folder_lock(path, shared=kind == "shared"):
    print("held", flush=True)
    time.sleep(600)
"""


def holder(kind: str, path: Path) -> subprocess.Popen[str]:
    child = subprocess.Popen([sys.executable, "-c", HOLD, kind, str(path)], stdout=subprocess.PIPE, text=True)
    assert child.stdout is not None
    assert child.stdout.readline() == "held\n"
    return child


def test_a_lock_has_one_holder_and_dies_with_it(tmp_path: Path) -> None:
    path = tmp_path / "folder" / "a.lock"
    child = holder("file", path)
    with locked(path, wait=False) as got:
        assert not got
    child.send_signal(signal.SIGKILL)
    child.wait()
    assert path.exists()
    with locked(path, wait=False) as got:
        assert got
    assert not path.exists()


def test_many_threads_take_turns(tmp_path: Path) -> None:
    path, inside, most = tmp_path / "a.lock", [0], [0]

    def work() -> None:
        for _ in range(50):
            with locked(path):
                inside[0] += 1
                most[0] = max(most[0], inside[0])
                time.sleep(0)
                inside[0] -= 1

    threads = [threading.Thread(target=work) for _ in range(8)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert most == [1]
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize(
    ("held", "shared", "got"), [("shared", True, True), ("shared", False, False), ("alone", True, False)]
)
def test_a_folder_is_held_together_or_alone(tmp_path: Path, held: str, shared: bool, got: bool) -> None:
    child = holder(held, tmp_path)
    with folder_lock(tmp_path, shared=shared, wait=False) as found:
        assert found == got
    child.kill()
    child.wait()
    with folder_lock(tmp_path, shared=False, wait=False) as found:
        assert found
    assert os.listdir(tmp_path) == []


@pytest.mark.parametrize("number", [errno.ENOLCK, errno.EOPNOTSUPP])
def test_a_file_system_without_locks_is_named(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, number: int
) -> None:
    def refuse(*_: object) -> None:
        raise OSError(number, os.strerror(number))

    monkeypatch.setattr("fcntl.flock", refuse)
    with pytest.raises(StorageError, match=r"no locks.*local disk"), locked(tmp_path / "a.lock"):
        pass
    with pytest.raises(StorageError, match=r"no locks.*local disk"), folder_lock(tmp_path, shared=True):
        pass
