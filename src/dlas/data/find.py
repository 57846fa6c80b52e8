"""From what a user types to a Dataset, and what there is to find."""

from __future__ import annotations

from pathlib import Path

from dlas.core.errors import DataError, UnknownNameError
from dlas.core.paths import data_root, resolve
from dlas.data.dataset import Dataset, DatasetFacts, Loader, loaders
from dlas.data.loaders._bounds import split_in_name
from dlas.data.splits import STANDARD, select
from dlas.data.splits import split as divide

_DEPTH = 2


def load_dataset(spec: str | Path, split: str = "", folder: Path | None = None) -> Dataset:
    """The data set that ``spec`` names.

    Args:
        spec: ``digits``, or a path: absolute, or relative to the current folder, to ``folder`` or to ``DLAS_DATA``.
            With a split, ``cifar10`` also finds ``cifar10-test.parquet`` or ``cifar10/test/``.
        split: Empty for everything; ``train`` or ``test`` otherwise. A file or folder made for that split is taken
            whole; anything else is divided by the hash of its samples (80 % and 20 %). Where rows belong to groups,
            ``speaker=theo+lucas`` takes those and ``speaker!=theo+lucas`` all others.
        folder: Where relative paths start besides the current folder, such as that of a stack file.

    Raises:
        DataError: Not found (lists where it was looked for), not readable, or of another split.
        UnknownNameError: Another split name.
    """
    if "=" in split:
        return select(load_dataset(spec, "", folder), split)
    if split and split not in STANDARD:
        raise UnknownNameError("split", split, STANDARD)
    path = Path("digits") if str(spec) == "digits" else locate(spec, split, folder)
    part = split_in_name(path)
    if split and path.is_dir() and (path / split).is_dir():
        path, part = path / split, split
    if split and part in STANDARD and part != split:
        raise DataError(
            f"{path.name} is the {part} split, but {split!r} was asked for", "name the other file"
        )
    found = loader_for(path).load(path)
    return found if not split or part == split else divide(found)[split]


def loader_for(path: Path) -> Loader:
    """The loader that reads ``path``.

    Raises:
        DataError: None does; lists what is read.
    """
    for _, loader in loaders.members():
        if loader.accepts(path):
            return loader()
    known = "; ".join(loader.summary for _, loader in loaders.members())
    raise DataError(f"{path} is not a data set that dlas reads", f"it reads: {known}")


def find_datasets(folder: Path | None = None) -> list[DatasetFacts]:
    """Facts about the embedded data set and every one below ``folder`` (default ``DLAS_DATA``), from metadata alone.

    Looks two levels deep and passes over hidden files; a file that cannot be read is listed with its problem.

    Raises:
        DataError: ``folder`` is not a folder.
    """
    folder = folder or data_root()
    found = [loader_for(Path("digits")).describe(Path("digits"))]
    if folder is None:
        return found
    if not folder.is_dir():
        raise DataError(f"{folder} is not a folder", "give the folder that holds the data sets")
    return found + _walk(folder, _DEPTH)


def _walk(folder: Path, depth: int) -> list[DatasetFacts]:
    found = []
    try:
        places = sorted(p for p in folder.iterdir() if not p.name.startswith("."))
    except OSError as error:
        return [DatasetFacts(folder.name, str(folder), "folder", problem=error.strerror or str(error))]
    kinds = [loader for _, loader in loaders.members()]
    for place in places:
        kind = next((k for k in kinds if k.accepts(place)), None)
        if kind is not None:
            try:
                found.append(kind().describe(place))
            except DataError as error:
                size = place.stat().st_size
                found.append(
                    DatasetFacts(place.stem, str(place), kind.name, size_bytes=size, problem=error.message)
                )
        elif place.is_dir() and depth > 1:
            found += _walk(place, depth - 1)
    return found


def locate(spec: str | Path, split: str, folder: Path | None) -> Path:
    """File or folder of a data set: as named, or with the split in its name (``cifar10`` for ``cifar10-test.parquet``).

    Raises:
        DataError: Not found; lists where it was looked for.
    """
    folders = [folder] if folder is not None else []
    try:
        return resolve(spec, "data set", *folders)
    except DataError:
        for suffix in (".parquet", ".npz", "") if split else ():
            try:
                return resolve(f"{spec}-{split}{suffix}", "data set", *folders)
            except DataError:
                continue
        raise
