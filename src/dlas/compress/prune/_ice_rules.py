"""The rules of ICE-Pruning, each a function of numbers.

Hu et al. 2025 (arXiv:2505.07411), "ICE-Pruning: an iterative cost-efficient pruning pipeline for deep neural networks":
when to fine-tune, with which learning rate, which layers to freeze, and how tried settings are compared.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence

import numpy as np

from dlas.core.errors import OptionError

BINS = 20


def learning_rate(left: float, *, base: float, drop: float, pivot: float, steepness: float) -> float:
    """``base - drop / (1 + (x / (2 (1 - pivot) - x)) ** steepness)``: lower, the more is pruned.

    Args:
        left: Share x of the weights that is left (0..1).
        base: Learning rate of the network nothing was taken from.
        drop: How far it falls at most.
        pivot: Share of the weights whose loss makes half the fall.
        steepness: How sudden it is.

    Raises:
        OptionError: ``pivot`` is not below 0.5, or ``drop`` not between 0 and ``base``.
    """
    if not 0 < pivot < 0.5:
        raise OptionError("lr_pivot", pivot, "a number > 0 and < 0.5")
    if not 0 < drop < base:
        raise OptionError("lr_drop", drop, f"a number > 0 and < the learning rate ({base:g})")
    whole = 2 * (1 - pivot)
    x = min(max(left, 1e-6), whole - 1e-6)
    power = steepness * (math.log(x) - math.log(whole - x))
    if power > 700:  # where exp would overflow, the fall is 0 to the last digit
        return base
    return base - drop / (1 + math.exp(power))


def must_train(drop: float, threshold: float) -> bool:
    """Whether a fall of the accuracy by ``drop`` percentage points asks for fine-tuning."""
    return threshold == 0 or drop >= threshold


def least_moved(
    original: Mapping[str, np.ndarray],
    before: Mapping[str, np.ndarray],
    after: Mapping[str, np.ndarray],
    ratio: float,
) -> list[str]:
    """The layers that a probe changed least: ``ceil(ratio L)`` of L but never all, in the order of their change.

    The change of a layer is ``| |W'|_1 - |W|_1 | / |W0|_2``.

    Args:
        original: Layer to its weight in the network nothing was taken from (W0).
        before: The same before the probe trained (W).
        after: And after it (W').
        ratio: Share of the layers.
    """
    moved = {}
    for name, weight in original.items():
        size = float(np.linalg.norm(weight.astype(np.float64)))
        gap = abs(
            float(np.abs(after[name]).sum(dtype=np.float64) - np.abs(before[name]).sum(dtype=np.float64))
        )
        moved[name] = gap / max(size, 1e-30)
    count = min(len(moved) - 1, math.ceil(ratio * len(moved) - 1e-9))
    return sorted(moved, key=lambda name: moved[name])[:count]


def cost_of_epoch(trainable: Sequence[bool]) -> float:
    """What an epoch costs with some layers frozen, 1 with none: forward, back to the inputs, back to the weights.

    Every layer counts alike. A frozen layer has no gradient of its weights; one that nothing trainable stands before
    has none of its inputs either.
    """
    layers = len(trainable)
    if layers == 0:
        return 0.0
    first = next((i for i, learns in enumerate(trainable) if learns), layers)
    inputs = max(0, layers - first - 1)
    return (layers + inputs + sum(trainable)) / (3 * layers - 1)


def entropy(pooled: np.ndarray) -> np.ndarray:
    """Entropy in bits of each channel's pooled activations, from a histogram of 20 bins.

    Args:
        pooled: ``(rows, channels)``.

    Returns:
        ``(channels,) float64``. A channel that is the same for all rows has 0.
    """
    found = np.zeros(pooled.shape[1])
    for channel, values in enumerate(pooled.T):
        counts, _ = np.histogram(values, BINS)
        share = counts[counts > 0] / len(values)
        found[channel] = -float((share * np.log2(share)).sum())
    return found


def published_objective(seconds: float, points: float) -> float:
    """``t / max(t, dA) + dA / max(t, dA)``: seconds and percentage points in one sum, so it depends on the machine."""
    points = max(points, 0.0)
    largest = max(seconds, points)
    return (seconds + points) / largest if largest > 0 else 0.0


def objective(work: float, points: float, *, reference: float, accuracy_budget: float) -> float:
    """Work as a share of fine-tuning at every step, plus lost points as a share of those that may be lost."""
    return work / max(reference, 1e-30) + max(points, 0.0) / accuracy_budget
