"""A folder of images: one sub-folder per class, or all images in one place without labels."""

from __future__ import annotations

import itertools
from pathlib import Path

import numpy as np

from dlas.core.errors import DataError
from dlas.data.dataset import Dataset, DatasetFacts, Loader, loaders
from dlas.data.loaders._bounds import check_size, split_in_name

ENDINGS = (".png", ".jpg", ".jpeg", ".bmp", ".webp", ".ppm", ".pgm", ".tif", ".tiff", ".gif")
_SPLITS = {"train", "test", "val", "valid", "validation"}


@loaders.register("image-folder")
class ImageFolder(Loader):
    """Classes are the sub-folders in the order of their names; files are taken in the order of theirs."""

    name = "image-folder"
    summary = "folder of images, one sub-folder per class (or flat, without labels)"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """Folders that hold an image, or two sub-folders that do."""
        if not path.is_dir():
            return False
        filled = (folder for folder in _folders(path) if any(map(_is_image, folder.iterdir())))
        return any(map(_is_image, path.iterdir())) or len(list(itertools.islice(filled, 2))) == 2

    def load(self, path: Path) -> Dataset:
        """Samples as bytes.

        Raises:
            DataError: No images, or a file that cannot be read.
        """
        classes, files, labels = _listing(path)
        check_size(path, sum(file.stat().st_size for file in files))
        try:
            samples = [file.read_bytes() for file in files]
        except OSError as error:
            raise DataError(f"{error.filename} cannot be read: {error.strerror}") from error
        task = "classify" if classes else "none"
        return Dataset(path.name, samples, labels, classes, task, f"{path.name}/")

    def describe(self, path: Path) -> DatasetFacts:
        """Counts of files, without opening them."""
        classes, files, _ = _listing(path)
        size = sum(file.stat().st_size for file in files)
        return DatasetFacts(
            path.name, str(path), self.name, len(files), (), classes, size, split_in_name(path)
        )


def _is_image(path: Path) -> bool:
    return path.suffix.lower() in ENDINGS and not path.name.startswith(".") and path.is_file()


def _images(folder: Path) -> list[Path]:
    return sorted(p for p in folder.iterdir() if _is_image(p))


def _folders(path: Path) -> list[Path]:
    return sorted(p for p in path.iterdir() if p.is_dir() and not p.name.startswith("."))


def _listing(path: Path) -> tuple[tuple[str, ...], list[Path], np.ndarray | None]:
    by_class = {folder.name: _images(folder) for folder in _folders(path)}
    by_class = {name: files for name, files in by_class.items() if files}
    if by_class and set(by_class) <= _SPLITS:
        raise DataError(f"{path} holds the splits {', '.join(by_class)}", "name one of them as the split")
    flat = _images(path)
    if by_class and flat:
        raise DataError(
            f"{path} holds {len(flat)} images beside the class folders {', '.join(list(by_class)[:5])}",
            "move them into a class folder",
        )
    if not by_class and not flat:
        raise DataError(f"{path} holds no images", f"expected files ending in {', '.join(ENDINGS)}")
    if flat:
        return (), flat, None
    labels = np.repeat(np.arange(len(by_class)), [len(files) for files in by_class.values()])
    return tuple(by_class), [f for files in by_class.values() for f in files], labels.astype(np.int64)
