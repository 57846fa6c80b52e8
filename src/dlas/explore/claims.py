"""Who tries which point: several processes share one study, and each point is tried by one of them.

A claim is a lock that the system takes back when its holder dies, so a killed process leaves its points to the
others.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterable, Iterator
from pathlib import Path
from typing import Protocol

from dlas.core.errors import DlasError
from dlas.core.files import explain_write
from dlas.core.locks import acquire, folder_lock, is_held, release


class Claims(Protocol):
    """What a study needs to share its points with other processes."""

    def take(self, keys: Iterable[str]) -> list[str]:
        """Claim what nobody else holds; returns the keys that were got."""
        ...

    def release(self, keys: Iterable[str]) -> None:
        """Give claims back."""
        ...


class Unshared:
    """Claims of a study that no other process can see: everything is free."""

    def take(self, keys: Iterable[str]) -> list[str]:
        """All of them."""
        return list(keys)

    def release(self, keys: Iterable[str]) -> None:
        """Nothing to give back."""


class FolderClaims:
    """Claims as lock files in one folder; use :func:`claims_in`."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self._handles: dict[str, int] = {}

    def take(self, keys: Iterable[str]) -> list[str]:
        """See Claims."""
        got = []
        for key in keys:
            handle = acquire(self._path(key), wait=False)
            if handle is not None:
                self._handles[key] = handle
                got.append(key)
        return got

    def release(self, keys: Iterable[str]) -> None:
        """See Claims."""
        for key in keys:
            release(self._path(key), self._handles.pop(key))

    def close(self) -> None:
        """Give everything back, and remove what killed processes left."""
        self.release(list(self._handles))
        for path in self.folder.glob("*.lock"):
            handle = acquire(path, wait=False)
            if handle is not None:
                release(path, handle)

    def _path(self, key: str) -> Path:
        return self.folder / f"{key}.lock"


@contextlib.contextmanager
def claims_in(study: Path, *, alone: bool = False) -> Iterator[FolderClaims]:
    """Take part in the study in folder ``study``.

    Args:
        study: Folder of the study.
        alone: Nobody else may take part meanwhile.

    Raises:
        DlasError: ``alone`` was asked for and another process takes part, or another one is alone; or the folder
            cannot be written or locked.
    """
    folder = study / ".claims"
    what, hint = f"to {study}", "name another folder with --out"
    with explain_write(what, hint):
        folder.mkdir(parents=True, exist_ok=True)
    with explain_write(what, hint, below=study), folder_lock(study, shared=not alone, wait=False) as got:
        if not got:
            raise DlasError(
                f"another dlas is running the study in {study}",
                "only one may measure everything again; wait for it, or name another folder with --out",
            )
        place = FolderClaims(folder)
        try:
            yield place
        finally:
            try:
                place.close()
            finally:
                # The last one out takes the folder along; others still have files in it.
                with contextlib.suppress(OSError):
                    folder.rmdir()


def claimed(study: Path) -> frozenset[str]:
    """Keys of the points that living processes are trying in the study in folder ``study``; for onlookers."""
    return frozenset(path.stem for path in (study / ".claims").glob("*.lock") if is_held(path))
