"""Parts of a data set: by hash, so that reordering or growing a set moves no sample to the other side; or by group."""

from __future__ import annotations

import hashlib
from collections.abc import Mapping

import numpy as np

from dlas.core.errors import OptionError, UnknownNameError
from dlas.data.dataset import Dataset

STANDARD: Mapping[str, float] = {"train": 0.8, "test": 0.2}
"""What ``split = "train"`` and ``"test"`` mean for a data set that comes in one piece."""


def split(dataset: Dataset, fractions: Mapping[str, float] = STANDARD, salt: str = "") -> dict[str, Dataset]:
    """Parts by name; equal samples always land in the same part, wherever they stand.

    Args:
        dataset: What to split.
        fractions: Part name to share of the samples; the shares add up to at most 1, the rest is left out.
        salt: Hashed with each sample; a part can be divided again only under another salt.

    Raises:
        OptionError: A share is not positive, or they add up to more than 1.
        DataError: A part comes out empty.
    """
    if not fractions or min(fractions.values()) <= 0 or sum(fractions.values()) > 1 + 1e-9:
        raise OptionError("fractions", dict(fractions), "positive shares that add up to at most 1")
    position = _positions(dataset, salt.encode())
    parts, start = {}, 0.0
    for name, share in fractions.items():
        end = start + share
        inside = (position >= start) & (position < (end if end < 1 - 1e-9 else 2.0))
        parts[name] = _part(dataset, np.flatnonzero(inside))
        start = end
    return parts


def select(dataset: Dataset, wanted: str) -> Dataset:
    """The samples of some groups, or all but those: ``speaker=theo+lucas``, ``speaker!=theo``.

    What was trained without a speaker can be judged on that speaker alone: none of its voice was seen before.

    Raises:
        OptionError: Another form.
        UnknownNameError: The data set knows no such group, or nobody of that name.
        DataError: Nothing is left.
    """
    name, sign, values = wanted.partition("=")
    without = name.endswith("!")
    name = name.removesuffix("!").strip()
    chosen = [value.strip() for value in values.split("+")]
    if not sign or not name or not all(chosen):
        raise OptionError("split", wanted, "GROUP=NAME+NAME or GROUP!=NAME+NAME, such as speaker!=theo")
    if name not in dataset.groups:
        raise UnknownNameError(f"group of {dataset.name}", name, dataset.groups)
    own = dataset.groups[name]
    for value in chosen:
        if value not in own:
            raise UnknownNameError(f"{name} of {dataset.name}", value, set(own.tolist()))
    return dataset.take(np.flatnonzero(np.isin(own, chosen) != without))


def sample(dataset: Dataset, n: int, seed: int = 0, balanced: bool = True) -> Dataset:
    """``n`` samples drawn without replacement (all of them, shuffled, if there are fewer).

    Args:
        dataset: What to draw from.
        n: Number of samples.
        seed: Same seed, same samples.
        balanced: Take the classes in turn, so that this sample and every beginning of it holds each class as often
            as any other (as far as they last); without labels the draw is plain.
    """
    if n < 1:
        raise OptionError("n", n, "at least 1")
    rng = np.random.default_rng(seed)
    order = rng.permutation(len(dataset))
    if balanced and dataset.labels is not None:
        labels = dataset.labels[order]
        turn = np.empty(len(order), np.int64)
        for label in np.unique(labels):
            mine = np.flatnonzero(labels == label)
            turn[mine] = np.arange(len(mine))
        order = order[np.argsort(turn, kind="stable")]
    return dataset.take(order[:n])


def _positions(dataset: Dataset, salt: bytes) -> np.ndarray:
    """A number in [0, 1) per sample, ``(N,) float64``, from the hash of its bytes."""
    digests = (hashlib.sha256(salt + bytes_of(dataset, row)).digest() for row in range(len(dataset)))
    return np.array([int.from_bytes(d[:6], "big") / 2**48 for d in digests])


def bytes_of(dataset: Dataset, row: int) -> bytes:
    """What identifies a sample: its encoded bytes, or its array content."""
    sample = dataset.samples[row]
    return sample if isinstance(sample, bytes) else np.ascontiguousarray(sample).tobytes()


def _part(dataset: Dataset, rows: np.ndarray) -> Dataset:
    return dataset.take(rows)  # an empty part is refused by Dataset itself, with the reason
