"""How much a channel matters, judged from the filters that compute it.

A criterion is one function from filters ``(channels, values) float`` to scores ``(channels,) float64``; the least
important channel has the smallest score. To add one, write it and enter it into ``CRITERIA``.
"""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError
from dlas.graph.channels import ChannelGroup, real_weight

Criterion = Callable[[np.ndarray], np.ndarray]


def l1(filters: np.ndarray) -> np.ndarray:
    """Sum of magnitudes (Li et al. 2017, "Pruning filters for efficient ConvNets")."""
    return np.abs(filters).sum(axis=1, dtype=np.float64)


def l2(filters: np.ndarray) -> np.ndarray:
    """Euclidean norm (He et al. 2018, "Soft filter pruning")."""
    return np.sqrt(np.square(filters, dtype=np.float64).sum(axis=1))


CRITERIA: dict[str, Criterion] = {"l1": l1, "l2": l2}


def scores(graph: ir.Model, group: ChannelGroup, criterion: Criterion) -> np.ndarray:
    """Score of each channel of ``group``, summed over all layers that compute it or pass it on depthwise.

    Returns:
        ``(channels,) float64`` in the order of ``group.ids``.

    Raises:
        ModelError: A weight is not finite.
    """
    total = np.zeros(group.size)
    for entry in group.entries:
        if entry.role == "follower":
            continue
        weight = np.moveaxis(real_weight(graph, entry.name), entry.axis, 0)
        total += criterion(weight.reshape(len(weight), -1))[entry.positions].sum(axis=1)
    if not np.isfinite(total).all():
        raise ModelError(
            f"a weight of {group.name} is NaN or infinite, so its channels cannot be ranked",
            "train or export the network again",
        )
    return total
