"""The static memory plan: every value gets its place in one arena before the network runs."""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass

import numpy as np

ALIGNMENT = 64


@dataclass(frozen=True)
class Request:
    """A buffer that must exist during some steps.

    Attributes:
        name: What it holds.
        bytes: Size.
        first: Step that writes it.
        last: Last step that reads it.
    """

    name: str
    bytes: int
    first: int
    last: int


@dataclass(frozen=True)
class MemoryPlan:
    """Places of buffers in the arena.

    Attributes:
        offsets: Byte offset of each buffer, by name.
        arena_bytes: Size of the arena.
        lower_bound_bytes: The most bytes that are alive in one step; no plan can need less.
    """

    offsets: dict[str, int]
    arena_bytes: int
    lower_bound_bytes: int

    @property
    def ratio(self) -> float:
        """Arena over lower bound; 1 is perfect."""
        return self.arena_bytes / self.lower_bound_bytes if self.lower_bound_bytes else 1.0


def plan_memory(requests: Sequence[Request]) -> MemoryPlan:
    """Greedy by size: the largest first, each at the lowest aligned gap between those alive at the same time.

    Three orders are tried (by size; by size times life; by the load of the fullest step a buffer takes part in) and
    the smallest arena is kept.

    Source: Y. Pisarchyk and J. Lee, Efficient Memory Management for Deep Neural Net Inference, MLSys 2020.
    """
    sized = [(r, -(-max(r.bytes, 1) // ALIGNMENT) * ALIGNMENT) for r in requests]
    steps = 1 + max((r.last for r in requests), default=0)
    load = np.zeros(steps, np.int64)
    for request, size in sized:
        load[request.first : request.last + 1] += size
    orders = (
        lambda pair: (-pair[1], pair[0].first, pair[0].name),
        lambda pair: (-pair[1] * (pair[0].last - pair[0].first + 1), pair[0].name),
        lambda pair: (-int(load[pair[0].first : pair[0].last + 1].max()), -pair[1], pair[0].name),
    )
    best: tuple[int, dict[str, int]] | None = None
    for order in orders:
        found = _place(sorted(sized, key=order))
        if best is None or found[0] < best[0]:
            best = found
    assert best is not None
    return MemoryPlan(best[1], best[0], int(load.max(initial=0)))


def _place(ordered: Sequence[tuple[Request, int]]) -> tuple[int, dict[str, int]]:
    placed: list[tuple[int, int, Request]] = []  # offset, size, sorted by offset
    offsets: dict[str, int] = {}
    end = 0
    for request, size in ordered:
        at = 0
        for offset, length, other in placed:
            if other.last < request.first or request.last < other.first:
                continue
            if offset - at >= size:
                break
            at = max(at, offset + length)
        offsets[request.name] = at
        placed.append((at, size, request))
        placed.sort(key=lambda p: p[0])
        end = max(end, at + size)
    return end, offsets
