"""What runs inside a worker process: the answers of one network on one path.

Call through ``core.worker.Worker.call("dlas.verify.mutate.answers:answers", ...)``.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path

import numpy as np

from dlas.core.files import scratch_folder
from dlas.core.options import Choice
from dlas.graph import reference
from dlas.graph.format import load_model
from dlas.runtime import session


def answers(
    backend: str,
    target: str,
    threads: int,
    batch: int,
    original: str,
    network: str,
    programs: Mapping[str, str],
    x: Mapping[str, np.ndarray],
) -> dict[str, np.ndarray]:
    """Every output for every row.

    Args:
        backend: Choice as text (``tvm:opt=O3``).
        target: Choice as text (``host:isa=x86-64-v3``).
        threads: Threads.
        batch: Rows per run; TVM takes one, or as many as the network wants.
        original: File of the network without a fault; TVM keeps the code of its operators.
        network: File of the network to run.
        programs: Tensor programs to put in place of those of the same name; TVM only.
        x: ``(N, ...)`` per input.

    Raises:
        UnsupportedError: The back end cannot run this network.
    """
    if Choice.parse(backend).name == "tvm":
        from dlas.verify.mutate import lowering

        return lowering.answers(backend, target, original, network, programs, x)
    with scratch_folder() as folder:
        session.build(backend, network, target, str(folder), batch)
        session.open(backend, str(folder), target, threads)
        try:
            return session.all_outputs(x)
        finally:
            session.close()


def both_ways(original: str, x: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]]:
    """Each output of a network on the reference engine, with all optimisations and with none."""
    model = load_model(Path(original), allow_nan=True)
    first, second = reference.answers(model, x), reference.answers(model, x, level="disable")
    return [(first[spec.name], second[spec.name]) for spec in model.outputs]


def prepare(backend: str, target: str, original: str) -> None:
    """Do beforehand what all mutants of a path have in common, so that none is charged with it."""
    if Choice.parse(backend).name == "tvm":
        from dlas.verify.mutate import lowering

        lowering.base(backend, target, original)
