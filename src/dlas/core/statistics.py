"""Intervals and tests behind every printed figure; all deterministic (fixed seeds)."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from dlas.core.figure import Figure, Source

_Z95 = 1.959963984540054


def wilson(successes: int, n: int) -> tuple[float, float]:
    """95 % score interval of a proportion (Wilson 1927), as fractions; ``(0, 1)`` when ``n`` is 0.

    Raises:
        ValueError: ``successes`` is not in ``0..n``.
    """
    if not 0 <= successes <= n:
        raise ValueError(f"{successes} successes of {n}: expected 0..{n}")
    if n == 0:
        return 0.0, 1.0
    share = successes / n
    centre = share + _Z95**2 / (2 * n)
    half = _Z95 * math.sqrt(share * (1 - share) / n + _Z95**2 / (4 * n * n))
    scale = 1 + _Z95**2 / n
    low = 0.0 if successes == 0 else (centre - half) / scale
    high = 1.0 if successes == n else (centre + half) / scale
    return low, high


def proportion(successes: int, n: int, note: str = "") -> Figure:
    """A measured fraction with its :func:`wilson` interval; ``n`` must be at least 1."""
    return Figure(successes / n, "fraction", Source.MEASURED, *wilson(successes, n), n, note)


def bootstrap_medians(
    samples: Sequence[float] | np.ndarray, resamples: int, rng: np.random.Generator
) -> np.ndarray:
    """Medians of ``resamples`` bootstrap resamples of ``samples``: ``(resamples,) float64``.

    The k-th smallest of n draws with replacement is ``sorted[floor(n U)]`` with ``U ~ Beta(k, n - k + 1)``, so each
    resample's median is drawn directly, in constant time, from exactly the distribution that resampling would give.
    """
    ordered = np.sort(np.asarray(samples, np.float64))
    n = len(ordered)
    if n == 0:
        raise ValueError("the median of no samples is not defined")
    k = (n + 1) // 2
    lower = rng.beta(k, n - k + 1, resamples)
    at = np.minimum((n * lower).astype(np.int64), n - 1)
    if n % 2:
        return ordered[at]
    upper = lower + (1 - lower) * rng.beta(1, n - k, resamples)
    return (ordered[at] + ordered[np.minimum((n * upper).astype(np.int64), n - 1)]) / 2


def bootstrap_median(
    samples: Sequence[float] | np.ndarray, resamples: int = 1000, seed: int = 0
) -> tuple[float, float]:
    """95 % percentile bootstrap interval of the median (Efron 1979), in the samples' unit."""
    medians = bootstrap_medians(samples, resamples, np.random.default_rng(seed))
    low, high = np.quantile(medians, (0.025, 0.975))
    return float(low), float(high)


def mcnemar(b: int, c: int) -> float:
    """Two-sided exact p-value of McNemar's test.

    Args:
        b: Samples that only the first of two classifiers gets right.
        c: Samples that only the second gets right.
    """
    if b < 0 or c < 0:
        raise ValueError(f"counts must not be negative, got {b} and {c}")
    n, k = b + c, min(b, c)
    if n == 0:
        return 1.0
    # In logarithms, because binomials of thousands of discordant samples overflow a float.
    logs = [
        math.lgamma(n + 1) - math.lgamma(i + 1) - math.lgamma(n - i + 1) - n * math.log(2)
        for i in range(k + 1)
    ]
    return min(1.0, 2.0 * math.fsum(math.exp(v) for v in logs))
