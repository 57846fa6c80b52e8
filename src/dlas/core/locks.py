"""Locks between processes that the system gives back when their holder dies, and that leave no file behind."""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections.abc import Iterator
from pathlib import Path


def acquire(path: Path, *, wait: bool = True) -> int | None:
    """Lock ``path``, a file that exists only for this, and return its handle; None when another holds it.

    Args:
        path: The lock file; made, with its folder, where it is missing.
        wait: Wait for the holder instead of returning None.

    Raises:
        OSError: The file cannot be made.
    """
    while True:
        path.parent.mkdir(parents=True, exist_ok=True)
        try:
            handle = os.open(path, os.O_RDWR | os.O_CREAT | os.O_CLOEXEC, 0o644)
        except FileNotFoundError:  # somebody tidied the folder away in between
            continue
        try:
            fcntl.flock(handle, fcntl.LOCK_EX | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            os.close(handle)
            return None
        except BaseException:
            os.close(handle)
            raise
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
    """Hold an existing folder, alone or with others; no file is made for it. The value says whether it was got."""
    handle = os.open(folder, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
    try:
        kind = fcntl.LOCK_SH if shared else fcntl.LOCK_EX
        try:
            fcntl.flock(handle, kind | (0 if wait else fcntl.LOCK_NB))
        except BlockingIOError:
            yield False
            return
        yield True
    finally:
        os.close(handle)


def _same_file(handle: int, path: Path) -> bool:
    try:
        there = path.stat()
    except FileNotFoundError:
        return False
    here = os.fstat(handle)
    return (here.st_ino, here.st_dev) == (there.st_ino, there.st_dev)
