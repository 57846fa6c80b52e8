"""HDF5 files, walked before Keras opens them: no data outside the file, no size that is not there.

HDF5 can point to other files in four ways (external links, external storage, virtual data sets, filters loaded as
libraries) and may declare arrays of any size without storing a byte of them.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from dataclasses import dataclass
from pathlib import Path
from typing import IO, Any

import numpy as np

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.lazy import optional_import

SIGNATURE = b"\x89HDF\r\n\x1a\n"
_MAX_OBJECTS = 200_000
_BLOAT = 20  # Keras stores arrays as they are; what grows further than this is not one of its files
_FILTERS = {1, 2, 3, 32000}  # deflate, shuffle, checksum, lzf: those that are built in
_PIECE = 2**24  # elements looked at together


@dataclass(frozen=True)
class Array:
    """One stored array.

    Attributes:
        name: Path in the file.
        shape: Sizes.
        dtype: NumPy name of the dtype.
        nbytes: Bytes it takes in memory.
    """

    name: str
    shape: tuple[int, ...]
    dtype: str
    nbytes: int


def scan(source: Path | IO[bytes], file: str, size: int, *, allow_nan: bool, limit: int) -> tuple[Array, ...]:
    """Check every object of an HDF5 file and list its arrays.

    Args:
        source: The file.
        file: What to call it in errors.
        size: Bytes it has.
        allow_nan: Accept weights that are NaN or infinite.
        limit: Bytes all arrays may take together.

    Raises:
        ModelError: Damaged, pointing outside itself, larger inside than outside, or NaN.
        UnsupportedError: It holds arrays that are not numbers.
        MissingDependencyError: h5py is not installed.
    """
    h5py = optional_import("h5py", extra="keras", needed_for="reading a Keras file")
    try:
        with h5py.File(source, "r") as opened:
            return tuple(_arrays(h5py, opened, file, size, allow_nan, limit))
    except _FAULTS as error:
        raise damaged(file, error) from error


def attribute(source: Path, name: str, file: str) -> bytes | None:
    """A text attribute of the file's root, or None; a long one may be cut into numbered pieces."""
    h5py = optional_import("h5py", extra="keras", needed_for="reading a Keras file")
    try:
        with h5py.File(source, "r") as opened:
            if name not in opened.attrs:
                return None
            value = opened.attrs[name]
    except _FAULTS as error:
        raise damaged(file, error) from error
    if isinstance(value, str):
        return value.encode(errors="surrogateescape")
    if isinstance(value, bytes):
        return value
    raise ModelError(f"{file}: its attribute {name!r} is not text", "save it again with Keras")


def damaged(file: str, error: BaseException) -> ModelError:
    """The error for a file that h5py or zipfile cannot read."""
    reason = " ".join(str(error).split())[:200] or type(error).__name__
    return ModelError(f"{file} is damaged: {reason}", "check that it was downloaded or exported completely")


# What h5py raises on bytes that make no sense.
_FAULTS = (
    ArithmeticError,
    AttributeError,
    LookupError,
    MemoryError,
    OSError,
    RuntimeError,
    TypeError,
    ValueError,
)


def _arrays(h5py: Any, opened: Any, file: str, size: int, allow_nan: bool, limit: int) -> Iterator[Array]:
    total = 0
    for name, dataset in _datasets(h5py, opened, file):
        array = _checked(h5py, name, dataset, file)
        total += array.nbytes
        if total > limit:
            raise ModelError(
                f"{file}: its arrays take {total} bytes and more, at most {limit} are read", "raise max_bytes"
            )
        if total > _BLOAT * size + 2**20:
            raise ModelError(
                f"{file} is {size} bytes but claims to unpack to {total} and more: refused",
                "save it again with Keras",
            )
        # The optimizer's state is never loaded.
        if not allow_nan and dataset.dtype.kind == "f" and not name.startswith("optimizer"):
            _refuse_nan(dataset, name, file)
        yield array


def _datasets(h5py: Any, root: Any, file: str) -> Iterator[tuple[str, Any]]:
    """Data sets by path; a group that is reached twice is an error, because such a file can be walked for ever."""
    waiting = [("", root)]
    seen: set[Any] = set()
    count = 0
    while waiting:
        path, group = waiting.pop()
        address = h5py.h5o.get_info(group.id).addr
        if address in seen:
            raise ModelError(f"{file}: the group {path!r} is linked twice", "save it again with Keras")
        seen.add(address)
        for name in group:
            count += 1
            if count > _MAX_OBJECTS:
                raise ModelError(f"{file} has more than {_MAX_OBJECTS} objects", "save it again with Keras")
            where = f"{path}/{name}"
            link = group.get(name, getlink=True)
            if not isinstance(link, h5py.HardLink):
                target = getattr(link, "filename", "") or getattr(link, "path", "")
                raise ModelError(
                    f"{file}: {where!r} is a link to {target!r}", "weights must lie in the file itself"
                )
            entry = group[name]
            if isinstance(entry, h5py.Group):
                waiting.append((where, entry))
            elif isinstance(entry, h5py.Dataset):
                yield where.lstrip("/"), entry
            else:
                raise UnsupportedError(f"{file}: {where!r} is a {type(entry).__name__}, not an array")


def _checked(h5py: Any, name: str, dataset: Any, file: str) -> Array:
    made = dataset.id.get_create_plist()
    if made.get_layout() == h5py.h5d.VIRTUAL or made.get_external_count():
        raise ModelError(
            f"{file}: the array {name!r} lies in other files", "weights must lie in the file itself"
        )
    filters = {made.get_filter(i)[0] for i in range(made.get_nfilters())}
    if filters - _FILTERS:
        raise UnsupportedError(
            f"{file}: the array {name!r} needs HDF5 filter {min(filters - _FILTERS)}", "save it uncompressed"
        )
    if dataset.dtype.kind not in "fiub":
        raise UnsupportedError(
            f"{file}: the array {name!r} holds {dataset.dtype}, not numbers", "export it without such layers"
        )
    shape = dataset.shape
    if shape is None:
        raise ModelError(f"{file}: the array {name!r} has no shape", "save it again with Keras")
    nbytes = math.prod(shape) * dataset.dtype.itemsize
    stored = dataset.id.get_storage_size()
    if (not filters and stored < nbytes) or (nbytes and not stored):
        raise ModelError(
            f"{file}: the array {name!r} declares {nbytes} bytes but {stored} are stored",
            "check that it was exported completely",
        )
    return Array(name, tuple(int(s) for s in shape), dataset.dtype.name, nbytes)


def _refuse_nan(dataset: Any, name: str, file: str) -> None:
    rows = dataset.shape[0] if dataset.shape else 1
    step = max(1, _PIECE * rows // max(1, dataset.size))
    for start in range(0, rows, step):
        piece = np.asarray(dataset[start : start + step] if dataset.shape else dataset[()])
        if not np.isfinite(piece).all():
            raise ModelError(
                f"{file}: the array {name!r} holds NaN or infinity",
                "train or export it again, or read it with allow_nan",
            )
