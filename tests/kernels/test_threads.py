"""The threads of the native kernels: where they run."""

from __future__ import annotations

import os
import time
from pathlib import Path

import pytest
from layer_cases import needs_native

from dlas.kernels.kernel import Context

pytestmark = needs_native


def placed() -> dict[str, set[int]]:
    """Processors that each thread of this process may run on."""
    return {t.name: os.sched_getaffinity(int(t.name)) for t in Path("/proc/self/task").iterdir()}


@pytest.mark.skipif(len(os.sched_getaffinity(0)) < 2, reason="one processor only")
def test_each_worker_keeps_to_one_processor_and_leaves_the_first_to_the_caller():
    """Two threads woken on one processor, while another idled, took up to ten times the time of one."""
    mine, before = os.sched_getaffinity(0), set(placed())
    context = Context.here(2)
    for _ in range(1000):
        time.sleep(0.01)  # a busy machine may start it late
        new = [cpus for name, cpus in placed().items() if name not in before]
        if new and all(len(cpus) == 1 for cpus in new):
            break
    assert new == [{sorted(mine)[1]}]
    assert os.sched_getaffinity(0) == mine
    del context
