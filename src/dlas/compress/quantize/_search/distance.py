"""How far the answers of a quantised network are from those of the float one, as one number to make small.

Each takes ``(N, ...) float32`` answers of both networks, the rows in the same order. ``infonce`` asks of every row
that its answer be nearer to its own float answer than to those of the other rows of its batch, which keeps what tells
rows apart and leaves alone what all of them share.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np

TEMPERATURE = 3.0
_EPSILON = 1e-12

Distance = Callable[[np.ndarray, np.ndarray], float]
"""Quantised and float answers of one batch, ``(n, k) float64`` -> loss."""


def infonce(ours: np.ndarray, exact: np.ndarray) -> float:
    """Cross-entropy of telling each row's float answer from the others' by cosine, times twice the temperature.

    van den Oord et al. 2018, "Representation Learning with Contrastive Predictive Coding"; temperature 3 as in CPT-V.
    """
    products = _unit(ours) @ _unit(exact).T / TEMPERATURE
    peak = products.max(1, keepdims=True)
    logs = products - peak - np.log(np.exp(products - peak).sum(1, keepdims=True))
    return float(-np.diagonal(logs).mean() * 2 * TEMPERATURE)


def mse(ours: np.ndarray, exact: np.ndarray) -> float:
    """Mean squared difference."""
    return float(((ours - exact) ** 2).mean())


def kl(ours: np.ndarray, exact: np.ndarray) -> float:
    """Mean Kullback-Leibler divergence of the classes' probabilities from the float ones, in nats."""
    p, q = _log_softmax(exact), _log_softmax(ours)
    return float((np.exp(p) * (p - q)).sum(1).mean())


def cosine(ours: np.ndarray, exact: np.ndarray) -> float:
    """1 minus the mean cosine of both answers."""
    return float(1.0 - (_unit(ours) * _unit(exact)).sum(1).mean())


DISTANCES: dict[str, Distance] = {"infonce": infonce, "mse": mse, "kl": kl, "cosine": cosine}


def mean_distance(name: str, ours: np.ndarray, exact: np.ndarray, batch: int) -> float:
    """Mean of a distance over batches of rows, each weighing the same; the last one may be smaller."""
    distance = DISTANCES[name]
    ours, exact = (a.reshape(len(a), -1).astype(np.float64) for a in (ours, exact))
    starts = range(0, len(ours), batch)
    return float(np.mean([distance(ours[s : s + batch], exact[s : s + batch]) for s in starts]))


def _unit(rows: np.ndarray) -> np.ndarray:
    return rows / np.maximum(np.linalg.norm(rows, axis=1, keepdims=True), _EPSILON)


def _log_softmax(rows: np.ndarray) -> np.ndarray:
    moved = rows - rows.max(1, keepdims=True)
    return moved - np.log(np.exp(moved).sum(1, keepdims=True))
