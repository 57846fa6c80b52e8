"""What layers and networks cost on dlas's engine, measured: for methods that shape a network for this machine."""

from __future__ import annotations

import functools
from collections.abc import Callable
from time import perf_counter_ns, thread_time_ns

import numpy as np

from dlas.compress.costs import Costs, LayerShape
from dlas.core.environment import cpu_model
from dlas.core.errors import DlasError
from dlas.graph.model import Model
from dlas.graph.signature import random_array
from dlas.kernels.kernel import Context
from dlas.runtime.backend import backend_for
from dlas.runtime.engine.engine import prepared
from dlas.runtime.engine.measured import measured_cost
from dlas.runtime.engine.select import candidates

CHOICE = "engine:policy=measure"
_WARM = 5
_BLOCKS = 5
_RUNS = 100


def engine_costs(threads: int = 1, *, runs: int = _RUNS) -> Costs:
    """Times on the engine, own kernels, batch 1.

    A layer costs what its fastest kernel takes in whatever layout it likes best; such times are remembered per machine
    (``runtime.engine.timings``), so that a search that was interrupted goes on where it was. A network costs the
    least of the medians of 5 blocks of runs, after 5 runs that do not count. With one thread both are processor time,
    which other processes disturb little.

    Args:
        threads: Threads of the engine.
        runs: Runs behind the time of a network, in all blocks.
    """
    context = Context.here(threads, "native")
    return Costs(
        "ms",
        functools.partial(_layer_ms, context, measured_cost(context)),
        functools.partial(network_ms, threads=threads, runs=runs),
        f"{CHOICE}, {threads} thread{'s' if threads > 1 else ''}, {cpu_model()}",
        measured=True,
    )


def network_ms(model: Model, *, threads: int = 1, runs: int = _RUNS) -> float:
    """Milliseconds of one run; see :func:`engine_costs`.

    Raises:
        UnsupportedError: The engine cannot run the network here.
    """
    with backend_for(CHOICE).compile(model, "host", threads=threads) as executable:
        rng = np.random.default_rng(0)
        run = executable.runner({s.name: random_array(list(s.bound(1)), s.dtype, rng) for s in model.inputs})
        return _median_ms(run, thread_time_ns if threads == 1 else perf_counter_ns, runs)


def _median_ms(run: Callable[[], object], clock: Callable[[], int], runs: int) -> float:
    for _ in range(_WARM):
        run()
    medians = []
    for _ in range(_BLOCKS):
        taken = []
        for _ in range(-(-runs // _BLOCKS)):
            start = clock()
            run()
            taken.append(clock() - start)
        medians.append(np.median(taken))
    return float(min(medians)) * 1e-6


def _layer_ms(context: Context, cost: Callable[..., float], layer: LayerShape) -> float:
    network = prepared(layer.network())
    found = candidates(network, context, cost=cost)
    seconds = sum(min(c.seconds for c in choices) for choices in found)
    if not seconds > 0:
        raise DlasError(f"the engine has no time for a {layer.op} of {list(layer.weight)}")
    return seconds * 1e3
