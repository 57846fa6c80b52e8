"""What Concat and Split have in common."""

from __future__ import annotations

from collections.abc import Sequence

import numpy as np

from dlas.kernels.kernel import Context, Node, Operand


def axis_of(node: Node) -> int:
    """The axis along which the parts lie."""
    return int(node.attributes.get("axis", 0)) % max(1, len(node.output.shape))


def in_blocks(node: Node, parts: Sequence[Operand], context: Context) -> bool:
    """Whether all parts begin at a block."""
    return axis_of(node) != 1 or all(
        len(p.shape) == 4 and p.shape[1] % context.block == 0 for p in parts[:-1]
    )


def cut_along(node: Node, whole: np.ndarray, parts: Sequence[np.ndarray]) -> list[np.ndarray]:
    """Views of ``whole``, one for each part, along the axis of the node."""
    axis, first, views = axis_of(node), 0, []
    for part in parts:
        cut = [slice(None)] * whole.ndim
        cut[axis] = slice(first, first + part.shape[axis])
        views.append(whole[tuple(cut)])
        first += part.shape[axis]
    return views
