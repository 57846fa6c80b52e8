"""In which order the axes of a tensor are stored.

Both directions walk the graph once and keep, for every tensor, a permutation ``perm``: axis ``k`` of what is stored is
axis ``perm[k]`` of the tensor as the source graph means it, so ``stored = meant.transpose(perm)``. An operator that
needs a certain order asks for it; one that does not takes what is there and renumbers its axes. Transpositions in the
source graph only change the permutation. So a transposition is written only where two orders really meet.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import TypeVar

T = TypeVar("T")
Perm = tuple[int, ...]

NHWC_TO_NCHW: Perm = (0, 3, 1, 2)
NCHW_TO_NHWC: Perm = (0, 2, 3, 1)


def identity(rank: int) -> Perm:
    """The permutation that changes nothing."""
    return tuple(range(rank))


def permute(values: Sequence[T], perm: Perm) -> tuple[T, ...]:
    """Per-axis values of the tensor (a shape, pads, strides) in stored order."""
    return tuple(values[axis] for axis in perm)


def between(held: Perm, wanted: Perm) -> Perm:
    """The transposition that turns storage ``held`` into storage ``wanted``."""
    return tuple(held.index(axis) for axis in wanted)


def after_transpose(held: Perm, perm: Perm) -> Perm:
    """Storage of ``y = x.transpose(perm)`` when ``x`` is stored as ``held`` and no byte is moved."""
    return tuple(perm.index(axis) for axis in held)


def moves_data(shape: Sequence[int], perm: Perm) -> bool:
    """Whether transposing ``shape`` by ``perm`` reorders elements (axes of size 1 may move freely)."""
    kept = [axis for axis in perm if shape[axis] != 1]
    return kept != sorted(kept)


def normal_axis(axis: int, rank: int) -> int:
    """``axis`` counted from the front; raises IndexError when it lies outside the tensor."""
    if not -rank <= axis < rank:
        raise IndexError(f"axis {axis} of a tensor with {rank} axes")
    return axis % rank
