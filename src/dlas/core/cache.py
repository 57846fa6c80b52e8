"""Content-addressed folders: a step's result under the hash of everything it depends on.

An entry is complete or absent: it is built under a temporary name, listed with sizes and hashes in a manifest,
flushed and renamed. A lock per key (given back by the system when its holder dies) keeps two processes from making
the same thing. No time stamp is ever consulted.
"""

from __future__ import annotations

import contextlib
import fcntl
import hashlib
import json
import logging
import os
import re
import shutil
import uuid
from collections.abc import Callable, Iterator, Mapping
from pathlib import Path
from typing import Any

from dlas.core.files import explain_write, sync, sync_tree

log = logging.getLogger("dlas")

MANIFEST = ".manifest.json"
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
    if given:
        return Path(given).expanduser()
    return Path(os.environ.get("XDG_CACHE_HOME") or Path.home() / ".cache") / "dlas"


class Cache:
    """Folders by key below one root; safe for several processes and threads at once."""

    def __init__(self, root: Path | None = None) -> None:
        self.root = Path(root) if root is not None else default_root()
        self._hashed: set[str] = set()

    def folder(self, key: str, make: Callable[[Path], None]) -> Path:
        """The folder of ``key``; ``make`` fills an empty one first if there is none yet. Treat it as read-only.

        Args:
            key: From :func:`key_of`.
            make: Called with the folder to fill; whatever it raises passes through and leaves no entry.

        Raises:
            DlasError: The cache folder cannot be written, or the disk is full.
        """
        entry = self._entry(key)
        if self._fault(key, entry) == "":
            return entry
        with explain_write(f"to the cache {self.root}", _HINT), self._locked(key):
            # Somebody else may have made or mended it while we waited.
            fault = self._fault(key, entry)
            if fault == "":
                return entry
            if entry.exists():
                log.warning("cache entry %s is rebuilt: %s", key[:12], fault)
                _remove(entry)
            for leftover in entry.parent.glob(f".{key}.*"):
                shutil.rmtree(leftover, ignore_errors=True)
            temporary = entry.with_name(f".{key}.{uuid.uuid4().hex[:8]}")
            temporary.mkdir()
            try:
                make(temporary)
                _write_manifest(temporary)
                os.rename(temporary, entry)
                sync(entry.parent)
            finally:
                shutil.rmtree(temporary, ignore_errors=True)
            self._hashed.add(key)
        return entry

    def has(self, key: str) -> bool:
        """Whether a sound entry for ``key`` is there."""
        return self._fault(key, self._entry(key)) == ""

    def size(self) -> int:
        """Bytes of all entries."""
        return sum(
            (Path(base) / name).lstat().st_size
            for shelf in self._shelves()
            for base, _, names in os.walk(shelf)
            for name in names
        )

    def clear(self) -> None:
        """Remove every entry that nobody is making right now."""
        for shelf in self._shelves():
            for place in sorted(shelf.iterdir()):
                key = place.name.removesuffix(".lock")
                if not _KEY.fullmatch(key):
                    continue
                with contextlib.suppress(BlockingIOError), self._locked(key, wait=False):
                    _remove(shelf / key)
                    for leftover in shelf.glob(f".{key}.*"):
                        shutil.rmtree(leftover, ignore_errors=True)
            with contextlib.suppress(OSError):
                shelf.rmdir()
        self._hashed.clear()

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

    @contextlib.contextmanager
    def _locked(self, key: str, wait: bool = True) -> Iterator[None]:
        path = self._entry(key).with_name(f"{key}.lock")
        while True:
            path.parent.mkdir(parents=True, exist_ok=True)
            try:
                handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
            except FileNotFoundError:  # `clear` took the shelf away in between
                continue
            try:
                fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
                # The holder before us removes the file as it leaves: a lock on a removed file guards nothing.
                if not _same_file(handle, path):
                    continue
                try:
                    yield
                finally:
                    path.unlink(missing_ok=True)
                return
            finally:
                os.close(handle)


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


def _remove(entry: Path) -> None:
    """Take a folder out of sight in one step, then delete it."""
    gone = entry.with_name(f".{entry.name}.{uuid.uuid4().hex[:8]}")
    with contextlib.suppress(FileNotFoundError):
        os.rename(entry, gone)
        if gone.is_dir():
            shutil.rmtree(gone, ignore_errors=True)
        else:
            gone.unlink()


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
