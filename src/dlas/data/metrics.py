"""How good answers are: fractions with their 95 % interval."""

from __future__ import annotations

import numpy as np

from dlas.core.errors import DataError, OptionError
from dlas.core.figure import Figure
from dlas.core.statistics import proportion


def top1(scores: np.ndarray, labels: np.ndarray, label_offset: int = 0) -> Figure:
    """Share of samples whose highest score is that of their label; see :func:`topk`."""
    return topk(scores, labels, 1, label_offset)


def topk(scores: np.ndarray, labels: np.ndarray, k: int, label_offset: int = 0) -> Figure:
    """Share of samples whose label is among the ``k`` highest scores.

    Args:
        scores: ``(N, classes)`` floating point or integer (further axes of size 1 are ignored).
        labels: ``(N,)`` class indices.
        k: Number of answers that count.
        label_offset: Added to the labels, for networks whose class 0 is a background class.

    Returns:
        A measured fraction with its Wilson interval. Among equal scores the lower index comes first (as ``argmax``
        has it); a sample with a NaN score counts as wrong and is mentioned in the note.

    Raises:
        DataError: Counts or label range do not fit the scores.
    """
    right, note = hits(scores, labels, k, label_offset)
    return proportion(int(right.sum()), len(right), note)


def hits(scores: np.ndarray, labels: np.ndarray, k: int = 1, label_offset: int = 0) -> tuple[np.ndarray, str]:
    """Which samples are right, ``(N,) bool``, and a note on what is odd about the scores."""
    labels = np.asarray(labels, np.int64) + label_offset
    scores = np.asarray(scores)
    if len(scores) != len(labels) or len(labels) == 0:
        raise DataError(f"{len(scores)} rows of scores but {len(labels)} labels")
    scores = scores.reshape(len(scores), -1)
    classes = scores.shape[1]
    if not 1 <= k <= classes:
        raise OptionError("k", k, f"1..{classes}")
    low, high = int(labels.min()), int(labels.max())
    if low < 0 or high >= classes:
        raise DataError(
            f"labels go from {low} to {high}, but there are {classes} scores per sample",
            "is this the data set the network was trained for? `label_offset` shifts labels",
        )
    own = np.take_along_axis(scores, labels[:, None], 1)
    before = (scores > own) | ((scores == own) & (np.arange(classes) < labels[:, None]))
    broken = np.isnan(scores).any(1) if scores.dtype.kind == "f" else np.zeros(len(scores), bool)
    note = f"{int(broken.sum())} samples have NaN scores" if broken.any() else ""
    return (before.sum(1) < k) & ~broken, note
