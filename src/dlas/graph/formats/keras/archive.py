"""``.keras`` archives: a zip of configuration and weights, checked member by member before Keras opens it."""

from __future__ import annotations

import contextlib
import io
import json
import stat
import zipfile
import zlib
from dataclasses import dataclass
from pathlib import Path

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.keras.config import MAX_TEXT
from dlas.graph.formats.keras.hdf5 import Array, damaged, scan

CONFIG, METADATA, WEIGHTS = "config.json", "metadata.json", "model.weights.h5"
_MEMBERS = {CONFIG: MAX_TEXT, METADATA: 2**20, WEIGHTS: None}
_BLOAT = 20  # Keras does not compress; a file that someone packed again stays far below
_FAULTS = (zipfile.BadZipFile, ArithmeticError, EOFError, LookupError, NotImplementedError, OSError, RuntimeError,
           ValueError, zlib.error)  # fmt: skip


@dataclass(frozen=True)
class Archive:
    """What an archive holds.

    Attributes:
        config: The configuration, JSON text.
        arrays: The weights.
        written_by: Version of Keras that wrote it, or an empty string.
    """

    config: bytes
    arrays: tuple[Array, ...]
    written_by: str


def open_archive(path: Path, *, allow_nan: bool, limit: int) -> Archive:
    """Read an archive without Keras.

    Raises:
        ModelError: Damaged, a zip bomb, members that are doubled, lie outside or are links, NaN weights.
        UnsupportedError: It brings files that layers read (assets).
    """
    try:
        with zipfile.ZipFile(path) as archive:
            members = _members(archive, path, limit)
            config = _read(archive, members[CONFIG])
            weights = _read(archive, members[WEIGHTS])
            about = _read(archive, members[METADATA]) if METADATA in members else b"{}"
    except _FAULTS as error:
        raise damaged(path.name, error) from error
    arrays = scan(
        io.BytesIO(weights), f"{path.name}: {WEIGHTS}", len(weights), allow_nan=allow_nan, limit=limit
    )
    return Archive(config, arrays, _version(about))


def _version(about: bytes) -> str:
    with contextlib.suppress(ValueError, RecursionError):
        found = json.loads(about)
        if isinstance(found, dict) and isinstance(found.get("keras_version"), str):
            return found["keras_version"]
    return ""


def _members(archive: zipfile.ZipFile, path: Path, limit: int) -> dict[str, zipfile.ZipInfo]:
    found: dict[str, zipfile.ZipInfo] = {}
    total = 0
    size = path.stat().st_size
    for entry in archive.infolist():
        name = entry.filename
        if name.startswith(("/", "\\")) or ".." in name.replace("\\", "/").split("/") or ":" in name:
            raise ModelError(f"{path.name}: it packs {name!r}, which lies outside the archive", "refused")
        if stat.S_ISLNK(entry.external_attr >> 16):
            raise ModelError(f"{path.name}: {name!r} is a link", "save it again with Keras")
        if name in found:
            raise ModelError(f"{path.name}: it packs {name!r} twice", "save it again with Keras")
        found[name] = entry
        total += entry.file_size
        if entry.is_dir() and not entry.file_size:
            continue
        if name.startswith("assets/"):
            raise UnsupportedError(
                f"{path.name}: it brings the file {name!r} for a layer to read",
                "export it without such layers",
            )
        if name not in _MEMBERS:
            raise UnsupportedError(
                f"{path.name}: it packs {name!r}; accepted: {', '.join(_MEMBERS)}",
                "save it again with Keras 3",
            )
        if entry.file_size > (_MEMBERS[name] or limit):
            raise ModelError(f"{path.name}: {name!r} claims {entry.file_size} bytes, too many to read")
    if total > _BLOAT * size + 2**20:
        raise ModelError(
            f"{path.name} is {size} bytes but claims to unpack to {total}: refused as a zip bomb",
            "save it again with Keras",
        )
    for name in (CONFIG, WEIGHTS):
        if name not in found:
            raise ModelError(f"{path.name} holds no {name}", "save it again with Keras")
    return found


def _read(archive: zipfile.ZipFile, entry: zipfile.ZipInfo) -> bytes:
    """The member's bytes, never more than it declares."""
    with archive.open(entry) as member:
        content = member.read(entry.file_size + 1)
    if len(content) != entry.file_size:
        raise ModelError(
            f"{entry.filename!r} declares {entry.file_size} bytes and holds {len(content)} or more"
        )
    return content
