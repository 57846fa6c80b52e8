"""Side environments: tools that cannot share an environment with dlas get a Python of their own.

A lock file pins every package of one. Its environment lies in a folder that is complete or absent: it is built under
a temporary name, tried, and renamed; whatever a killed build left is removed by the next one.
"""

from __future__ import annotations

import contextlib
import functools
import hashlib
import json
import os
import re
import shutil
import sys
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlas.core.cache import default_root
from dlas.core.errors import DlasError, StorageError, UnsupportedError
from dlas.core.files import atomic_folder, explain_write, remove_dead
from dlas.core.lazy import installed
from dlas.core.locks import locked
from dlas.core.subprocesses import Ended, run_program

_MARK = "dlas-environment.json"
_TEMPORARY = ".temporary"
_HINT = "point DLAS_ENVS or DLAS_CACHE at a folder that can be written and has room"
_BUILD_S = 3600.0
_TRY_S = 300.0
_LARGE_MB = 20.0  # downloads from here on are told one by one
_ROOM = 1.4  # of the size: archives lie beside what is unpacked from them


class BuildError(DlasError):
    """A side environment could not be built."""


def environments_root() -> Path:
    """``DLAS_ENVS``, else ``envs`` in the cache."""
    given = os.environ.get("DLAS_ENVS")
    return Path(os.path.abspath(Path(given).expanduser() if given else default_root() / "envs"))


@dataclass(frozen=True)
class SideEnvironment:
    """A Python environment described by a lock file.

    Attributes:
        name: What it is called.
        lock: The lock file: lines ``# key: value`` (``summary``, ``python``, ``imports``, ``megabytes``, ``pip``),
            then one exact pin per line.
        summary: One line of purpose.
        python: Version of Python the pins were taken with.
        imports: Module that must be importable for the environment to count as sound.
        megabytes: Its size on disk, about.
        pip: Options for pip.
        pins: Version by package.
    """

    name: str
    lock: Path
    summary: str
    python: str
    imports: str
    megabytes: int
    pip: tuple[str, ...]
    pins: Mapping[str, str]

    @classmethod
    def read(cls, lock: Path) -> SideEnvironment:
        """Read a lock file; raises ValueError when it is not one."""
        text = lock.read_text(encoding="utf-8")
        head = dict(re.findall(r"^# (\w+): (.+)$", text, re.MULTILINE))
        lines = [line for line in text.splitlines() if line and not line.startswith("#")]
        if not all(re.fullmatch(r"[\w.-]+==[\w.]+", line) for line in lines) or not lines:
            raise ValueError(f"{lock.name} holds something else than exact pins")
        return cls(
            lock.stem,
            lock,
            head["summary"],
            head["python"],
            head["imports"],
            int(head["megabytes"]),
            tuple(head.get("pip", "").split()),
            dict(line.split("==") for line in lines),
        )

    @property
    def folder(self) -> Path:
        """Where it is, or would be."""
        return environments_root() / self.name

    @property
    def interpreter(self) -> Path:
        """Its Python; raises UnsupportedError, with the command that builds it, when it is not built."""
        state = self.state()
        if state != "built":
            raise UnsupportedError(
                f"the environment {self.name} is {state}", f"dlas doctor --make-env {self.name}"
            )
        return self.folder / "bin" / "python"

    def state(self) -> str:
        """``built``, ``not built``, or ``outdated`` where the lock file or its Python changed since."""
        try:
            mark = json.loads((self.folder / _MARK).read_text(encoding="utf-8"))
        except (OSError, ValueError):
            return "not built"
        alive = os.access(self.folder / "bin" / "python", os.X_OK)
        return "built" if alive and mark.get("lock") == self._digest() else "outdated"

    def size(self) -> int:
        """Bytes on disk as counted when it was built; 0 where there is none."""
        try:
            return int(json.loads((self.folder / _MARK).read_text(encoding="utf-8"))["bytes"])
        except (OSError, ValueError, KeyError, TypeError):
            return 0

    def build(self, tell: Callable[[str], None] = lambda text: None) -> Path:
        """Build it, unless it is there already, and return its folder.

        Args:
            tell: Receives one line per step.

        Raises:
            BuildError: A package cannot be had or does not work here; one line says why.
            StorageError: The disk is full or the folder cannot be written.
        """
        root = environments_root()
        gate = root / f".{self.name}.lock"
        with contextlib.ExitStack() as held:
            with explain_write(f"to {root}", _HINT):
                if not held.enter_context(locked(gate, wait=False)):
                    tell(f"{self.name}: another process is building it; waiting")
                    held.enter_context(locked(gate))
            if self.state() == "built":
                return self.folder
            remove_dead(root)
            self._check_room(root)
            with (
                explain_write(f"to {root}", _HINT, below=root),
                atomic_folder(self.folder, many=True) as temporary,
            ):
                self._fill(temporary, tell)
        return self.folder

    def remove(self) -> None:
        """Delete it."""
        with locked(environments_root() / f".{self.name}.lock"):
            shutil.rmtree(self.folder, ignore_errors=True)

    def _fill(self, folder: Path, tell: Callable[[str], None]) -> None:
        scratch = folder / _TEMPORARY
        scratch.mkdir()
        tell(f"{self.name}: make a virtual environment of Python {sys.version.split()[0]}")
        # Our own pip installs for another Python; giving that one a copy takes longer than a small environment itself.
        bare = ["--without-pip"] if installed("pip") else []
        made = [sys.executable, "-I", "-m", "venv", *bare, folder]
        self._step(made, scratch, _BUILD_S, "make a virtual environment")
        python = folder / "bin" / "python"
        pip = [sys.executable, "-I", "-m", "pip", "--python", python] if bare else [python, "-I", "-m", "pip"]
        watch = _Watch(self.name, len(self.pins), tell)
        install = [*pip, "install", "--no-input", "--disable-pip-version-check", "--progress-bar", "off",
                   "--retries", "2", *self.pip, "--requirement", self.lock]  # fmt: skip
        self._step(install, scratch, _BUILD_S, "install its packages", watch)
        tell(f"{self.name}: try it")
        self._step([python, "-I", "-c", f"import {self.imports}"], scratch, _TRY_S, f"import {self.imports}")
        shutil.rmtree(scratch, ignore_errors=True)
        size = sum(p.lstat().st_size for p in folder.rglob("*"))
        mark = {"lock": self._digest(), "python": sys.version.split()[0], "bytes": size}
        (folder / _MARK).write_text(json.dumps(mark), encoding="utf-8")

    def _step(
        self, command: list[Any], scratch: Path, limit_s: float, what: str, watch: _Watch | None = None
    ) -> None:
        ended = run_program(command, folder=scratch, timeout_s=limit_s, on_line=watch or (lambda line: None))
        if ended.code == 0:
            return
        error = (watch.error if watch else "") or _last_line(ended)
        if "No space left" in error or "Disk quota" in error:
            raise StorageError(f"cannot build the environment {self.name}: {error}", _HINT)
        here = f"{sys.version_info[0]}.{sys.version_info[1]}"
        if watch is not None and watch.unreachable:
            hint = "no package index can be reached: check the network, and pip's own configuration"
        elif here != self.python:
            hint = f"its versions are those for Python {self.python}, this is {here}"
        elif "ensurepip" in ended.tail:
            hint = "install the system package python3-venv"
        else:
            hint = "nothing was left behind; the same command tries again"
        raise BuildError(f"the environment {self.name} cannot {what}: {error}", hint)

    def _check_room(self, root: Path) -> None:
        free = shutil.disk_usage(root).free
        if free < self.megabytes * 1e6 * _ROOM:
            raise StorageError(
                f"the environment {self.name} needs {self.megabytes * _ROOM / 1e3:.1f} GB while it is built, "
                f"{root} has {free / 1e9:.1f} GB",
                _HINT,
            )

    def _digest(self) -> str:
        return _digest(self.lock)


@functools.cache
def _digest(lock: Path) -> str:
    return hashlib.sha256(lock.read_bytes()).hexdigest()


class _Watch:
    """Listens to pip: tells large downloads, keeps the first error, notices that no index answers."""

    def __init__(self, name: str, packages: int, tell: Callable[[str], None]) -> None:
        self.error = ""
        self.unreachable = False
        self._name, self._packages, self._tell = name, packages, tell
        self._seen = 0

    def __call__(self, line: str) -> None:
        if line.startswith("Collecting "):
            self._seen += 1
        elif line.startswith("ERROR: ") and not self.error:
            self.error = line.removeprefix("ERROR: ")
        elif "Retrying (Retry(" in line:
            self.unreachable = True
        elif line.startswith("Installing collected packages"):
            self._tell(f"{self._name}: install {self._packages} packages")
        elif match := re.match(r"(?:Downloading|Using cached) (\S+) \(([\d.]+) ([MG])B", line):
            size = float(match[2]) * (1000 if match[3] == "G" else 1)
            if size >= _LARGE_MB:
                file = match[1].rsplit("/", 1)[-1].split("-cp")[0].split("-py")[0]
                self._tell(f"{self._name}: {self._seen}/{self._packages} {file} ({size:.0f} MB)")


def _last_line(ended: Ended) -> str:
    if ended.code is None:
        return f"no end within {ended.seconds:.0f} s"
    return ended.tail.rsplit("\n", 1)[-1] or ended.signal or f"exit code {ended.code}"
