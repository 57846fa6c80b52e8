"""Locks between processes that the system gives back when their holder dies, and that leave no file behind."""

from __future__ import annotations

import contextlib
import errno
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

from dlas.core.errors import StorageError

_NO_LOCKS = {errno.ENOLCK, errno.EOPNOTSUPP, errno.ENOSYS}


def acquire(path: Path, *, wait: bool = True) -> int | None:
    """Lock ``path``, a file that exists only for this, and return its handle; None when another holds it.

    Args:
        path: The lock file; made, with its folder, where it is missing.
        wait: Wait for the holder instead of returning None.

    Raises:
        OSError: The file cannot be made.
        StorageError: The file system has no locks.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # somebody tidied the folder away in between
            continue
        try:
            got = _lock(handle, fcntl.LOCK_EX, wait, path)
        except BaseException:
            os.close(handle)
            raise
        if not got:
            os.close(handle)
            return None
        # The holder before us removes the file as it leaves: a lock on a removed file guards nothing.
        if _same_file(handle, path):
            return handle
        os.close(handle)


def release(path: Path, handle: int) -> None:
    """Remove the lock file and give the lock back."""
    path.unlink(missing_ok=True)
    os.close(handle)


@contextlib.contextmanager
def locked(path: Path, *, wait: bool = True) -> Iterator[bool]:
    """Hold the lock file ``path`` inside the block; the value says whether it was got (always, with ``wait``)."""
    handle = acquire(path, wait=wait)
    try:
        yield handle is not None
    finally:
        if handle is not None:
            release(path, handle)


@contextlib.contextmanager
def folder_lock(folder: Path, *, shared: bool, wait: bool = True) -> Iterator[bool]:
    """Hold an existing folder, alone or with others; no file is made for it. The value says whether it was got.

    Raises:
        OSError: There is no such folder.
        StorageError: The file system has no locks.
    """
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        yield _lock(handle, fcntl.LOCK_SH if shared else fcntl.LOCK_EX, wait, folder)
    finally:
        os.close(handle)


def is_held(path: Path) -> bool:
    """Whether somebody holds the lock file ``path``; no file is made, and nobody is made to wait.

    Who tries to acquire it without waiting in this very instant may find it taken.
    """
    try:
        handle = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_NOFOLLOW | os.O_CLOEXEC)
    except OSError:  # gone, as its holder is, or not ours to see
        return False
    try:
        return not _lock(handle, fcntl.LOCK_SH, False, path)
    except (OSError, StorageError):
        return False
    finally:
        os.close(handle)


def _lock(handle: int, kind: int, wait: bool, path: Path) -> bool:
    try:
        fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
    except BlockingIOError:
        return False
    except OSError as error:
        if error.errno not in _NO_LOCKS:
            raise
        place = path if path.is_dir() else path.parent
        raise StorageError(
            f"the file system of {place} has no locks: {error.strerror}",
            "put what is shared between processes (DLAS_CACHE, --out) on a local disk",
        ) from error
    return True


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
