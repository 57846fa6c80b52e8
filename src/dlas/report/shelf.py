"""The studies that a server shows: found in the files and folders it was given, summed up, and looked up by name.

What a client asks for is only ever compared with the names listed here; no path is made from it.
"""

from __future__ import annotations

import hashlib
import json
import os
import stat
import threading
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path

import dlas
from dlas.core.errors import DlasError
from dlas.core.text import printable
from dlas.explore.claims import claimed
from dlas.explore.result import StudyResult
from dlas.explore.spec import read_spec
from dlas.explore.storage import SqliteStorage, Stamp
from dlas.explore.study import load_result
from dlas.report.summary import Answer, answers, tally

STUDY_FILE = "study.db"
_DEPTH = 3  # folders below a given one that are looked through
_FOLDERS = 2000  # folders looked through at most
_FILES = 500  # study files shown at most
_RACY_S = 2.0  # a file changed this recently may change again without looking different


@dataclass(frozen=True)
class Place:
    """Something to look for studies in: a folder, a study file, or one study of a file.

    Attributes:
        path: Folder or study file.
        study: The one study wanted; None for all.
    """

    path: Path
    study: str | None = None


@dataclass(frozen=True)
class Card:
    """What the list of studies says of one.

    Attributes:
        model: Name of the network.
        dataset: Name of the data.
        rows: Rows judged on, in words.
        points: Points tried.
        pending: Points not tried yet.
        outcomes: Outcome to number of points.
        answers: Fastest and smallest choice.
        keys: Keys of all points of the study, tried or not.
    """

    model: str
    dataset: str
    rows: str
    points: int
    pending: int
    outcomes: tuple[tuple[str, int], ...]
    answers: tuple[Answer, ...]
    keys: frozenset[str] = field(repr=False)


@dataclass(frozen=True)
class Entry:
    """One study, or a file that cannot be read.

    Attributes:
        id: What it is called in addresses; unique and never empty.
        name: Its own name; that of the file where the file cannot be read.
        path: Study file.
        changed: Seconds since 1970 of its last change; 0 where nothing is known.
        version: Another text after every change.
        running: Whether a process is working on it now.
        card: Its summary, where it could be read.
        problem: Why it could not be read.
    """

    id: str
    name: str
    path: Path
    changed: float = 0.0
    version: str = ""
    running: bool = False
    card: Card | None = None
    problem: str = ""

    @property
    def state(self) -> str:
        """``damaged``, ``waiting`` (never started), ``running``, ``stopped`` (points are left) or ``done``."""
        if self.problem:
            return "damaged"
        if self.card is None:
            return "waiting"
        return "running" if self.running else ("stopped" if self.card.pending else "done")


def places(given: Sequence[str | Path], out: Path) -> list[Place]:
    """What a user named: folders, study files, stack files or names of stored studies; ``out`` where nothing is given.

    Args:
        given: Paths or names.
        out: Folder that studies are written to.

    Raises:
        DlasError: Something is not there, or a stack file is wrong.
    """
    return [_place(Path(each), out) for each in given] or [_place(out, out)]


def _place(path: Path, out: Path) -> Place:
    if path.is_dir():
        return Place(path)
    if path.suffix == ".toml":
        return Place(out / STUDY_FILE, read_spec(path).name)
    if path.is_file():
        return Place(path)
    if not path.exists() and (out / STUDY_FILE).is_file():
        with closing(SqliteStorage(out / STUDY_FILE, create=False)) as storage:
            if str(path) in storage.studies():
                return Place(out / STUDY_FILE, str(path))
    raise DlasError(
        f"{path}: no such folder, study file, stack file or study of {out}",
        "run `dlas run` first, or name where studies are",
    )


class Shelf:
    """All studies of some places, read again when their files change.

    Args:
        places: Where to look.
        tell: Receives one line per study that a defect of dlas keeps from being shown.
    """

    def __init__(self, places: Sequence[Place], tell: Callable[[str], None] = lambda text: None) -> None:
        self.places = tuple(places)
        self._tell = tell
        self._lock = threading.Lock()  # what several ask for at once is read once
        self._files: dict[Path, _File] = {}
        self._cards: dict[tuple[Path, str], tuple[Stamp, Card]] = {}

    def entries(self) -> list[Entry]:
        """All studies, the one changed last first, files that cannot be read at the end."""
        wanted: dict[Path, set[str] | None] = {}
        for place in self.places:
            for path in study_files(place.path):
                if place.study is None:
                    wanted[path] = None
                elif (names := wanted.setdefault(path, set())) is not None:
                    names.add(place.study)
        with self._lock:
            found = [entry for path, names in wanted.items() for entry in self._of_file(path, names)]
        found.sort(key=lambda e: (bool(e.problem), -e.changed, e.name))
        return _with_ids(found)

    def find(self, id: str) -> Entry | None:
        """The study of this address, or None."""
        return next((entry for entry in self.entries() if entry.id == id), None)

    def result(self, entry: Entry) -> StudyResult:
        """Everything stored of a study.

        Raises:
            DlasError: It cannot be read, or is gone.
        """
        if entry.card is None:
            reason = entry.problem or f"the study {entry.name!r} has not been started"
            raise DlasError(reason, "run it, or copy its file again")
        with _reading(entry.path) as storage:
            return load_result(storage, entry.name)

    def _of_file(self, path: Path, names: set[str] | None) -> Iterator[Entry]:
        """Entries of one file; ``names`` limits them, and those of them that are missing wait to be started."""
        before = _fingerprint(path)
        known = self._files.get(path)
        if known is None or known.fingerprint != before or _racy(before):
            known = self._files[path] = self._read(path, before)
        if known.problem and (names is None or before):
            text = _printable(path)
            yield Entry("", text, path, version=digest(text, known.problem), problem=known.problem)
            return
        working = claimed(path.parent)
        for entry in known.entries:
            if names is None or entry.name in names:
                running = entry.card is not None and not working.isdisjoint(entry.card.keys)
                yield replace(entry, running=running, version=digest(entry.version, str(running)))
        yield from (Entry("", n, path) for n in sorted((names or set()) - {e.name for e in known.entries}))

    def _read(self, path: Path, fingerprint: tuple[int, ...]) -> _File:
        """What a study file holds now."""
        if not fingerprint:
            return _File(fingerprint, problem=f"{_printable(path)}: no such study file")
        try:
            with _reading(path) as storage:
                return _File(fingerprint, [self._study(storage, path, n) for n in storage.studies()])
        except DlasError as error:
            return _File(fingerprint, problem=error.message)

    def _study(self, storage: SqliteStorage, path: Path, name: str) -> Entry:
        stamp, card, problem = Stamp(0.0, ""), None, ""
        try:
            stamp = storage.stamp(name)
            known = self._cards.get((path, name))
            card = known[1] if known and known[0] == stamp else _card(storage, name)
            self._cards[path, name] = (stamp, card)
        except DlasError as error:
            problem = error.message
        except Exception as error:  # one study that we fail on must not hide the others
            problem = f"internal error: {type(error).__name__}: {error} (this is a defect of dlas)"
            self._tell(f"{path}, study {name!r}: {problem}")
        return Entry("", name, path, stamp.changed, digest(name, stamp.token, problem), False, card, problem)


@dataclass(frozen=True)
class _File:
    """What a study file held when it had this fingerprint, or why it could not be read."""

    fingerprint: tuple[int, ...]
    entries: Sequence[Entry] = ()
    problem: str = ""


def study_files(path: Path) -> list[Path]:
    """The study files of a folder and of those below it, links aside; or ``path`` itself, if it is no folder."""
    if not path.is_dir():
        return [path]
    found: list[Path] = []
    for looked, (folder, below, files) in enumerate(os.walk(path), 1):
        depth = len(Path(folder).relative_to(path).parts)
        below[:] = sorted(name for name in below if name[:1] != ".") if depth < _DEPTH else []
        if STUDY_FILE in files:
            found.append(Path(folder) / STUDY_FILE)
        if looked >= _FOLDERS or len(found) >= _FILES:
            break
    return [file for file in found if stat.S_ISREG(_mode(file))]


def _mode(path: Path) -> int:
    try:
        return path.lstat().st_mode
    except OSError:
        return 0


def _fingerprint(path: Path) -> tuple[int, ...]:
    """Size and times of a study file and of its log; empty where there is no file."""
    found: list[int] = []
    for each in (path, path.with_name(path.name + "-wal")):
        try:
            facts = each.stat()
        except OSError:
            continue
        found += [facts.st_ino, facts.st_size, facts.st_mtime_ns]
    return tuple(found) if path.is_file() else ()


def _racy(fingerprint: tuple[int, ...]) -> bool:
    return any(time.time() - at / 1e9 < _RACY_S for at in fingerprint[2::3])


@contextmanager
def _reading(path: Path) -> Iterator[SqliteStorage]:
    if not path.is_file() or path.stat().st_size == 0:  # opening it would make a study file of it
        raise DlasError(f"{_printable(path)}: the file is empty", "run a study with --out")
    with closing(SqliteStorage(path, create=False)) as storage:
        yield storage


def _card(storage: SqliteStorage, name: str) -> Card:
    """The summary of a study."""
    result = load_result(storage, name)
    rows = result.facts.get("rows")
    return Card(
        model=str(result.facts.get("model") or ""),
        dataset=str(result.facts.get("dataset") or ""),
        rows="" if rows is None else f"{rows:,}" if isinstance(rows, int) else str(rows),
        points=len(result.points),
        pending=result.pending,
        outcomes=tuple(tally(result)),
        answers=tuple(answer for answer in answers(result)[:-1] if answer.index >= 0),
        keys=frozenset(map(str, storage.study(name)["keys"])),
    )


def _with_ids(entries: Sequence[Entry]) -> list[Entry]:
    """Every entry with its address: the study's name, and its file where the name alone would not do."""
    counts = Counter(entry.name for entry in entries if not entry.problem)
    named: dict[str, Entry] = {}
    for entry in entries:
        alone = counts[entry.name] <= 1 and entry.name not in ("", ".", "..")
        id = entry.name if alone else f"{entry.name}@{_printable(entry.path.parent)}"
        while id in named:
            id += "'"
        named[id] = replace(entry, id=id)
    return list(named.values())


def _printable(path: Path) -> str:
    """A path as text that has a UTF-8 form."""
    return printable(os.fsencode(path).decode("utf-8", "replace"))


def digest(*parts: str) -> str:
    """A short text that differs where these do, or where dlas does."""
    return hashlib.sha256(json.dumps([dlas.__version__, *parts]).encode()).hexdigest()[:24]
