"""NumPy archives: samples under ``x`` (or ``images``, ``inputs``), labels under ``y`` (or ``labels``)."""

from __future__ import annotations

import math
import tokenize
import zipfile
import zlib
from pathlib import Path

import numpy as np

from dlas.core.errors import DataError
from dlas.data.dataset import Dataset, DatasetFacts, Loader, loaders
from dlas.data.loaders._bounds import check_size, split_in_name

_SAMPLES = ("x", "images", "inputs", "samples")
_LABELS = ("y", "labels", "label", "targets")
_CLASSES = ("classes", "class_names")


@loaders.register("npz")
class Npz(Loader):
    """uint8 arrays are pixels ``(N, H, W[, C])``; floating-point arrays are inputs as the network takes them."""

    name = "npz"
    summary = "NumPy archive with arrays x and y (or images and labels, or inputs)"
    suffixes = (".npz",)

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Files that end in ``.npz``."""
        return path.suffix.lower() in cls.suffixes and path.is_file()

    def load(self, path: Path) -> Dataset:
        """All samples; whole numbers from 0 to 255 become uint8, other numbers float32.

        Raises:
            DataError: Not an archive of plain arrays, truncated, arrays missing, NaN, or labels that do not fit.
        """
        names = _names(path)
        x_name = _pick(names, _SAMPLES)
        if not x_name:
            raise DataError(
                f"{path.name} holds the arrays {', '.join(names) or '(none)'}", f"expected one of {_SAMPLES}"
            )
        samples = _samples(_read(path, x_name), path, x_name)
        classes = _texts(_read(path, name), path) if (name := _pick(names, _CLASSES)) else ()
        y_name = _pick(names, _LABELS)
        labels = _labels(_read(path, y_name), path, y_name, classes) if y_name else None
        task = "none" if labels is None else "classify"
        return Dataset(path.stem, samples, labels, classes, task, f"{path.name}: {x_name}")

    def describe(self, path: Path) -> DatasetFacts:
        """Array names and the number of samples, from the headers."""
        names = _names(path)
        x_name = _pick(names, _SAMPLES)
        rows, problem = None, "" if x_name else f"none of its arrays is called {', '.join(_SAMPLES)}"
        if x_name:
            shape = _header(path, x_name)
            rows = shape[0] if shape else 0
        return DatasetFacts(
            path.stem, str(path), self.name, rows, tuple(names), (), path.stat().st_size, split_in_name(path), problem
        )  # fmt: skip


def _pick(names: list[str], wanted: tuple[str, ...]) -> str:
    return next((name for name in wanted if name in names), "")


def _refused(path: Path, error: Exception) -> DataError:
    cause = " ".join(str(error).split())[:200]
    return DataError(f"{path} cannot be read as a NumPy archive: {cause}", "write it with numpy.savez")


_FAULTS = (
    OSError,
    ValueError,
    EOFError,
    KeyError,
    zipfile.BadZipFile,
    zlib.error,
    NotImplementedError,
    SyntaxError,
    SystemError,
    tokenize.TokenError,
)


def _names(path: Path) -> list[str]:
    try:
        with zipfile.ZipFile(path) as archive:
            check_size(path, sum(member.file_size for member in archive.infolist()))
            return [name.removesuffix(".npy") for name in archive.namelist()]
    except _FAULTS as error:
        raise _refused(path, error) from error


def _read(path: Path, name: str) -> np.ndarray:
    _header(path, name)
    try:
        with np.load(path, allow_pickle=False) as archive:
            return archive[name]
    except (*_FAULTS, MemoryError, OverflowError, TypeError) as error:
        raise _refused(path, error) from error


def _texts(names: np.ndarray, path: Path) -> tuple[str, ...]:
    try:
        return tuple(map(str, names.reshape(-1)))
    except _FAULTS as error:  # four bytes that are no character
        raise _refused(path, error) from error


def _header(path: Path, name: str) -> tuple[int, ...]:
    """Shape of an array, once it was found to be as large as its entry in the archive."""
    try:
        with zipfile.ZipFile(path) as archive, archive.open(f"{name}.npy") as member:
            version = np.lib.format.read_magic(member)
            read = (
                np.lib.format.read_array_header_1_0
                if version == (1, 0)
                else np.lib.format.read_array_header_2_0
            )
            shape, _, dtype = read(member)
            held = archive.getinfo(f"{name}.npy").file_size - member.tell()
            wanted = math.prod(shape) * dtype.itemsize
            if dtype.hasobject or wanted != held:
                what = "Python objects" if dtype.hasobject else f"{wanted} bytes, but its entry has {held}"
                raise ValueError(f"the array {name!r} of shape {list(shape)} is said to hold {what}")
            return shape
    except (*_FAULTS, OverflowError, TypeError) as error:
        raise _refused(path, error) from error


def _samples(x: np.ndarray, path: Path, name: str) -> np.ndarray:
    if x.ndim < 2 or x.dtype.kind not in "buif":
        raise DataError(
            f"{path.name}: {name} is {x.dtype.name}{list(x.shape)}",
            "expected numbers with the sample as first axis",
        )
    if x.size == 0:
        raise DataError(f"{path.name}: {name} has no samples: its shape is {list(x.shape)}")
    if x.dtype == np.uint8:
        return x
    if x.dtype.kind != "f" and x.min() >= 0 and x.max() <= 255 and x.ndim > 2:
        return x.astype(np.uint8)
    ready = x.astype(np.float32)
    finite = np.isfinite(ready).reshape(len(x), -1).all(1)
    if not finite.all():
        raise DataError(f"{path.name}: {name} holds NaN or infinity, first in row {int(np.argmin(finite))}")
    return ready


def _labels(y: np.ndarray, path: Path, name: str, classes: tuple[str, ...]) -> np.ndarray:
    flat = y.reshape(-1) if y.ndim == 2 and y.shape[1] == 1 else y
    if flat.ndim != 1 or flat.dtype.kind not in "ui" or (flat.size and flat.min() < 0):
        raise DataError(
            f"{path.name}: {name} is {y.dtype.name}{list(y.shape)}", "expected class indices (N,) from 0 up"
        )
    labels = flat.astype(np.int64)
    if classes and labels.size and labels.max() >= len(classes):
        raise DataError(
            f"{path.name}: {name} goes up to {labels.max()}, but there are {len(classes)} classes"
        )
    return labels
