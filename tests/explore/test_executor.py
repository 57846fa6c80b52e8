"""Work and measurements of several processes keep out of each other's way."""

from __future__ import annotations

import threading
import time
from pathlib import Path

import pytest

from dlas.core.errors import DlasError
from dlas.explore.executor import ProcessExecutor


def test_nobody_measures_while_another_works(tmp_path: Path) -> None:
    one, two = ProcessExecutor(home=tmp_path / "cache"), ProcessExecutor(home=tmp_path / "cache")
    seen: list[str] = []

    def measure() -> None:
        with two.quiet():
            seen.append("measured")

    with one.busy(), one.busy():
        thread = threading.Thread(target=measure)
        thread.start()
        time.sleep(0.2)
        seen.append("worked")
    thread.join(timeout=30)
    assert seen == ["worked", "measured"]
    assert one.call("os.path:basename", "a/b") == "b"
    one.close()
    two.close()


def test_a_cache_that_cannot_be_written_is_one_line(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    executor = ProcessExecutor(home=tmp_path / "file" / "cache")
    with pytest.raises(DlasError, match="DLAS_CACHE"):
        executor.call("os.path:basename", "a/b")
