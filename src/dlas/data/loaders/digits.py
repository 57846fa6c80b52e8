"""The 1,797 handwritten digits that ship with scikit-learn: the embedded data set, always there."""

from __future__ import annotations

from pathlib import Path

import numpy as np

from dlas.core.lazy import optional_import
from dlas.data.dataset import Dataset, DatasetFacts, Loader, loaders

_CLASSES = tuple("0123456789")


@loaders.register("digits")
class Digits(Loader):
    """8x8 grey images of ten classes (Alpaydin and Kaynak 1998, test part of the UCI optical digits).

    The original values 0..16 are spread over the usual 0..255 (``round(value * 255 / 16)``, which loses nothing), so
    that digits are prepared like any other image.
    """

    name = "digits"
    summary = "the embedded 8x8 digits of scikit-learn (no file needed)"

    @classmethod
    def accepts(cls, path: Path) -> bool:
        """The bare name ``digits``."""
        return path.parts == ("digits",)

    def load(self, path: Path) -> Dataset:
        """All digits, ``(1797, 8, 8, 1) uint8``; ``split`` of :mod:`dlas.data.splits` makes train and test."""
        sets = optional_import("sklearn.datasets", extra="all", needed_for="the digits data set")
        found = sets.load_digits()
        pixels = np.rint(found.images * (255 / 16)).astype(np.uint8)[..., None]
        return Dataset(
            "digits", pixels, found.target.astype(np.int64), _CLASSES, "classify", "scikit-learn digits"
        )

    def describe(self, path: Path) -> DatasetFacts:
        """Constant facts; nothing is loaded."""
        return DatasetFacts("digits", "digits", self.name, 1797, ("image", "label"), _CLASSES)
