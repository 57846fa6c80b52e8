"""How far two rankings of the same labels agree, row by row: by score, the lower index first in a tie."""

from __future__ import annotations

import numpy as np

_DEPTH = (
    50  # labels that rank-biased overlap looks at: the weight of all that follow is 0.9**50, half a per cent
)


def kendall_tau_b(reference: np.ndarray, other: np.ndarray, k: int = 5) -> np.ndarray:
    """Kendall's tau-b over the union of both top-k lists, ``(N,) float64``, as DeltaNN and FetaFix use it.

    A label that is not in a list has rank ``k`` there, so labels missing from the same list are tied
    (Kendall 1945; Fagin, Kumar & Sivakumar 2003 on top-k lists). Rows without any pair to order agree: 1.

    Args:
        reference: ``(N, C)`` scores.
        other: Scores of the same shape.
        k: Length of the lists; ``C`` at most.
    """
    k = min(k, reference.shape[1])
    first, second = _order(reference)[:, :k], _order(other)[:, :k]
    labels = np.concatenate([first, second], axis=1)
    known = np.ones(labels.shape, bool)
    known[:, k:] = ~(second[:, :, None] == first[:, None, :]).any(axis=2)  # each label once
    a, b = _places(labels, first), _places(labels, second)
    upper = np.triu_indices(2 * k, 1)
    pairs = known[:, upper[0]] & known[:, upper[1]]
    da = np.sign(a[:, upper[0]] - a[:, upper[1]]) * pairs
    db = np.sign(b[:, upper[0]] - b[:, upper[1]]) * pairs
    spread = np.sqrt(np.abs(da).sum(axis=1, dtype=np.float64) * np.abs(db).sum(axis=1))
    agreed = (da * db).sum(axis=1, dtype=np.float64)
    return np.divide(agreed, spread, out=np.ones(len(a)), where=spread > 0)


def rank_biased_overlap(reference: np.ndarray, other: np.ndarray, p: float = 0.9) -> np.ndarray:
    """Extrapolated rank-biased overlap ``RBO_ext`` of both rankings, ``(N,) float64`` from 0 to 1.

    Webber, Moffat & Zobel, "A similarity measure for indefinite rankings", 2010, equation 32. The first 50 labels are
    looked at.

    Args:
        reference: ``(N, C)`` scores.
        other: Scores of the same shape.
        p: Weight of depth d over depth d - 1.
    """
    depth = min(_DEPTH, reference.shape[1])
    a, b = _order(reference), _order(other)
    ranks = np.maximum(
        np.argsort(a, axis=1), np.argsort(b, axis=1)
    )  # at this depth both lists have the label
    steps = np.arange(1, depth + 1)
    shared = np.stack([(ranks < d).sum(axis=1) for d in steps], axis=1) / steps
    return shared[:, -1] * p**depth + (1 - p) / p * (shared * p**steps).sum(axis=1)


def _order(scores: np.ndarray) -> np.ndarray:
    return np.argsort(-scores.astype(np.float64), axis=1, kind="stable")


def _places(labels: np.ndarray, ranking: np.ndarray) -> np.ndarray:
    """Place of each label in a top list, its length where it is not there: ``(N, L) int64``."""
    found = labels[:, :, None] == ranking[:, None, :]
    return np.where(found.any(axis=2), found.argmax(axis=2), ranking.shape[1])
