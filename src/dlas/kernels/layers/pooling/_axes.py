"""The axes of a reduction."""

from __future__ import annotations

import numpy as np

from dlas.kernels.kernel import Node


def reduced_axes(node: Node) -> tuple[int, ...] | None:
    """Axes of a Reduce operator, ascending, from its attribute or its second input; None where they are computed.

    Without axes it reduces all, unless ``noop_with_empty_axes``, then none.
    """
    axes = node.attributes.get("axes")
    if axes is None and len(node.inputs) > 1 and node.inputs[1] is not None:
        constant = node.constant(1)
        if constant is None:
            return None
        axes = np.atleast_1d(constant).tolist()
    rank = len(node.operand(0).shape)
    if not axes:
        return () if node.attributes.get("noop_with_empty_axes") else tuple(range(rank))
    return tuple(sorted({int(a) % rank for a in axes}))
