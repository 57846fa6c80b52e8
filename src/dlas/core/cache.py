"""Content-addressed folders: a step's result under the hash of everything it depends on.

An entry is complete or absent: it is built under a temporary name, listed with sizes and hashes in a manifest,
flushed and renamed. A lock per key (given back by the system when its holder dies) keeps two processes from making
the same thing. Whatever is not yet an entry lies in ``.work``, under its key's name, so that the next process finds
what a killed one left. No time stamp says whether an entry is good.
"""

from __future__ import annotations

import contextlib
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

from dlas.core.errors import DlasError, StorageError
from dlas.core.files import explain_write, sync, sync_tree
from dlas.core.locks import locked

log = logging.getLogger("dlas")

MANIFEST = ".manifest.json"
_WORK = ".work"
_LOCK, _KEPT = ".lock", ".kept"
_KEPT_AT_MOST = 16  # half-done steps that nobody came back to
_KEY = re.compile(r"[0-9a-f]{16,64}")
_HINT = "point DLAS_CACHE at a folder that can be written and has room"


def key_of(*parts: Any) -> str:
    """SHA-256 of ``parts`` in a canonical form.

    Args:
        parts: Any nesting of str, int, float, bool, None, bytes, lists or tuples (alike) and dictionaries with text
            keys (order does not count). Values of different type differ: 1, 1.0, True and "1" are four keys.

    Raises:
        TypeError: Anything else, because its text need not say what it is.
    """
    return hashlib.sha256(json.dumps(_canonical(parts), sort_keys=True).encode()).hexdigest()


def default_root() -> Path:
    """``DLAS_CACHE``, else ``$XDG_CACHE_HOME/dlas``, else ``~/.cache/dlas``."""
    given = os.environ.get("DLAS_CACHE")
    try:
        if given:
            return Path(given).expanduser()
        return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlas"
    except RuntimeError as error:  # a user without a home
        raise DlasError(f"there is no place for the cache: {error}", _HINT) from error


def kept_folder(folder: Path) -> Path:
    """Where a step keeps what should outlive a kill, such as checkpoints; not made yet.

    The cache removes it when the step is done.

    Args:
        folder: The folder that :meth:`Cache.folder` gave the step to fill.
    """
    return folder.with_name(folder.name.partition(".")[0] + _KEPT)


class Cache:
    """Folders by key below one root; safe for several processes and threads at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(os.path.abspath(root if root is not None else default_root()))
        self._work = self.root / _WORK
        self._hashed: set[str] = set()
        self._tidied = False

    def folder(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of ``key``; ``make`` fills an empty one first if there is none yet. Treat it as read-only.

        Args:
            key: From :func:`key_of`.
            make: Called with the folder to fill; whatever it raises passes through and leaves no entry.

        Raises:
            StorageError: The cache folder cannot be written or locked, the disk is full, or somebody removed the
                cache meanwhile.
        """
        entry = self._entry(key)
        self._tidy()
        if self._fault(key, entry) == "":
            return entry
        what = f"to the cache {self.root}"
        with explain_write(what, _HINT, below=self.root), contextlib.ExitStack() as stack:
            with explain_write(what, _HINT):  # a parent of the root may be at fault here
                stack.enter_context(locked(self._place(key, _LOCK)))
            # Somebody else may have made or mended it while we waited.
            fault = self._fault(key, entry)
            if fault == "":
                return entry
            if entry.exists():
                log.warning("cache entry %s is rebuilt: %s", key[:12], fault)
                self._remove(entry)
            self._drop(key)
            self._fill(key, entry, make)
        return entry

    def _fill(self, key: str, entry: Path, make: Callable[[Path], None]) -> None:
        temporary = self._place(key)
        temporary.mkdir()
        try:
            make(temporary)
            _write_manifest(temporary)
            entry.parent.mkdir(parents=True, exist_ok=True)
            os.rename(temporary, entry)
            sync(entry.parent)
        except Exception as error:
            if not temporary.exists() or not all(self._entry(k).exists() for k in tuple(self._hashed)):
                raise StorageError(
                    f"the cache {self.root} was removed while it was used", "run the same command again"
                ) from error
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
        self._hashed.add(key)
        shutil.rmtree(kept_folder(temporary), ignore_errors=True)

    def has(self, key: str) -> bool:
        """Whether a sound entry for ``key`` is there."""
        return self._fault(key, self._entry(key)) == ""

    def size(self) -> int:
        """Bytes of all entries and of everything that is being made."""
        total = 0
        for shelf in (*self._shelves(), self._work):
            for base, _, names in os.walk(shelf):
                for name in names:
                    with contextlib.suppress(FileNotFoundError):  # another process removed or finished it
                        total += (Path(base) / name).lstat().st_size
        return total

    def clear(self) -> None:
        """Remove every entry that nobody is making right now, and what is kept of unfinished ones."""
        for shelf in self._shelves():
            for key in [p.name for p in sorted(shelf.iterdir()) if _KEY.fullmatch(p.name)]:
                with locked(self._place(key, _LOCK), wait=False) as free:
                    if free:
                        self._remove(shelf / key)
            with contextlib.suppress(OSError):
                shelf.rmdir()
        for key in self._unfinished():
            with locked(self._place(key, _LOCK), wait=False) as free:
                if free:
                    self._drop(key, kept=True)
        with contextlib.suppress(OSError):
            self._work.rmdir()
        self._hashed.clear()

    def _tidy(self) -> None:
        """Once per process: remove what killed processes left, and all but the newest of the steps they began."""
        if self._tidied:
            return
        self._tidied = True
        with contextlib.suppress(
            OSError, StorageError
        ):  # a cache that can only be read is of use all the same
            for key in self._unfinished():
                with locked(self._place(key, _LOCK), wait=False) as free:
                    if free:
                        self._drop(key, kept=self._entry(key).exists())
            kept = sorted(self._work.glob("*" + _KEPT), key=lambda p: p.stat().st_mtime, reverse=True)
            for path in kept[_KEPT_AT_MOST:]:
                with locked(path.with_suffix(_LOCK), wait=False) as free:
                    if free:
                        shutil.rmtree(path, ignore_errors=True)
            self._work.rmdir()

    def _unfinished(self) -> list[str]:
        """Keys with anything in the work folder."""
        if not self._work.is_dir():
            return []
        names = {p.name.partition(".")[0] for p in self._work.iterdir()}
        return sorted(name for name in names if _KEY.fullmatch(name))

    def _drop(self, key: str, kept: bool = False) -> None:
        """Remove what an earlier process left of a key whose lock is held; its checkpoints only if told."""
        for leftover in self._work.glob(f"{key}.*"):
            if leftover.name != key + _LOCK and (kept or leftover.name != key + _KEPT):
                shutil.rmtree(leftover, ignore_errors=True)

    def _remove(self, entry: Path) -> None:
        """Take an entry out of sight in one step, then delete it; the lock of its key is held."""
        self._hashed.discard(entry.name)
        gone = self._place(entry.name)
        with contextlib.suppress(FileNotFoundError):
            os.rename(entry, gone)
            if gone.is_dir():
                shutil.rmtree(gone, ignore_errors=True)
            else:
                gone.unlink()

    def _place(self, key: str, ending: str = "") -> Path:
        """A name in the work folder; one that nobody has without an ``ending``."""
        return self._work / (key + (ending or f".{uuid.uuid4().hex[:8]}"))

    def _entry(self, key: str) -> Path:
        if not _KEY.fullmatch(key):
            raise ValueError(f"{key!r} is not a cache key: expected hexadecimal digits from key_of")
        return self.root / key[:2] / key

    def _shelves(self) -> list[Path]:
        if not self.root.is_dir():
            return []
        return [p for p in sorted(self.root.iterdir()) if re.fullmatch(r"[0-9a-f]{2}", p.name) and p.is_dir()]

    def _fault(self, key: str, entry: Path) -> str:
        """What is wrong with an entry; empty if nothing is. Sizes every time, hashes once per process."""
        try:
            manifest = json.loads((entry / MANIFEST).read_text())
            for name, facts in manifest["files"].items():
                size = (entry / name).stat().st_size
                if size != facts["bytes"]:
                    return f"{name} has {size} bytes instead of {facts['bytes']}"
            if key not in self._hashed:
                for name, facts in manifest["files"].items():
                    if _file_hash(entry / name) != facts["sha256"]:
                        return f"the content of {name} has changed"
        except FileNotFoundError as error:
            return f"{Path(error.filename).name} is missing"
        except (OSError, ValueError, TypeError, KeyError, AttributeError) as error:
            return f"its manifest cannot be read: {error}"
        self._hashed.add(key)
        return ""


def _canonical(value: Any) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return ["s", str(value)]
    if isinstance(value, int):
        return int(value)
    if isinstance(value, float):
        return ["f", repr(float(value))]
    if isinstance(value, bytes | bytearray | memoryview):
        return ["b", hashlib.sha256(value).hexdigest()]
    if isinstance(value, list | tuple):
        return ["l", [_canonical(v) for v in value]]
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(
                f"a cache key takes dictionaries with text keys only, got {sorted(map(repr, value))}"
            )
        return {str(k): _canonical(v) for k, v in value.items()}
    raise TypeError(f"a cache key cannot hold a {type(value).__name__}: {value!r}")


def _write_manifest(folder: Path) -> None:
    files = {
        path.relative_to(folder).as_posix(): {"bytes": path.stat().st_size, "sha256": _file_hash(path)}
        for path in sorted(folder.rglob("*"))
        if path.is_file()
    }
    (folder / MANIFEST).write_text(json.dumps({"files": files}, sort_keys=True))
    sync_tree(folder)


def _file_hash(path: Path) -> str:
    with path.open("rb") as content:
        return hashlib.file_digest(content, "sha256").hexdigest()
