"""Writing files so that a reader never sees half of one: temporary name in the same folder, then rename."""

from __future__ import annotations

import contextlib
import errno
import os
import shutil
import uuid
from collections.abc import Iterator
from pathlib import Path

from dlas.core.errors import DlasError

_HINT = "choose another output folder"
_REFUSALS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EISDIR, errno.ENAMETOOLONG, errno.ENOSPC, errno.ENOTDIR,
    errno.EPERM, errno.EROFS,
}  # fmt: skip


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``: afterwards the file is either the old one or all of the new one.

    Raises:
        DlasError: The folder does not exist or cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A name to write to, renamed to ``path`` when the block ends well and removed when it does not.

    For libraries that insist on opening the file themselves. The name keeps the ending of ``path``.

    Raises:
        DlasError: The folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}{''.join(path.suffixes[-1:])}")
    with explain_write(str(path), _HINT):
        _check_folder(path)
        try:
            yield temporary
            sync(temporary)
            os.replace(temporary, path)
            sync(path.parent)
        finally:
            temporary.unlink(missing_ok=True)


@contextlib.contextmanager
def atomic_folder(path: Path) -> Iterator[Path]:
    """An empty folder to fill, renamed to ``path`` when the block ends well and removed when it does not.

    A folder that stands at ``path`` already is replaced as a whole.

    Raises:
        DlasError: The parent folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    temporary = path.with_name(f".{uuid.uuid4().hex}.new")
    old = path.with_name(f".{uuid.uuid4().hex}.old")
    with explain_write(str(path), _HINT):
        _check_folder(path)
        try:
            temporary.mkdir()
            yield temporary
            sync_tree(temporary)
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
            sync(path.parent)
        except BaseException:
            if old.exists() and not path.exists():
                os.rename(old, path)
            raise
        finally:
            shutil.rmtree(temporary, ignore_errors=True)
            shutil.rmtree(old, ignore_errors=True)


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, itself included."""
    for base, _, names in os.walk(folder):
        for name in names:
            sync(Path(base) / name)
        sync(Path(base))


def _check_folder(path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        what = "is not a folder" if parent.exists() else "does not exist"
        raise DlasError(
            f"cannot write {path}: {parent} {what}", "make the folder first, or choose another one"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise DlasError(f"cannot write {path}: {parent} is not writable", _HINT)


def _cannot_create(error: OSError) -> bool:
    """Whether a file system without room for new entries (such as /proc) said "not found" in a folder that exists."""
    if error.errno != errno.ENOENT or not error.filename:
        return False
    parent = Path(str(error.filename)).parent
    return parent.is_dir() and os.statvfs(parent).f_blocks == 0


@contextlib.contextmanager
def explain_write(what: str, hint: str) -> Iterator[None]:
    """Turn the system's refusal to write into a DlasError; any other error passes through.

    Args:
        what: Object of the sentence ``cannot write ...``.
        hint: What the user can do.
    """
    try:
        yield
    except OSError as error:
        if error.errno not in _REFUSALS and not _cannot_create(error):
            raise
        raise DlasError(f"cannot write {what}: {error.strerror}", hint) from error
