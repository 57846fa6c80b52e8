"""Writing files so that a reader never sees half of one, and a killed process leaves nothing for ever.

A file or folder is made inside a *scratch folder* beside its target and renamed into place. Scratch folders carry a
name of their own and a lock that the system gives back when the owner dies, however it dies; whoever makes the next
one in the same place removes those nobody holds any more.
"""

from __future__ import annotations

import contextlib
import ctypes
import errno
import fcntl
import hashlib
import os
import re
import shutil
import stat
import tempfile
from collections.abc import Iterator, Sequence
from contextvars import ContextVar
from pathlib import Path
from typing import IO

from dlas.core.errors import DlasError, StorageError

_HINT = "choose another output folder"
_TMPDIR_HINT = "point TMPDIR at a folder that can be written and has room"
_REFUSALS = {
    errno.EACCES, errno.EDQUOT, errno.EFBIG, errno.EIO, errno.EISDIR, errno.ELOOP, errno.ENAMETOOLONG, errno.ENOSPC,
    errno.ENOTDIR, errno.EPERM, errno.EROFS, errno.ESTALE,
}  # fmt: skip
_BROKEN = {errno.EDQUOT, errno.EFBIG, errno.EIO, errno.ENOSPC, errno.EROFS, errno.ESTALE}
_NO_LINKS = {errno.EPERM, errno.EOPNOTSUPP, errno.ENOSYS, errno.EMLINK}
_guarded: ContextVar[frozenset[Path]] = ContextVar("guarded", default=frozenset())
_HERE, _EXCHANGE = -100, 2  # AT_FDCWD and RENAME_EXCHANGE of renameat2(2)
_SCRATCH = re.compile(r"\.?dlas-scratch-[a-z0-9_]{8}")


def write_atomic(path: Path, data: bytes | str) -> None:
    """Write ``data`` (text as UTF-8) to ``path``: afterwards the file is either the old one or all of the new one.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    with atomic_path(path) as temporary:
        temporary.write_bytes(data.encode() if isinstance(data, str) else data)


@contextlib.contextmanager
def atomic_path(path: Path) -> Iterator[Path]:
    """A path to write to, renamed to ``path`` when the block ends well and removed when it does not.

    For libraries that insist on opening the file themselves. It has the name of ``path``, in another folder.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    with atomic_paths([path]) as (temporary,):
        yield temporary


@contextlib.contextmanager
def atomic_paths(paths: Sequence[Path]) -> Iterator[list[Path]]:
    """Several files of one folder, as :func:`atomic_path`: none is renamed before all are safely on the disk.

    Args:
        paths: The files in the order in which they appear, all in the same folder; an error names the last one.

    Raises:
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    paths = [Path(path) for path in paths]
    folder = paths[-1].parent
    with _explained(paths[-1]), _scratch(folder, ".") as scratch:
        temporaries = [scratch / path.name for path in paths]
        yield temporaries
        for temporary in temporaries:
            sync(temporary)
        for path in paths:
            _refuse_old(path)
        for temporary, path in zip(temporaries, paths, strict=True):
            _rename(temporary, path)
        sync(folder)


@contextlib.contextmanager
def only_new(path: Path) -> Iterator[None]:
    """In the block no file that stands at ``path`` is replaced by the functions above: of two writers the first wins.

    Raises:
        DlasError: There is one when it is to be written.
    """
    token = _guarded.set(_guarded.get() | {Path(os.path.abspath(path))})
    try:
        yield
    finally:
        _guarded.reset(token)


def _is_guarded(path: Path) -> bool:
    return Path(os.path.abspath(path)) in _guarded.get()


def _refuse_old(path: Path) -> None:
    if _is_guarded(path) and path.exists():
        raise DlasError(f"{path} exists", "it was written meanwhile; name another file")


def _rename(temporary: Path, path: Path) -> None:
    if _is_guarded(path):
        try:
            os.link(temporary, path)  # unlike a rename, it replaces nothing
            return
        except FileExistsError:
            _refuse_old(path)
        except OSError as error:
            if error.errno not in _NO_LINKS:
                raise
    os.replace(temporary, path)


@contextlib.contextmanager
def atomic_folder(path: Path, *, many: bool = False) -> Iterator[Path]:
    """An empty folder to fill, renamed to ``path`` when the block ends well and removed when it does not.

    A folder that stands at ``path`` already is replaced as a whole.

    Args:
        path: The folder.
        many: It will hold thousands of files: the whole file system is flushed at once, not one file after the other.

    Raises:
        StorageError: The parent folder does not exist or cannot be written, or the disk is full.
    """
    path = Path(path)
    with _explained(path), _scratch(path.parent, ".") as scratch:
        temporary, old = scratch / "new", scratch / "old"
        temporary.mkdir()
        yield temporary
        (_sync_all if many else sync_tree)(temporary)
        if not (path.is_dir() and _exchange(temporary, path)):
            if path.exists():
                os.rename(path, old)
            os.rename(temporary, path)
        sync(path.parent)


@contextlib.contextmanager
def scratch_folder() -> Iterator[Path]:
    """A folder for temporary files for as long as the block lasts; if the process is killed, the next one removes it.

    Raises:
        StorageError: There is no place for temporary files, or it is full or cannot be written.
    """
    with contextlib.ExitStack() as stack:
        with explain_write("temporary files", _TMPDIR_HINT):
            folder = stack.enter_context(_scratch(_temporary_root(), ""))
        yield folder


@contextlib.contextmanager
def _scratch(parent: Path, prefix: str) -> Iterator[Path]:
    folder, hold = _held(parent, prefix)
    try:
        yield folder
    finally:
        shutil.rmtree(folder, ignore_errors=True)
        os.close(hold)


def remove_dead(parent: Path) -> None:
    """Remove the scratch folders below ``parent`` whose owner is gone."""
    try:
        names = [entry.name for entry in os.scandir(parent) if _SCRATCH.fullmatch(entry.name)]
    except OSError:
        return
    for name in names:
        with contextlib.suppress(OSError):  # somebody else's, alive, or gone already
            hold = _open_folder(parent / name)
            try:
                if os.fstat(hold).st_uid == os.geteuid():
                    fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
                    shutil.rmtree(parent / name, ignore_errors=True)
            finally:
                os.close(hold)


def _held(parent: Path, prefix: str) -> tuple[Path, int]:
    """A new scratch folder and the descriptor that holds its lock."""
    remove_dead(parent)
    while True:
        folder = Path(tempfile.mkdtemp(prefix=f"{prefix}dlas-scratch-", dir=parent))
        try:
            hold = _open_folder(folder)
        except FileNotFoundError:  # swept before it was locked
            continue
        try:
            fcntl.flock(hold, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:  # being swept
            os.close(hold)
            continue
        except OSError:  # a file system without locks: nobody can sweep there either
            return folder, hold
        if folder.exists():
            return folder, hold
        os.close(hold)


def _exchange(one: Path, other: Path) -> bool:
    """Swap two paths in one step, so that neither is ever absent; whether the system can."""
    rename = getattr(ctypes.CDLL(None, use_errno=True), "renameat2", None)
    names = [os.fsencode(one), os.fsencode(other)]
    return rename is not None and rename(_HERE, names[0], _HERE, names[1], _EXCHANGE) == 0


def _open_folder(path: Path) -> int:
    return os.open(path, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC)


def _temporary_root() -> Path:
    try:
        return Path(tempfile.gettempdir())
    except FileNotFoundError as error:
        raise StorageError(
            f"there is no folder for temporary files: {error.strerror}", _TMPDIR_HINT
        ) from error


def open_regular(path: Path | str, *, folder: int | None = None, follow: bool = True) -> IO[bytes]:
    """Open a file for reading that must be one: a pipe would wait for ever, a device give bytes for ever.

    Args:
        path: The file.
        folder: Descriptor of the folder that a relative ``path`` starts from.
        follow: Whether ``path`` may be a symbolic link.

    Raises:
        OSError: It cannot be opened, or is something else than a file.
    """
    flags = os.O_RDONLY | os.O_CLOEXEC | os.O_NONBLOCK | (0 if follow else os.O_NOFOLLOW)
    handle = os.open(path, flags, dir_fd=folder)
    try:
        if not stat.S_ISREG(os.fstat(handle).st_mode):
            raise OSError(errno.EINVAL, "it is not a file", str(path))
        return os.fdopen(handle, "rb")
    except BaseException:
        os.close(handle)
        raise


def file_hash(path: Path) -> str:
    """SHA-256 of a file, or of names, sizes and contents of a folder."""
    digest = hashlib.sha256()
    for part in sorted(path.rglob("*")) if path.is_dir() else [path]:
        if part.is_file():
            if part != path:
                digest.update(f"{part.relative_to(path)}\0{part.stat().st_size}\0".encode())
            with part.open("rb") as file:
                while block := file.read(1 << 20):
                    digest.update(block)
        elif not part.exists() and part == path:
            digest.update(str(path).encode())  # a built-in data set is named, not stored
    return digest.hexdigest()


def sync(path: Path) -> None:
    """Flush a file's or a folder's content to the disk."""
    handle = os.open(path, os.O_RDONLY)
    try:
        os.fsync(handle)
    finally:
        os.close(handle)


def _sync_all(folder: Path) -> None:
    """Flush the file system that a folder is on."""
    handle = _open_folder(folder)
    try:
        if ctypes.CDLL(None, use_errno=True).syncfs(handle) != 0:
            number = ctypes.get_errno()
            raise OSError(number, os.strerror(number), str(folder))
    finally:
        os.close(handle)


def sync_tree(folder: Path) -> None:
    """Flush every file and folder below ``folder``, itself included."""
    for base, _, names in os.walk(folder):
        for name in names:
            sync(Path(base) / name)
        sync(Path(base))


@contextlib.contextmanager
def _explained(path: Path) -> Iterator[None]:
    """The refusals of a write to ``path`` as StorageError, its folder's disappearance included."""
    with explain_write(str(path), _HINT):
        _check_folder(path)
        try:
            yield
        except FileNotFoundError as error:
            if path.parent.is_dir():
                raise
            raise StorageError(f"cannot write {path}: {path.parent} was removed meanwhile", _HINT) from error


def _check_folder(path: Path) -> None:
    parent = path.parent
    if not parent.is_dir():
        what = "is not a folder" if parent.exists() else "does not exist"
        raise StorageError(
            f"cannot write {path}: {parent} {what}", "make the folder first, or choose another one"
        )
    if not os.access(parent, os.W_OK | os.X_OK):
        raise StorageError(f"cannot write {path}: {parent} is not writable", _HINT)


def _cannot_create(error: OSError) -> bool:
    """Whether a file system without room for new entries (such as /proc) said "not found" in a folder that exists."""
    if error.errno != errno.ENOENT or not error.filename:
        return False
    parent = Path(str(error.filename)).parent
    return parent.is_dir() and os.statvfs(parent).f_blocks == 0


def is_refusal(error: OSError) -> bool:
    """Whether an error says that the disk is full, read-only, broken or not ours, and not that a program is wrong."""
    return error.errno in _REFUSALS or _cannot_create(error)


@contextlib.contextmanager
def explain_write(what: str, hint: str, *, below: Path | None = None) -> Iterator[None]:
    """Turn the system's refusal to write into a StorageError; any other error passes through.

    Args:
        what: Object of the sentence ``cannot write ...``.
        hint: What the user can do.
        below: For a block that does more than write there: an error about a file outside this folder, or one that
            neither names a file nor says that a disk is full or broken, passes through as well.
    """
    try:
        yield
    except OSError as error:
        if not is_refusal(error) or not (below is None or _concerns(error, below)):
            raise
        raise StorageError(f"cannot write {what}: {error.strerror}", hint) from error


def _concerns(error: OSError, folder: Path) -> bool:
    names = [n for n in (error.filename, error.filename2) if isinstance(n, str | bytes | os.PathLike)]
    if not names:  # write(2) and fsync(2) name none
        return error.errno in _BROKEN
    root = os.path.realpath(folder)
    return any(Path(os.path.realpath(os.fsdecode(n))).is_relative_to(root) for n in names)
