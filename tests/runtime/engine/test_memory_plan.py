"""The arena: nothing alive overlaps, and it is close to the least there can be."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.runtime.engine.memory import ALIGNMENT, Request, plan_memory


def _overlaps(requests, plan) -> list[tuple[str, str]]:
    found = []
    for i, a in enumerate(requests):
        for b in requests[i + 1 :]:
            together = a.first <= b.last and b.first <= a.last
            start_a, start_b = plan.offsets[a.name], plan.offsets[b.name]
            if together and start_a < start_b + b.bytes and start_b < start_a + a.bytes:
                found.append((a.name, b.name))
    return found


@pytest.mark.parametrize("seed", range(20))
def test_what_is_alive_together_lies_apart(seed):
    rng = np.random.default_rng(seed)
    requests = []
    for i in range(60):
        first = int(rng.integers(0, 50))
        last = first + int(rng.integers(0, 8))
        requests.append(Request(f"v{i}", int(rng.integers(1, 100_000)), first, last))
    plan = plan_memory(requests)
    assert not _overlaps(requests, plan)
    assert all(offset % ALIGNMENT == 0 for offset in plan.offsets.values())
    assert max(plan.offsets[r.name] + r.bytes for r in requests) <= plan.arena_bytes
    assert plan.lower_bound_bytes <= plan.arena_bytes


def test_the_bound_is_the_fullest_step():
    requests = [Request("a", 640, 0, 1), Request("b", 64, 1, 2), Request("c", 1280, 2, 3)]
    plan = plan_memory(requests)
    assert plan.lower_bound_bytes == 64 + 1280
    assert plan.arena_bytes == plan.lower_bound_bytes


def test_a_chain_needs_two_neighbours_only():
    requests = [Request(f"v{i}", 6400, i, i + 1) for i in range(30)]
    assert plan_memory(requests).arena_bytes == 2 * 6400


def _dense_block(layers: int, growth: int) -> list[Request]:
    """Every layer reads all earlier ones, as in DenseNet."""
    return [Request(f"l{i}", growth * 4096, i, layers) for i in range(layers)]


def _inception(blocks: int) -> list[Request]:
    """Four branches of different size from one input, joined at the end of each block."""
    requests = [Request("in0", 100_000, 0, 5)]
    for b in range(blocks):
        at = 6 * b
        sizes = (64_000, 96_000, 16_000, 32_000)
        for i, size in enumerate(sizes):
            requests.append(Request(f"b{b}.{i}", size, at + 1 + i, at + 6))
        requests.append(Request(f"in{b + 1}", sum(sizes), at + 6, at + 11))
    return requests


@pytest.mark.parametrize("requests", [_dense_block(24, 12), _inception(5)], ids=["densenet", "inception"])
def test_branching_networks_stay_within_a_tenth_of_the_bound(requests):
    assert plan_memory(requests).ratio <= 1.10


def test_nothing_to_place():
    plan = plan_memory([])
    assert plan.arena_bytes == 0
    assert plan.ratio == 1.0
