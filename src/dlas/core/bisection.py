"""Smallest sets for which something still holds, found with few tries."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import TypeVar

T = TypeVar("T")


def smallest_subset(items: Sequence[T], holds: Callable[[list[T]], bool]) -> list[T]:
    """A subset in the given order for which ``holds``, and none of whose parts found on the way does.

    Prefixes are bisected: the shortest one that holds ends with an item that is needed; with it set aside, the items
    before it are bisected again. Takes about ``log2(len(items))`` tries per item of the answer (QuickXplain, Junker
    2004). The answer is smallest where adding items never makes ``holds`` false; it always holds.

    Args:
        items: A set for which ``holds`` is true.
        holds: The property; called with subsets in the order of ``items``.
    """
    needed: list[int] = []
    end = len(items)  # items[:end] and the needed ones hold

    def held(count: int) -> bool:
        return holds([items[i] for i in [*range(count), *needed]])

    while end and not held(0):
        low, high = 0, end
        while high - low > 1:
            middle = (low + high) // 2
            low, high = (low, middle) if held(middle) else (middle, high)
        needed.insert(0, high - 1)
        end = high - 1
    return [items[i] for i in needed]


def without_spare(items: Sequence[T], holds: Callable[[list[T]], bool]) -> list[T]:
    """``items`` without those whose removal leaves ``holds`` true, tried in halves from the end.

    Takes fewer tries than one by one where most can go, and at most twice as many. Where adding items never makes
    ``holds`` false, no single item of the answer can go.

    Args:
        items: A set for which ``holds`` is true.
        holds: The property; called with subsets in the order of ``items``.
    """
    kept = list(range(len(items)))

    def drop(part: list[int]) -> None:
        rest = [i for i in kept if i not in part]
        if holds([items[i] for i in rest]):
            kept[:] = rest
        elif len(part) > 1:
            middle = len(part) // 2
            drop(part[middle:])
            drop(part[:middle])

    if kept:
        drop(list(kept))
    return [items[i] for i in kept]
