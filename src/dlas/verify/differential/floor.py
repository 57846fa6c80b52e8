"""The noise floor of a source: how much its own answers move when nothing but the kernels change.

Measured on ONNX Runtime, all optimisations against none, for what dlas reads from the file; for a TFLite file besides
on LiteRT itself, XNNPACK against its built-in and its reference kernels. The kernels of quantised networks round
differently, which moves a few labels in a hundred; a path is not to blame for as many.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import numpy as np

from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.graph.analysis import layers
from dlas.graph.signature import to_real
from dlas.runtime.native import owner
from dlas.verify.differential.outputs import NoiseFloor, floor_between
from dlas.verify.running import Subject, floors

_ROWS = 200
# Reference kernels do about 1e9 multiplications a second: what takes longer than half a minute is left out.
_REFERENCE_MACS, _FEWEST_ROWS = 30e9, 20
_MEMORY = 8 * 2**30


def source_floors(
    source: Subject, x: Mapping[str, np.ndarray], reference: Sequence[np.ndarray], timeout_s: float
) -> list[NoiseFloor]:
    """Noise floor of every output.

    Args:
        source: The network.
        x: Its rows by input.
        reference: Its answers on the runtime that owns the file.
        timeout_s: Longest time for one run.

    Raises:
        WorkerFailure: ONNX Runtime cannot run what dlas reads from the file.
    """
    found = floors(source.model, x)
    if owner(source.path) != "litert":
        return found
    lengths = {len(given) if given.ndim else 0 for given in x.values()}
    rows = lengths.pop() if len(lengths) == 1 else 0
    affordable = int(_REFERENCE_MACS / max(sum(layer.macs or 0 for layer in layers(source.model)), 1))
    for kernels, most in (("builtin", _ROWS), ("reference", min(_ROWS, affordable))):
        if most < min(rows, _FEWEST_ROWS):
            continue
        count = min(rows, most) or None
        try:
            other = run_in_worker(
                "dlas.runtime.native:answers",
                str(source.path),
                [given[:count] for given in x.values()],
                dict(source.options),
                kernels=kernels,
                timeout_s=timeout_s,
                memory_bytes=_MEMORY,
            )
        except WorkerFailure:  # these kernels do not know an operator: the other floors stand
            continue
        for i, answers in enumerate(other):
            known = reference[i][: len(answers)] if reference[i].ndim else reference[i]
            real = to_real(answers, source.model, i)
            if known.shape == real.shape and np.isfinite(known).all() and np.isfinite(real).all():
                words = f"litert, xnnpack against {kernels}"
                found[i] = widest(found[i], floor_between(known, real, words))
    return found


def widest(*known: NoiseFloor) -> NoiseFloor:
    """The floor with the largest share of flips, with the largest change of scores of all."""
    top = max(known, key=lambda floor: (floor.flips / max(floor.rows, 1), floor.relative_l2))
    return NoiseFloor(
        top.flips,
        top.rows,
        max(floor.max_abs for floor in known),
        max(floor.relative_l2 for floor in known),
        top.paths,
    )
