"""The study file: each finished point exactly once, whatever happens in between."""

from __future__ import annotations

import os
import signal
import sqlite3
import subprocess
import sys
import time
from pathlib import Path

import pytest

from dlas.core.errors import DlasError
from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.explore.result import Point
from dlas.explore.storage import SCHEMA, SqliteStorage


def point(key: str, value: float = 1.0) -> Point:
    record = Record(Outcome.OK, figures={"latency_ms": Figure(value, "ms", Source.MEASURED, 0.9, 1.1, 30)})
    return Point(key, {"compress": "none", "backend": "onnxruntime"}, record, seconds=0.5)


def test_points_come_back_as_they_went_in(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    storage.put_study("s", {"keys": ["a", "b"]})
    storage.put_point("s", point("a"))
    storage.put_point("s", point("b", 2.0))
    storage.put_point("s", point("a", 3.0))
    storage.close()
    again = SqliteStorage(tmp_path / "study.db", create=False)
    found = again.points("s")
    assert sorted(found) == ["a", "b"]
    assert found["a"] == point("a", 3.0)
    assert again.study("s")["keys"] == ["a", "b"]
    again.forget("s", ["a"])
    assert list(again.points("s")) == ["b"]


def test_an_unknown_study_is_refused_by_name(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    storage.put_study("here", {})
    with pytest.raises(DlasError, match=r"no study .there..*here"):
        storage.study("there")


def test_a_file_of_a_newer_version_is_refused(tmp_path: Path) -> None:
    SqliteStorage(tmp_path / "study.db").close()
    db = sqlite3.connect(tmp_path / "study.db")
    db.execute(f"PRAGMA user_version = {SCHEMA + 1}")
    db.close()
    with pytest.raises(DlasError, match="newer dlas"):
        SqliteStorage(tmp_path / "study.db")


def test_something_else_is_refused(tmp_path: Path) -> None:
    (tmp_path / "study.db").write_bytes(b"this is no database, however long it may be" * 100)
    with pytest.raises(DlasError, match="cannot be used as a study file"):
        SqliteStorage(tmp_path / "study.db")
    with pytest.raises(DlasError, match="no such study file"):
        SqliteStorage(tmp_path / "none.db", create=False)


def test_an_unwritable_place_is_refused(tmp_path: Path) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(DlasError, match="cannot be used as a study file"):
        SqliteStorage(tmp_path / "file" / "study.db")


WRITER = """
import sys
from pathlib import Path
sys.path.insert(0, sys.argv[2])
from test_storage import point
from dlas.explore.storage import SqliteStorage
storage = SqliteStorage(Path(sys.argv[1]))
print("ready", flush=True)
for i in range(100000):
    storage.put_point("s", point(f"{i:06d}", float(i + 1)))
"""


def test_a_killed_writer_leaves_whole_points(tmp_path: Path) -> None:
    path = tmp_path / "study.db"
    child = subprocess.Popen(
        [sys.executable, "-c", WRITER, str(path), str(Path(__file__).parent)], stdout=subprocess.PIPE
    )
    assert child.stdout is not None
    assert child.stdout.readline() == b"ready\n"
    time.sleep(0.3)
    os.kill(child.pid, signal.SIGKILL)
    child.wait()
    child.stdout.close()
    found = SqliteStorage(path, create=False).points("s")
    assert found
    # Every point up to the last one is there, and each says what it should.
    assert list(found) == [f"{i:06d}" for i in range(len(found))]
    assert all(p.record.figures["latency_ms"].value == i + 1 for i, p in enumerate(found.values()))


def test_a_file_that_breaks_later_is_told_in_one_line(tmp_path: Path) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    other = sqlite3.connect(tmp_path / "study.db")
    other.execute("DROP TABLE studies")
    other.close()
    with pytest.raises(DlasError, match="cannot be used as a study file"):
        storage.studies()
    with pytest.raises(DlasError, match="cannot be used as a study file"):
        storage.put_study("s", {})
    storage.close()
