"""Dataset: raw samples with a task, labels and splits, and the loaders that make one from a path."""

from __future__ import annotations

import hashlib
from abc import abstractmethod
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import cached_property
from pathlib import Path
from typing import ClassVar

import numpy as np

from dlas.core.errors import DataError
from dlas.core.options import Configurable
from dlas.core.registry import Registry

loaders: Registry[type[Loader]] = Registry("loader", "dlas.data.loaders")

Samples = Sequence[bytes] | np.ndarray
"""Encoded images or recordings (bytes, one each) or an array whose first axis is the sample."""


@dataclass(frozen=True, eq=False)
class Dataset:
    """Samples of one problem.

    Attributes:
        name: Short name for tables.
        samples: Encoded images or recordings, or an array ``(N, H, W, C) uint8`` / ``(N, ...) float32``.
        labels: ``(N,) int64`` class indices, or None.
        classes: Class names in index order; may be empty.
        task: What is asked of the network; ``classify`` or ``none`` (inputs without labels).
        source: File name and what else identifies it.
        rows: ``(N,) int64``, where each sample stood in its file.
        groups: What samples have in common besides their class, such as who speaks: name to ``(N,) str``. Samples of
            one group are not independent of each other.
    """

    name: str
    samples: Samples
    labels: np.ndarray | None = None
    classes: tuple[str, ...] = ()
    task: str = "classify"
    source: str = ""
    rows: np.ndarray = field(default_factory=lambda: np.zeros(0, np.int64), repr=False)
    groups: Mapping[str, np.ndarray] = field(default_factory=dict, repr=False)

    def __post_init__(self) -> None:
        if len(self.samples) == 0:
            raise DataError(f"{self.name}: no samples", "check the file or the split")
        if self.labels is not None and len(self.labels) != len(self.samples):
            raise DataError(f"{self.name}: {len(self.samples)} samples but {len(self.labels)} labels")
        for name, values in self.groups.items():
            if len(values) != len(self.samples):
                raise DataError(f"{self.name}: {len(self.samples)} samples but {len(values)} of {name}")
        if len(self.rows) == 0:
            object.__setattr__(self, "rows", np.arange(len(self.samples), dtype=np.int64))

    def __len__(self) -> int:
        return len(self.samples)

    @cached_property
    def hash(self) -> str:
        """SHA-256 over samples and labels, in order."""
        digest = hashlib.sha256()
        if isinstance(self.samples, np.ndarray):
            digest.update(str((self.samples.dtype, self.samples.shape)).encode())
            digest.update(np.ascontiguousarray(self.samples).data)
        else:
            for sample in self.samples:
                digest.update(len(sample).to_bytes(8, "little"))
                digest.update(sample)
        if self.labels is not None:
            digest.update(np.ascontiguousarray(self.labels).data)
        return digest.hexdigest()

    def take(self, rows: np.ndarray | Sequence[int]) -> Dataset:
        """The samples at ``rows``, in that order."""
        index = np.asarray(rows, np.int64)
        samples = (
            self.samples[index] if isinstance(self.samples, np.ndarray) else [self.samples[i] for i in index]
        )
        labels = None if self.labels is None else self.labels[index]
        groups = {name: values[index] for name, values in self.groups.items()}
        return replace(self, samples=samples, labels=labels, rows=self.rows[index], groups=groups)

    def head(self, count: int) -> Dataset:
        """The first ``count`` samples (all of them if there are fewer, or if ``count`` is 0)."""
        return self if count == 0 or count >= len(self) else self.take(np.arange(count))


@dataclass(frozen=True)
class DatasetFacts:
    """What can be said about a data set without reading its samples.

    Attributes:
        name: Short name for tables.
        path: Where it is; what a user would type for data sets that are not files.
        kind: Name of the loader that reads it.
        rows: Number of samples; None when unknown.
        columns: Columns, arrays or sub-folders it holds.
        classes: Class names in index order; may be empty.
        size_bytes: Size on disk.
        split: ``train``, ``test`` or empty, by its name.
        problem: Why it cannot be used, in one line; empty if it can.
    """

    name: str
    path: str
    kind: str
    rows: int | None = None
    columns: tuple[str, ...] = ()
    classes: tuple[str, ...] = ()
    size_bytes: int = 0
    split: str = ""
    problem: str = ""


class Loader(Configurable):
    """Turns a path into a Dataset."""

    suffixes: ClassVar[tuple[str, ...]] = ()

    @classmethod
    @abstractmethod
    def accepts(cls, path: Path) -> bool:
        """Whether this loader reads ``path`` (by ending or by what a folder holds)."""

    @abstractmethod
    def load(self, path: Path) -> Dataset:
        """Read everything.

        Raises:
            DataError: Missing, truncated, or without the expected columns; says which.
        """

    @abstractmethod
    def describe(self, path: Path) -> DatasetFacts:
        """Facts from metadata alone, cheap enough for listing many files.

        Raises:
            DataError: As :meth:`load`, as far as metadata can tell.
        """
