from __future__ import annotations

import errno
import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import threading
import time
from enum import StrEnum
from pathlib import Path

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from dlas.core.cache import MANIFEST, Cache, default_root, kept_folder, key_of
from dlas.core.errors import DlasError, StorageError

KEY = key_of("key")


class Made:
    """Counts how often it fills a folder."""

    def __init__(self, content=b"content"):
        self.count = 0
        self.content = content

    def __call__(self, folder):
        self.count += 1
        (folder / "sub").mkdir()
        (folder / "sub" / "data.bin").write_bytes(self.content)
        (folder / "name.txt").write_text("name")


def test_keys_tell_values_and_types_apart():
    values = [
        "1", 1, 1.0, True, None, b"1", [1], [[1]], {"a": 1}, {"a": "1"}, "", [], {}, 0, 0.0, -0.0, False, float("nan"),
        float("inf"), ["s", "1"], ["b", "1"], {"a": 1, "b": 2},
    ]  # fmt: skip
    assert len({key_of(v) for v in values}) == len(values)
    assert key_of("a", "b") != key_of("ab") != key_of(["a", "b"])


def test_keys_do_not_depend_on_order_of_names_or_kind_of_sequence():
    class Colour(StrEnum):
        RED = "red"

    assert key_of({"a": 1, "b": (2, 3)}) == key_of({"b": [2, 3], "a": 1})
    assert key_of(Colour.RED) == key_of("red")
    # Keys outlive processes: a changed value here means that every user's cache is lost.
    assert key_of("prune", {"sparsity": 0.5}, 3, None, b"x").startswith("a4e3dac7097c096e")


@given(
    st.recursive(st.none() | st.booleans() | st.integers() | st.text() | st.binary(), lambda c: st.lists(c))
)
def test_keys_are_hexadecimal(value):
    assert len(key_of(value)) == 64
    assert key_of(value) == key_of(value)


@pytest.mark.parametrize("value", [object(), {1: 2}, np.zeros(3), {1, 2}])
def test_keys_refuse_what_need_not_say_what_it_is(value):
    with pytest.raises(TypeError, match="cache key"):
        key_of(value)


def test_made_once_and_found_again(tmp_path):
    make = Made()
    folder = Cache(tmp_path).folder(KEY, make)
    assert folder == tmp_path / KEY[:2] / KEY
    assert (folder / "sub" / "data.bin").read_bytes() == b"content"
    assert Cache(tmp_path).folder(KEY, make) == folder
    assert make.count == 1
    assert Cache(tmp_path).has(KEY)
    assert os.listdir(folder.parent) == [KEY]


def test_default_root(monkeypatch, tmp_path):
    monkeypatch.setenv("DLAS_CACHE", "~/somewhere")
    assert default_root() == tmp_path.home() / "somewhere"
    monkeypatch.delenv("DLAS_CACHE")
    monkeypatch.setenv("XDG_CACHE_HOME", str(tmp_path))
    assert default_root() == tmp_path / "dlas"
    monkeypatch.delenv("XDG_CACHE_HOME")
    assert default_root() == tmp_path.home() / ".cache" / "dlas"


def truncate(folder):
    (folder / "sub" / "data.bin").write_bytes(b"cont")


def flip(folder):
    (folder / "sub" / "data.bin").write_bytes(b"contenT")


def remove_file(folder):
    (folder / "name.txt").unlink()


def remove_manifest(folder):
    (folder / MANIFEST).unlink()


def garble_manifest(folder):
    (folder / MANIFEST).write_text('{"files": {"name.txt": 3}}')


def empty_manifest(folder):
    (folder / MANIFEST).write_text("")


@pytest.mark.parametrize(
    "damage", [truncate, flip, remove_file, remove_manifest, garble_manifest, empty_manifest]
)
def test_damage_is_noticed_and_mended(tmp_path, damage, caplog):
    make = Made()
    damage(Cache(tmp_path).folder(KEY, make))
    folder = Cache(tmp_path).folder(KEY, make)
    assert make.count == 2
    assert (folder / "sub" / "data.bin").read_bytes() == b"content"
    assert "is rebuilt" in caplog.text
    assert json.loads((folder / MANIFEST).read_text())["files"]["name.txt"]["bytes"] == 4


def test_time_stamps_do_not_count(tmp_path):
    make = Made()
    folder = Cache(tmp_path).folder(KEY, make)
    for name in ("name.txt", MANIFEST, "."):
        os.utime(folder / name, (0, 0))
    Cache(tmp_path).folder(KEY, make)
    assert make.count == 1


def test_failed_make_leaves_no_entry(tmp_path):
    def broken(folder):
        (folder / "half").write_text("")
        raise FileNotFoundError("of the step itself")

    cache = Cache(tmp_path)
    with pytest.raises(FileNotFoundError, match="of the step itself"):
        cache.folder(KEY, broken)
    assert not (tmp_path / KEY[:2]).exists()
    assert os.listdir(tmp_path / ".work") == []
    make = Made()
    cache.folder(KEY, make)
    assert make.count == 1


def test_size_and_clear(tmp_path):
    cache = Cache(tmp_path)
    assert cache.size() == 0
    (tmp_path / "mine.txt").write_text("not of the cache")
    cache.folder(KEY, Made(b"x" * 1000))
    cache.folder(key_of(2), Made(b"x" * 1000))
    assert 2000 < cache.size() < 4000
    cache.clear()
    assert cache.size() == 0
    assert os.listdir(tmp_path) == ["mine.txt"]
    make = Made()
    cache.folder(KEY, make)
    assert make.count == 1


def test_clear_leaves_what_is_being_made(tmp_path):
    cache = Cache(tmp_path)

    def slow(folder):
        (folder / "a").write_text("a")
        Cache(tmp_path).clear()
        (folder / "b").write_text("b")

    folder = cache.folder(KEY, slow)
    assert sorted(os.listdir(folder)) == [MANIFEST, "a", "b"]


def test_unusable_root_is_explained(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(DlasError, match="DLAS_CACHE") as caught:
        Cache(tmp_path / "file").folder(KEY, Made())
    assert caught.value.exit_code == 2


def test_key_cannot_leave_the_root(tmp_path):
    with pytest.raises(ValueError, match="not a cache key"):
        Cache(tmp_path).folder("../../etc", Made())


def test_threads_make_a_key_once(tmp_path):
    make = Made()

    def slow(folder):
        time.sleep(0.1)
        make(folder)

    threads = [threading.Thread(target=lambda: Cache(tmp_path).folder(KEY, slow)) for _ in range(4)]
    for thread in threads:
        thread.start()
    for thread in threads:
        thread.join()
    assert make.count == 1


SCRIPT = """
    import os, sys, time
    from pathlib import Path
    from dlas.core.cache import Cache

    def make(folder):
        (folder / "half").write_text("x")
        with open(sys.argv[2], "a") as log:
            log.write("made\\n")
        time.sleep(float(sys.argv[3]))
        (folder / "whole").write_text("x")

    Cache(Path(sys.argv[1])).folder(sys.argv[4], make)
"""


def start(root, log, seconds):
    command = [sys.executable, "-c", textwrap.dedent(SCRIPT), str(root), str(log), str(seconds), KEY]
    return subprocess.Popen(command)


def test_processes_make_a_key_once(tmp_path):
    processes = [start(tmp_path / "c", tmp_path / "log", 0.3) for _ in range(3)]
    assert [p.wait(30) for p in processes] == [0, 0, 0]
    assert (tmp_path / "log").read_text() == "made\n"


def test_killed_maker_leaves_neither_lock_nor_half_entry(tmp_path):
    log = tmp_path / "log"
    process = start(tmp_path / "c", log, 60)
    while not log.exists():
        time.sleep(0.02)
    process.send_signal(signal.SIGKILL)
    process.wait()
    make = Made()
    folder = Cache(tmp_path / "c").folder(KEY, make)
    assert make.count == 1
    assert not (folder / "half").exists()
    assert os.listdir(folder.parent) == [KEY]


def begin(cache, key, text="half"):
    """A step that keeps something and fails."""

    def make(folder):
        kept_folder(folder).mkdir(exist_ok=True)
        (kept_folder(folder) / "state").write_text(text)
        raise BrokenError

    with pytest.raises(BrokenError):
        cache.folder(key, make)


class BrokenError(Exception):
    pass


def test_what_a_step_kept_is_there_when_it_is_tried_again_and_gone_when_it_is_done(tmp_path):
    begin(Cache(tmp_path), KEY)
    found = []

    def make(folder):
        found.append((kept_folder(folder) / "state").read_text())

    Cache(tmp_path).folder(KEY, make)
    assert found == ["half"]
    assert os.listdir(tmp_path / ".work") == []


def test_only_the_newest_unfinished_steps_are_kept(tmp_path):
    keys = [key_of(n) for n in range(20)]
    for age, key in enumerate(keys):
        begin(Cache(tmp_path), key)
        os.utime(tmp_path / ".work" / f"{key}.kept", (age, age))
    Cache(tmp_path).folder(KEY, Made())
    assert sorted(os.listdir(tmp_path / ".work")) == sorted(f"{key}.kept" for key in keys[4:])
    assert Cache(tmp_path).size() > 0
    Cache(tmp_path).clear()
    assert os.listdir(tmp_path) == []


def test_what_a_killed_process_left_of_another_step_goes_too(tmp_path):
    other = key_of("other")
    process = subprocess.Popen(
        [
            sys.executable,
            "-c",
            textwrap.dedent(SCRIPT),
            str(tmp_path / "c"),
            str(tmp_path / "log"),
            "60",
            other,
        ]
    )
    while not (tmp_path / "log").exists():
        time.sleep(0.02)
    Cache(tmp_path / "c").folder(KEY, Made())
    assert len(os.listdir(tmp_path / "c" / ".work")) == 2  # alive: its lock and its folder
    process.kill()
    process.wait()
    Cache(tmp_path / "c").folder(KEY, Made())
    assert not (tmp_path / "c" / ".work").exists()


def test_a_cache_removed_meanwhile_is_said(tmp_path):
    cache = Cache(tmp_path / "c")
    cache.folder(KEY, Made())

    def remove_all(folder):
        shutil.rmtree(tmp_path / "c")
        (folder / "result").write_text("")

    def remove_input(folder):
        shutil.rmtree(tmp_path / "c" / KEY[:2])
        raise BrokenError

    for make in (remove_all, remove_input):
        with pytest.raises(StorageError, match="was removed while it was used"):
            cache.folder(key_of(2), make)
        cache.folder(KEY, Made())
    begin(cache, key_of(3))  # another failure passes through


def test_a_cache_that_can_only_be_read_is_of_use(tmp_path, monkeypatch):
    Cache(tmp_path).folder(KEY, Made())
    (tmp_path / ".work").mkdir(exist_ok=True)
    (tmp_path / ".work" / f"{KEY}.lock").touch()

    def refuse(*_, **__):
        raise PermissionError(13, "Permission denied")

    monkeypatch.setattr("dlas.core.cache.locked", refuse)
    Cache(tmp_path).folder(KEY, Made())
    with pytest.raises(DlasError, match="DLAS_CACHE"):
        Cache(tmp_path).folder(key_of(2), Made())


def test_no_home(monkeypatch):
    for name in ("DLAS_CACHE", "XDG_CACHE_HOME"):
        monkeypatch.delenv(name, raising=False)

    def homeless():
        raise RuntimeError("Could not determine home directory.")

    monkeypatch.setattr(Path, "home", homeless)
    with pytest.raises(DlasError, match="DLAS_CACHE"):
        default_root()


@pytest.mark.parametrize(
    ("number", "where", "expected"),
    [
        (errno.EACCES, "/data/rows.npz", PermissionError),
        (errno.EISDIR, None, IsADirectoryError),
        (errno.ENOSPC, None, StorageError),
        (errno.EACCES, "made", StorageError),
    ],
)
def test_the_cache_is_blamed_for_its_own_files_only(tmp_path, number, where, expected):
    def make(folder):
        raise OSError(number, os.strerror(number), str(folder / where) if where else None)

    with pytest.raises(expected):
        Cache(tmp_path).folder(KEY, make)


def test_files_that_vanish_do_not_count(tmp_path, monkeypatch):
    cache = Cache(tmp_path)
    cache.folder(KEY, Made())
    walk = os.walk

    def walk_and_remove(place):
        for base, folders, names in walk(place):
            for name in names[:1]:
                (Path(base) / name).unlink()
            yield base, folders, names

    whole = cache.size()
    monkeypatch.setattr(os, "walk", walk_and_remove)
    assert 0 <= cache.size() < whole
