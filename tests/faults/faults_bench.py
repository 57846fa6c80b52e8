"""A place in which the real command line is run, killed and looked at afterwards."""

from __future__ import annotations

import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
import time
from dataclasses import dataclass, field
from pathlib import Path

import numpy as np
import psutil

from dlas.testing import models as networks

# Made by torch, empty and one per user: it is not ours to remove.
_OF_OTHERS = "torchinductor_"


@dataclass
class Bench:
    """Folders of its own for files, cache and temporary files; commands see no other.

    Attributes:
        root: Where everything lies.
        env: Environment of the commands.
    """

    root: Path
    env: dict[str, str] = field(default_factory=dict)

    def __post_init__(self) -> None:
        for folder in (self.files, self.cache, self.temporary):
            folder.mkdir(parents=True, exist_ok=True)
        self.env = {
            **os.environ,
            "DLAS_CACHE": str(self.cache),
            "TMPDIR": str(self.temporary),
            "DLAS_CHECKPOINT_SECONDS": "0.1",
            **self.env,
        }
        self.env.pop("DLAS_DEBUG", None)

    @property
    def files(self) -> Path:
        """Inputs and outputs; commands run in it."""
        return self.root / "files"

    @property
    def cache(self) -> Path:
        """DLAS_CACHE."""
        return self.root / "cache"

    @property
    def temporary(self) -> Path:
        """TMPDIR."""
        return self.root / "tmp"

    def fill(self, rows: int = 64) -> Bench:
        """A network ``net.onnx`` and labelled rows ``rows.npz`` for it."""
        from dlas.graph.reference import predict

        (self.files / "net.onnx").write_bytes(networks.residual().to_bytes())
        x = networks.images(rows)
        np.savez(self.files / "rows.npz", x=x, y=predict(networks.residual(), x).argmax(1))
        return self

    def forget(self) -> None:
        """Begin with an empty cache and without what was written."""
        shutil.rmtree(self.cache)
        self.cache.mkdir()
        shutil.rmtree(self.files / "out", ignore_errors=True)

    def start(self, *words: str) -> subprocess.Popen[str]:
        """A command of dlas, running."""
        command = [sys.executable, "-m", "dlas.cli.main", *words]
        with (self.root / "stdout").open("w") as answer, (self.root / "stderr").open("w") as errors:
            return subprocess.Popen(
                command,
                cwd=self.files,
                env=self.env,
                stdin=subprocess.DEVNULL,
                stdout=answer,
                stderr=errors,
                text=True,
            )

    def run(self, *words: str, timeout_s: float = 300.0) -> Outcome:
        """A command of dlas, run to its end."""
        child = self.start(*words)
        child.wait(timeout_s)
        return self.outcome(child)

    def outcome(self, child: subprocess.Popen[str]) -> Outcome:
        """What a command that has ended left behind."""
        return Outcome(
            child.returncode, (self.root / "stdout").read_text(), (self.root / "stderr").read_text()
        )

    def kill(self, child: subprocess.Popen[str], dice: random.Random, after_s: float) -> str:
        """Send SIGKILL after a while to the process or, every other time, to one of its workers; what was hit."""
        until = time.monotonic() + after_s
        while child.poll() is None and time.monotonic() < until:
            time.sleep(0.01)
        if child.poll() is not None:
            return ""
        family = _family(child.pid)
        if family and dice.random() < 0.5:
            dice.choice(family).kill()
            child.wait(300)
            return "worker"
        child.kill()
        child.wait(60)
        until = time.monotonic() + 20
        while (
            any(p.is_running() and p.status() != psutil.STATUS_ZOMBIE for p in family)
            and time.monotonic() < until
        ):
            time.sleep(0.05)
        return "main"

    def leftovers(self) -> list[str]:
        """Everything that nobody asked for: temporary files, locks, half entries, processes."""
        found = [str(p) for p in self.temporary.rglob("*") if not _harmless(p, self.temporary)]
        for place in (self.files, self.cache):
            found += [str(p) for p in place.rglob("*") if _is_leftover(p)]
        return found + self.processes()

    def processes(self) -> list[str]:
        """Processes of this bench that still run."""
        found = []
        for process in psutil.process_iter():
            try:
                ours = process.environ().get("DLAS_CACHE") == str(self.cache)
                if ours and process.status() != psutil.STATUS_ZOMBIE:
                    found.append(f"{process.pid} {' '.join(process.cmdline())[:200]}")
            except (psutil.NoSuchProcess, psutil.AccessDenied, ProcessLookupError):
                continue
        return found

    def finished(self) -> dict[str, float]:
        """Keys of the finished points of ``out/study.db`` and when each was finished."""
        database = self.files / "out" / "study.db"
        if not database.exists():
            return {}
        with sqlite3.connect(database, timeout=30) as db:
            assert db.execute("PRAGMA integrity_check").fetchall() == [("ok",)]
            tables = db.execute("SELECT name FROM sqlite_master WHERE name = 'points'").fetchall()
            found = db.execute("SELECT key, finished FROM points").fetchall() if tables else []
        db.close()
        assert len(dict(found)) == len(found)
        return dict(found)


@dataclass(frozen=True)
class Outcome:
    """How a command ended."""

    code: int
    answer: str
    errors: str

    @property
    def last(self) -> str:
        """The last line of standard error."""
        return (self.errors.strip().splitlines() or [""])[-1]

    def assert_clear(self, *words: str) -> None:
        """It was refused in one line of dlas that says ``words``, not with a traceback or a defect."""
        assert "Traceback" not in self.errors, self.errors
        assert self.code == 2, (self.code, self.errors)
        assert self.last.startswith("dlas: "), self.errors
        for word in words:
            assert word in self.last, self.last

    def assert_well(self) -> None:
        """It did what was asked."""
        assert self.code == 0, self.errors
        assert "Traceback" not in self.errors, self.errors

    def assert_well_or_clear(self) -> None:
        """One of the two."""
        if self.code != 0:
            self.assert_clear()


def _family(pid: int) -> list[psutil.Process]:
    try:
        return psutil.Process(pid).children(recursive=True)
    except psutil.NoSuchProcess:
        return []


def _harmless(path: Path, root: Path) -> bool:
    return path.relative_to(root).parts[0].startswith(_OF_OTHERS)


def _is_leftover(path: Path) -> bool:
    name = path.name
    if path.parent.name == ".work":
        return True
    return (
        name.startswith(".dlas-scratch")
        or name.endswith((".lock", ".tmp", ".ckpt", ".kept", "-wal", "-shm", "-journal"))
        or name == ".claims"
    )


SIGKILLED = -signal.SIGKILL
