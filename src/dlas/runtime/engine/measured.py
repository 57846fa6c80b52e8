"""What a kernel costs, measured: every distinct node once, remembered per machine."""

from __future__ import annotations

import math
from collections.abc import Callable
from time import perf_counter, thread_time
from typing import Any

import numpy as np

from dlas.core.environment import cpu_model, relevant_flags
from dlas.graph.signature import random_array
from dlas.kernels.kernel import Context, Form, Kernel, Node
from dlas.kernels.single import Bench
from dlas.runtime.engine.network import Call
from dlas.runtime.engine.select import Cost
from dlas.runtime.engine.timings import Timings

_BLOCKS = 5
_RUNS = 30
_SECONDS = 0.15
_HOPELESS = 5.0  # times the best so far: one run is enough to know


def signature_of(node: Node) -> list[Any]:
    """What the time of a node depends on: operator, attributes, shapes, dtypes, and how sparse its weights are."""
    operands = []
    for operand in (*node.inputs, *node.outputs):
        if operand is None:
            operands.append(None)
            continue
        zeros = 0.0 if operand.constant is None else round(float(np.mean(operand.constant == 0)), 1)
        operands.append([list(operand.shape), operand.dtype, operand.constant is not None, zeros])
    attributes = [[k, list(v) if isinstance(v, tuple) else v] for k, v in sorted(node.attributes.items())]
    return [node.op, attributes, operands]


def measured_cost(context: Context, tell: Callable[[str], None] = lambda text: None) -> Cost:
    """A cost for :func:`dlas.runtime.engine.select.candidates`."""
    timings = Timings()
    machine = [cpu_model(), list(relevant_flags()), context.isa, context.threads]
    best: dict[str, float] = {}

    def cost(call: Call, kernel: Kernel, form: Form) -> float:
        signature = signature_of(call.node)
        layouts = [[str(x) for x in form.inputs], [str(x) for x in form.outputs]]
        key = ("kernel", machine, signature, kernel.name, kernel.version, layouts)
        known = timings.get(*key)
        if known is None:
            tell(f"time {kernel.name} on {call.node.op} {call.name}")
            known = time_kernel(kernel, call.node, form, context, best.get(repr(signature), math.inf))
            timings.put(known, *key)
        best[repr(signature)] = min(best.get(repr(signature), math.inf), known)
        return known

    return cost


def time_kernel(kernel: Kernel, node: Node, form: Form, context: Context, best: float = math.inf) -> float:
    """Seconds per run: time of the calling thread with one thread, the lower quartile of wall time with several.

    A clock of processor time may stand still or step back where the system keeps it by ticks; blocks that it saw no
    time in do not count, and where it never saw any, wall time does.
    """
    rng = np.random.default_rng(0)
    arrays = [
        None if o is None or o.constant is not None else random_array(list(o.shape), o.dtype, rng)
        for o in node.inputs
    ]
    run = Bench(kernel, node, arrays, context, form).caller()
    clock = thread_time if context.threads == 1 else perf_counter
    run()
    start = clock()
    run()
    once = max(clock() - start, 1e-7)
    if once > _HOPELESS * best:
        return once
    count = max(1, math.ceil(min(_RUNS, _SECONDS / once) / _BLOCKS))
    if context.threads > 1:
        return float(np.percentile(_blocks(run, clock, count, 3 * _BLOCKS), 25))
    seen = [t for t in _blocks(run, clock, count, _BLOCKS) if t > 0]
    return min(seen or _blocks(run, perf_counter, count, _BLOCKS))


def _blocks(run: Callable[[], object], clock: Callable[[], float], count: int, blocks: int) -> list[float]:
    """Seconds per run in each of some blocks of ``count`` runs."""
    found = []
    for _ in range(blocks):
        start = clock()
        for _ in range(count):
            run()
        found.append((clock() - start) / count)
    return found
