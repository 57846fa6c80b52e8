"""Side environments: complete or absent, and one line when they cannot be built."""

from __future__ import annotations

import json
import os
import shutil
import signal
import subprocess
import sys
import textwrap
import time
from pathlib import Path

import pytest

from dlas.core.environments import BuildError, SideEnvironment, environments_root
from dlas.core.errors import StorageError, UnsupportedError

PACKAGE = """
[build-system]
requires = []
build-backend = "backend"
backend-path = ["."]
"""
# A build back end of our own: nothing is fetched from anywhere.
BACKEND = """
import zipfile
def build_wheel(folder, config=None, metadata=None):
    name = "sidetool-1.0-py3-none-any.whl"
    with zipfile.ZipFile(f"{folder}/{name}", "w") as wheel:
        wheel.writestr("sidetool.py", "VALUE = 42\\n")
        wheel.writestr("sidetool-1.0.dist-info/METADATA", "Metadata-Version: 2.1\\nName: sidetool\\nVersion: 1.0\\n")
        wheel.writestr("sidetool-1.0.dist-info/WHEEL", "Wheel-Version: 1.0\\nGenerator: x\\nRoot-Is-Purelib: true\\nTag: py3-none-any\\n")
        wheel.writestr("sidetool-1.0.dist-info/RECORD", "")
    return name
"""  # noqa: E501


@pytest.fixture(autouse=True)
def _own_folder(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLAS_ENVS", str(tmp_path / "envs"))


def lock_file(folder: Path, pins: str = "sidetool==1.0", imports: str = "sidetool", pip: str = "") -> Path:
    path = folder / "side.txt"
    head = ["# summary: a tool", "# python: 3.11", f"# imports: {imports}", "# megabytes: 20"]
    path.write_text("\n".join([*head, *([f"# pip: {pip}"] if pip else []), pins]) + "\n")
    return path


@pytest.fixture
def wheels(tmp_path: Path) -> Path:
    """A folder with one wheel, made on the spot."""
    folder = tmp_path / "wheels"
    folder.mkdir()
    namespace: dict[str, object] = {}
    exec(BACKEND, namespace)
    namespace["build_wheel"](str(folder))  # type: ignore[operator]
    return folder


def offline(wheels: Path) -> str:
    return f"--no-index --find-links {wheels}"


def test_the_root(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    assert environments_root() == tmp_path / "envs"
    monkeypatch.delenv("DLAS_ENVS")
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path / "cache"))
    assert environments_root() == tmp_path / "cache" / "envs"


def test_build_use_and_outdate(tmp_path: Path, wheels: Path) -> None:
    lock = lock_file(tmp_path, pip=offline(wheels))
    side = SideEnvironment.read(lock)
    assert side.state() == "not built"
    with pytest.raises(UnsupportedError, match="--make-env side"):
        _ = side.interpreter
    told: list[str] = []
    side.build(told.append)
    assert side.state() == "built"
    assert side.size() > 1000
    assert [t.split(": ", 1)[1].split()[0] for t in told] == ["make", "install", "try"]
    # It works where it is now, which is not where it was made, and does not see this environment.
    code = "import sidetool, sys, importlib.util as u; print(sidetool.VALUE, u.find_spec('dlas') is None)"
    done = subprocess.run([side.interpreter, "-I", "-c", code], capture_output=True, text=True, check=True)
    assert done.stdout.split() == ["42", "True"]
    assert sorted(p.name for p in (tmp_path / "envs").iterdir()) == ["side"]
    told.clear()
    side.build(told.append)  # it is there
    assert told == []

    mark = side.folder / "dlas-environment.json"
    mark.write_text(json.dumps({**json.loads(mark.read_text()), "lock": "another"}))
    assert side.state() == "outdated"
    side.build()
    assert side.state() == "built"
    side.remove()
    assert side.state() == "not built"


def test_what_cannot_be_imported_is_not_built(tmp_path: Path, wheels: Path) -> None:
    side = SideEnvironment.read(lock_file(tmp_path, imports="othertool", pip=offline(wheels)))
    with pytest.raises(BuildError, match="No module named 'othertool'"):
        side.build()
    assert list((tmp_path / "envs").iterdir()) == []


def test_a_package_that_is_not_to_be_had(tmp_path: Path, wheels: Path) -> None:
    side = SideEnvironment.read(lock_file(tmp_path, pins="sidetool==9.9", pip=offline(wheels)))
    with pytest.raises(BuildError, match=r"sidetool==9\.9") as caught:
        side.build()
    assert "\n" not in str(caught.value)
    assert list((tmp_path / "envs").iterdir()) == []


def test_without_a_network_one_line_says_so(tmp_path: Path) -> None:
    # Nobody listens on port 9 of this machine.
    pip = "--index-url http://127.0.0.1:9/simple --isolated --retries 1"
    side = SideEnvironment.read(lock_file(tmp_path, pip=pip))
    with pytest.raises(BuildError, match="no package index can be reached") as caught:
        side.build()
    assert "\n" not in str(caught.value)


def test_a_killed_build_leaves_nothing_for_ever(tmp_path: Path, wheels: Path) -> None:
    lock = lock_file(tmp_path, imports="time; time.sleep(60)", pip=offline(wheels))
    code = f"""
        from pathlib import Path
        from dlas.core.environments import SideEnvironment
        SideEnvironment.read(Path({str(lock)!r})).build(lambda t: print(t, flush=True))
    """
    builder = subprocess.Popen(
        [sys.executable, "-c", textwrap.dedent(code)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": os.pathsep.join(sys.path)},
    )
    assert builder.stdout is not None
    while "try it" not in builder.stdout.readline():
        pass
    builder.send_signal(signal.SIGKILL)
    builder.wait()
    time.sleep(0.2)
    root = tmp_path / "envs"
    assert SideEnvironment.read(lock).state() == "not built"
    side = SideEnvironment.read(lock_file(tmp_path, pip=offline(wheels)))
    side.build()
    assert sorted(p.name for p in root.iterdir()) == ["side"]


def test_too_little_room(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    side = SideEnvironment.read(lock_file(tmp_path))
    usage = shutil.disk_usage(tmp_path)
    monkeypatch.setattr(shutil, "disk_usage", lambda path: usage._replace(free=1000))
    with pytest.raises(StorageError, match=r"needs 0\.0 GB|needs"):
        side.build()


def test_a_root_that_cannot_be_written(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    monkeypatch.setenv("DLAS_ENVS", str(tmp_path / "file" / "envs"))
    with pytest.raises(StorageError, match="DLAS_ENVS"):
        SideEnvironment.read(lock_file(tmp_path)).build()


@pytest.mark.parametrize("line", ["sidetool", "sidetool>=1", "--index-url http://x", "-r other.txt", ""])
def test_a_lock_file_holds_exact_pins_only(tmp_path: Path, line: str) -> None:
    with pytest.raises(ValueError, match="exact pins"):
        SideEnvironment.read(lock_file(tmp_path, pins=line))
