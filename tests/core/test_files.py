from __future__ import annotations

import errno
import os
import shutil
import signal
import subprocess
import sys
import tempfile
import textwrap
from pathlib import Path

import pytest

from dlas.core.errors import DlasError, StorageError
from dlas.core.files import atomic_folder, atomic_path, atomic_paths, only_new, scratch_folder, write_atomic


class BrokenError(Exception):
    pass


def break_off(writer, fill):
    with writer as temporary:
        fill(temporary)
        raise BrokenError


def test_writes_bytes_and_text(tmp_path):
    write_atomic(tmp_path / "a", b"\x00\xff")
    write_atomic(tmp_path / "b", "ä")
    assert (tmp_path / "a").read_bytes() == b"\x00\xff"
    assert (tmp_path / "b").read_bytes() == "ä".encode()


def test_failure_keeps_the_old_file_and_leaves_nothing_behind(tmp_path):
    target = tmp_path / "out.json"
    write_atomic(target, "old")
    names = []

    def fill(temporary):
        temporary.write_text("half")
        names.append(temporary)

    with pytest.raises(BrokenError):
        break_off(atomic_path(target), fill)
    assert names[0].name == "out.json"
    assert names[0].parent.parent == tmp_path
    assert target.read_text() == "old"
    assert os.listdir(tmp_path) == ["out.json"]


def test_folder_appears_whole_and_replaces_the_old_one(tmp_path):
    target = tmp_path / "out"
    for text in ("one", "two"):
        with atomic_folder(target) as temporary:
            (temporary / text).write_text(text)
            assert not (target / text).exists()
        assert os.listdir(target) == [text]
    with pytest.raises(BrokenError):
        break_off(atomic_folder(target), lambda folder: (folder / "three").write_text(""))
    assert os.listdir(target) == ["two"]
    assert os.listdir(tmp_path) == ["out"]


@pytest.mark.parametrize("write", [lambda p: write_atomic(p, ""), lambda p: atomic_folder(p).__enter__()])
def test_bad_places_are_named(tmp_path, write):
    with pytest.raises(DlasError, match="does not exist") as caught:
        write(tmp_path / "no" / "out")
    assert caught.value.exit_code == 2
    (tmp_path / "file").write_text("")
    with pytest.raises(DlasError, match="is not a folder"):
        write(tmp_path / "file" / "out")


def test_unwritable_folder(tmp_path, monkeypatch):
    monkeypatch.setattr(os, "access", lambda *_: False)  # permissions do not bind root
    with pytest.raises(DlasError, match="not writable"):
        write_atomic(tmp_path / "out", "")


def test_name_that_the_system_refuses(tmp_path):
    (tmp_path / "folder").mkdir()
    with pytest.raises(DlasError, match="Is a directory"):
        write_atomic(tmp_path / "folder", "")
    with pytest.raises(DlasError, match="too long"):
        write_atomic(tmp_path / ("x" * 300), "")
    assert os.listdir(tmp_path) == ["folder"]


def test_errors_of_the_block_pass_through(tmp_path):
    with pytest.raises(FileNotFoundError), atomic_path(tmp_path / "out"):
        (tmp_path / "input").read_bytes()


@pytest.mark.skipif(not Path("/proc/self").is_dir(), reason="needs a Linux /proc")
def test_a_file_system_that_takes_no_files_is_a_refusal() -> None:
    with pytest.raises(DlasError, match=r"cannot write /proc/net\.onnx"):
        write_atomic(Path("/proc/net.onnx"), b"x")


SCRIPT = """
    import os, signal, sys
    from pathlib import Path
    from dlas.core.files import atomic_folder, atomic_path, scratch_folder

    target = Path(sys.argv[1])
    with atomic_path(target / "a.onnx") as a, atomic_folder(target / "b") as b, scratch_folder() as c:
        a.write_text("half")
        (b / "half").write_text("half")
        (c / "half").write_text("half")
        print(a, flush=True)
        if sys.argv[2] == "die":
            os.kill(os.getpid(), signal.SIGKILL)
        sys.stdin.read()
"""


def start_writer(target: Path, temporary: Path, how: str) -> subprocess.Popen[str]:
    return subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(SCRIPT), str(target), how],
        env={**os.environ, "TMPDIR": str(temporary)},
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
    )


def test_what_a_killed_process_left_goes_with_the_next_write_and_nothing_else_does(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    target, temporary = tmp_path / "out", tmp_path / "tmp"
    target.mkdir()
    temporary.mkdir()
    mine = [target / ".dlas-scratch", target / "dlas-out", temporary / "dlas-scratch-mine"]
    for folder in mine:
        folder.mkdir()
    assert start_writer(target, temporary, "die").wait(30) == -signal.SIGKILL
    assert len(os.listdir(target)) == 4
    assert len(os.listdir(temporary)) == 2

    alive = start_writer(target, temporary, "wait")
    assert alive.stdout is not None
    half = Path(alive.stdout.readline().strip())
    monkeypatch.setattr(tempfile, "tempdir", str(temporary))
    write_atomic(target / "other", "whole")
    with scratch_folder() as scratch:
        assert scratch.parent == temporary
    assert half.read_text() == "half"
    alive.communicate("")
    assert alive.returncode == 0
    left = [*target.iterdir(), *temporary.iterdir()]
    assert sorted(left) == sorted([*mine, target / "a.onnx", target / "b", target / "other"])


def test_no_place_for_temporary_files(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tempfile, "tempdir", "/proc")
    with pytest.raises(StorageError, match="TMPDIR"), scratch_folder():
        pass


def test_the_folder_of_a_file_being_written_goes_away(tmp_path: Path) -> None:
    (tmp_path / "a").mkdir()
    with pytest.raises(StorageError, match="was removed meanwhile"), atomic_path(tmp_path / "a" / "b"):
        shutil.rmtree(tmp_path / "a")


def race(paths: list[Path]) -> None:
    """Write the files while somebody else makes the last one."""
    with atomic_paths(paths) as temporaries:
        for temporary in temporaries:
            temporary.write_text("late")
        paths[-1].write_text("early")


def test_of_two_writers_of_a_new_file_the_first_wins(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    target, other = tmp_path / "net.bin", tmp_path / "other.bin"
    other.write_text("old")
    monkeypatch.chdir(tmp_path)
    with only_new(Path("net.bin")):
        write_atomic(other, "new")  # files that are not meant are replaced as ever
        with pytest.raises(DlasError, match="exists"):
            race([other, target])
        assert (target.read_text(), other.read_text()) == ("early", "new")
        target.unlink()
        write_atomic(target, "first")
        with pytest.raises(DlasError, match="exists"):
            write_atomic(target, "second")
    assert target.read_text() == "first"
    assert target.stat().st_nlink == 1
    write_atomic(target, "third")
    assert target.read_text() == "third"
    assert sorted(p.name for p in tmp_path.iterdir()) == ["net.bin", "other.bin"]


def test_the_last_moment_counts_too_and_a_place_without_links_works(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    link, target = os.link, tmp_path / "net.bin"

    def raced(source: Path, place: Path) -> None:
        place.write_text("early")
        link(source, place)

    monkeypatch.setattr(os, "link", raced)
    with only_new(target), pytest.raises(DlasError, match="exists"):
        write_atomic(target, "late")
    assert target.read_text() == "early"

    def refused(source: Path, place: Path) -> None:
        raise PermissionError(errno.EPERM, "no links here")

    monkeypatch.setattr(os, "link", refused)
    with only_new(tmp_path / "plain.bin"):
        write_atomic(tmp_path / "plain.bin", "x")
    assert (tmp_path / "plain.bin").read_text() == "x"
