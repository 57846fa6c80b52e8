"""Faults of the machine while a command runs: files that vanish, clocks that go back, bytes that flip."""

from __future__ import annotations

import contextlib
import os
import shutil
import signal
import sqlite3
import subprocess
import sys
import textwrap
import time
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
from faults_bench import Bench, Outcome

from dlas.core.cache import MANIFEST
from dlas.explore.pipeline import first_rows
from dlas.explore.storage import SqliteStorage

RUN = ["run", "net.onnx", "--data", "rows.npz", "--backend", "onnxruntime", "--threads", "1", "--quick"]
RUN += ["--compress", "float16", "--out", "out"]


def when(bench: Bench, ready: Callable[[], bool], then: Callable[[], object], words: list[str]) -> Outcome:
    """Run a command and do something to it as soon as ``ready``; how it ended."""
    child = bench.start(*words)
    until = time.monotonic() + 120
    while child.poll() is None and not ready():
        assert time.monotonic() < until, "it never gets that far"
        time.sleep(0.005)
    then()
    child.wait(300)
    return bench.outcome(child)


def entries(bench: Bench) -> list[Path]:
    return [p.parent for p in bench.cache.glob(f"??/*/{MANIFEST}")]


def flip(path: Path, at: float = 0.5) -> None:
    content = bytearray(path.read_bytes())
    content[int(at * (len(content) - 1))] ^= 1
    path.write_bytes(content)


@pytest.mark.slow
@pytest.mark.parametrize("victim", ["net.onnx", "rows.npz"])
@pytest.mark.parametrize("how", ["deleted", "truncated", "replaced"])
def test_an_input_goes_in_the_middle(bench: Bench, victim: str, how: str) -> None:
    path = bench.files / victim
    sound = path.read_bytes()

    def harm() -> None:
        if how == "deleted":
            path.unlink()
        else:
            path.write_bytes(sound[: len(sound) // 2] if how == "truncated" else b"another file")

    done = when(bench, lambda: len(entries(bench)) >= 1, harm, RUN)
    done.assert_well_or_clear()
    path.write_bytes(sound)
    bench.run(*RUN).assert_well()
    assert len(bench.finished()) == 2
    assert bench.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("count", [1, 2, 3, 5])
def test_the_cache_is_removed_in_the_middle(bench: Bench, count: int) -> None:
    done = when(bench, lambda: len(entries(bench)) >= count, lambda: shutil.rmtree(bench.cache, True), RUN)
    done.assert_well_or_clear()
    bench.run(*RUN).assert_well()
    assert set(outcomes(bench)) == {"ok"}, "a row says that the cache was gone, and stays"
    assert bench.leftovers() == []


def outcomes(bench: Bench) -> list[str]:
    return [row[0] for row in query(bench, "SELECT outcome FROM points")]


def query(bench: Bench, text: str) -> list[tuple]:
    with contextlib.closing(sqlite3.connect(bench.files / "out" / "study.db")) as db:
        return db.execute(text).fetchall()


@pytest.mark.slow
def test_rows_in_the_cache_are_cut_short_while_they_are_read(bench: Bench) -> None:
    def ready() -> bool:
        return any((e / "x.npy").exists() for e in entries(bench))

    def harm() -> None:
        for path in bench.cache.rglob("x.npy"):
            os.truncate(path, 200)

    when(bench, ready, harm, RUN).assert_well_or_clear()
    shutil.rmtree(bench.files / "out", ignore_errors=True)
    bench.run(*RUN).assert_well()


def test_first_rows_are_read_and_not_mapped(tmp_path: Path) -> None:
    x = np.arange(600, dtype=np.float32).reshape(10, 3, 4, 5)
    for array in (x, np.asfortranarray(x), x[:, 0, 0, 0]):
        np.save(tmp_path / "x.npy", array)
        for count in (0, 3, 10, 99):
            got = first_rows(tmp_path / "x.npy", count)
            np.testing.assert_array_equal(got, array[:count])
            assert not isinstance(got, np.memmap)
    os.truncate(tmp_path / "x.npy", 140)
    with pytest.raises(ValueError, match="reshape"):
        first_rows(tmp_path / "x.npy", 10)


@pytest.mark.slow
def test_a_flipped_byte_in_every_file_of_the_cache(bench: Bench) -> None:
    bench.run(*RUN).assert_well()
    for hit in (lambda p: p.name != MANIFEST, lambda p: p.name == MANIFEST):
        for at in (0.0, 0.5, 1.0):
            for path in [p for p in bench.cache.glob("??/*/**/*") if p.is_file() and hit(p)]:
                flip(path, at)
            shutil.rmtree(bench.files / "out")
            again = bench.run(*RUN)
            again.assert_well()
            assert "is rebuilt" in again.errors
            assert set(outcomes(bench)) == {"ok"}
    assert bench.leftovers() == []


@pytest.mark.slow
@pytest.mark.parametrize("at", [0.0, 0.001, 0.3, 0.6, 0.9])
def test_a_flipped_byte_in_the_study_file(bench: Bench, at: float) -> None:
    bench.run(*RUN).assert_well()
    database = bench.files / "out" / "study.db"
    flip(database, at)
    for words in (["study", "show", "--out", "out"], RUN):
        bench.run(*words).assert_well_or_clear()
    shutil.rmtree(bench.files / "out")
    bench.run(*RUN).assert_well()


COMMITS = """
    import sys
    from pathlib import Path
    from dlas.core.figure import Outcome, Record
    from dlas.explore.result import Point
    from dlas.explore.storage import SqliteStorage

    storage = SqliteStorage(Path(sys.argv[1]))
    for number in range(10_000):
        storage.put_point("s", Point(f"{int(sys.argv[2]) + number}", {"n": "x" * 2000}, Record(Outcome.OK), False, 0.0))
        print(int(sys.argv[2]) + number, flush=True)
"""


def test_a_study_file_whose_writer_is_killed_in_the_middle_of_a_commit(tmp_path: Path) -> None:
    database, said = tmp_path / "study.db", -1
    for turn in range(4):
        command = [sys.executable, "-c", textwrap.dedent(COMMITS), str(database), str(said + 1)]
        with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as child:
            assert child.stdout is not None
            lines = [int(child.stdout.readline()) for _ in range(5 + 7 * turn)]
            time.sleep(0.003 * turn)
            child.kill()
            lines += [int(line) for line in child.stdout.read().split("\n")[:-1] if line]
        said = lines[-1]
        storage = SqliteStorage(database)
        keys = {int(key) for key in storage.points("s")}
        storage.close()
        assert set(range(said + 1)) <= keys, "a point that was said to be stored is lost"
        assert len(keys) <= said + 2
        said = max(keys)


CLOCK = """
    import time
    _true, _calls = time.time, 0

    def back():
        global _calls
        _calls += 1
        return _true() - (86400.0 if _calls > {after} else 0.0)

    time.time = back
"""


def set_back(bench: Bench, after: int) -> None:
    """From the next command on, the clock goes back by a day once it has been read ``after`` times."""
    site = bench.root / "site"
    site.mkdir()
    (site / "sitecustomize.py").write_text(textwrap.dedent(CLOCK.format(after=after)))
    bench.env["PYTHONPATH"] = os.pathsep.join(filter(None, [str(site), bench.env.get("PYTHONPATH", "")]))


@pytest.mark.slow
@pytest.mark.parametrize("after", [0, 3, 30])
def test_the_clock_goes_back_by_a_day(bench: Bench, after: int) -> None:
    set_back(bench, after)
    bench.run(*RUN).assert_well()
    assert all(0 < s < 300 for (s,) in query(bench, "SELECT seconds FROM points"))
    before = bench.finished()
    bench.run(*RUN).assert_well()
    assert bench.finished() == before
    assert len(before) == 2


def test_the_study_that_ran_last_is_not_told_by_the_clock(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    storage = SqliteStorage(tmp_path / "study.db")
    storage.put_study("early", {})
    yesterday = time.time() - 86400
    monkeypatch.setattr(time, "time", lambda: yesterday)
    storage.put_study("late", {})
    assert storage.studies() == ["late", "early"]
    storage.close()


def test_locks_that_nobody_holds_do_not_count(bench: Bench) -> None:
    command = ["compress", "net.onnx", "float16", "-o", "half.onnx", "--force"]
    bench.run(*command).assert_well()
    key = entries(bench)[0].name
    shutil.rmtree(bench.cache)
    work = bench.cache / ".work"
    (work / f"{key}.0123abcd").mkdir(parents=True)
    (work / f"{key}.0123abcd" / "model.onnx").write_bytes(b"half")
    for name in (key, "0" * 64):
        (work / f"{name}.lock").touch()
    started = time.monotonic()
    bench.run(*command).assert_well()
    assert time.monotonic() - started < 60
    assert bench.leftovers() == []


@pytest.mark.slow
def test_no_folder_for_temporary_files(bench: Bench) -> None:
    bench.env["TMPDIR"] = str(bench.root / "nowhere")
    bench.run(*RUN).assert_well()


SOMEBODY_ELSE = """
    import os, sys
    os.setgid(12345)
    os.setuid(12345)
    os.execv(sys.executable, [sys.executable, *sys.argv[1:]])
"""


@pytest.mark.skipif(os.geteuid() != 0, reason="only root can run a command as another user")
def test_a_user_without_home_and_one_whose_cache_belongs_to_another(bench: Bench) -> None:
    start = [sys.executable, "-c", textwrap.dedent(SOMEBODY_ELSE)]
    if subprocess.run([*start, "-c", "import dlas"], check=False, env=bench.env, cwd="/").returncode != 0:
        pytest.skip("another user cannot read dlas here")
    words = [*start, "-m", "dlas.cli.main", "compress", "digits-cnn", "float16", "-o", "never.onnx"]
    without_home = {k: v for k, v in bench.env.items() if k not in ("HOME", "XDG_CACHE_HOME", "TMPDIR")}
    for cache in ("", str(bench.cache)):
        env = {**without_home, "DLAS_CACHE": cache}
        done = subprocess.run(words, env=env, capture_output=True, text=True, check=False, cwd="/")
        Outcome(done.returncode, done.stdout, done.stderr).assert_clear("DLAS_CACHE")


@pytest.mark.slow
def test_a_training_that_is_asked_to_stop(bench: Bench) -> None:
    """SIGTERM, as a scheduler sends it, is a kill like any other."""
    words = ["compress", "net.onnx", "channel:ratio=0.3,finetune_epochs=40,batch_size=8,lr=0.01"]
    words += ["--data", "rows.npz", "-o", "small.onnx", "--force"]
    child = bench.start(*words)
    until = time.monotonic() + 120
    # One that is still being written lies in a scratch folder, and is gone with its writer.
    while not [p for p in bench.cache.rglob("*.ckpt") if not any("scratch" in part for part in p.parts)]:
        assert child.poll() is None
        assert time.monotonic() < until
        time.sleep(0.01)
    child.send_signal(signal.SIGTERM)
    assert child.wait(60) in (-signal.SIGTERM, 143)
    again = bench.run(*words)
    again.assert_well()
    assert "resumed at step" in again.errors
    assert bench.leftovers() == []
