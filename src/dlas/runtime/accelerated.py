"""Run a network on an accelerator over a data set: is it still right, and where do the cycles go?"""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.core.errors import DataError
from dlas.core.figure import Figure, Source
from dlas.core.statistics import proportion
from dlas.data.dataset import Dataset
from dlas.data.metrics import top1
from dlas.data.preprocess import prepare
from dlas.graph.model import Model
from dlas.hardware.accelerator import Accelerator, Cycles
from dlas.hardware.synthesis.latency import latency
from dlas.hardware.verification import require
from dlas.runtime.backend import backend_for
from dlas.runtime.offload import Offloaded, Placed

CLOCK_MHZ = 100.0


@dataclass(frozen=True)
class AcceleratedRun:
    """What came of it.

    Attributes:
        model: Name of the network.
        accelerator: As spelled.
        level: ``tlm`` or ``rtl``.
        verified: Whether model and RTL are known to be equal, in words.
        layers: Every operator with products, and where it was computed; cycles of one row.
        cycles: Sum over the layers on the accelerator, one row.
        figures: Accuracy, agreement with the CPU, latency by term, bytes moved.
        spans: Per layer on the accelerator: what each unit does when, from the layer's first cycle on.
        rows: Rows that were run.
        notes: What a reader should know.
    """

    model: str
    accelerator: str
    level: str
    verified: str
    layers: tuple[Placed, ...]
    cycles: Cycles
    figures: dict[str, Figure]
    spans: tuple[tuple[str, tuple[tuple[str, str, int, int], ...]], ...] = field(repr=False)
    rows: int = 1
    notes: tuple[str, ...] = ()

    @property
    def offloaded(self) -> float:
        """Share of the multiply-accumulates on the accelerator."""
        every = sum(layer.macs for layer in self.layers)
        return sum(layer.macs for layer in self.layers if not layer.reason) / every if every else 0.0

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "model": self.model,
            "accelerator": self.accelerator,
            "level": self.level,
            "verified": self.verified,
            "rows": self.rows,
            "offloaded": self.offloaded,
            "cycles": dict(self.cycles.counters),
            "utilisation": self.cycles.utilisation,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "layers": [
                {
                    "name": layer.name,
                    "op": layer.op,
                    "macs": layer.macs,
                    "on": "CPU" if layer.reason else "accelerator",
                    **({"reason": layer.reason} if layer.reason else _counted(layer.cycles)),
                }
                for layer in self.layers
            ],
            "notes": list(self.notes),
        }


def _counted(cycles: Cycles) -> dict[str, Any]:
    return {
        "cycles": dict(cycles.counters),
        "utilisation": cycles.utilisation,
        "bytes_in": cycles.bytes_in,
        "bytes_out": cycles.bytes_out,
    }


def run_accelerated(
    model: Model,
    accelerator: Accelerator,
    *,
    level: str = "tlm",
    data: Dataset | None = None,
    rows: int = 100,
    clock_mhz: float = CLOCK_MHZ,
    threads: int = 1,
    tell: Callable[[float, str], None] = lambda fraction, text: None,
) -> AcceleratedRun:
    """Run a network of integers with its matrix products on ``accelerator``, one row at a time.

    Args:
        model: The network.
        accelerator: With its options.
        level: ``tlm`` or ``rtl``.
        data: Rows to judge by; without them one random row is run.
        rows: How many of them.
        clock_mhz: Clock that cycles are turned into time with; that of the hardware is not known.
        threads: Of the operators on the CPU.
        tell: Progress.

    Raises:
        UnsupportedError: The network is not quantised, or nothing of it can be offloaded.
        CheckFailedError: The accelerator is known to differ from its RTL.
        DataError: No rows, or rows that do not fit.
    """
    verified = require(accelerator)
    tell(0.0, "place the layers")
    offloaded = Offloaded(model, accelerator, level=level, threads=threads)
    if level == "rtl":
        tell(0.0, "build the simulation")
        assert accelerator.simulator.counters
    chosen = None if data is None else data.head(rows)
    if chosen is not None and len(chosen) == 0:
        raise DataError(f"{chosen.name} has no rows", "give a data set with at least one")
    signature = offloaded.executable.signature
    rounding = getattr(accelerator.options, "rounding", "double")
    reference = backend_for(f"engine:policy=rules,rounding={rounding}").compile(model)
    given, here, there = signature.inputs[0], [], []
    try:
        inputs = signature.random_inputs()[given.name] if chosen is None else prepare(chosen, model)
        for i in range(len(inputs)):
            tell(i / len(inputs), f"row {i + 1} of {len(inputs)}")
            row = {given.name: inputs[i : i + 1]}
            here.append(next(iter(offloaded.run(row).values())))
            there.append(next(iter(reference.run(row).values())))
        cycles = offloaded.cycles
        cpu = _cpu_ms(offloaded, {given.name: inputs[:1]})
    finally:
        offloaded.close()
        reference.close()
    figures = _times(cycles, clock_mhz, cpu)
    figures |= _judged(np.concatenate(here), np.concatenate(there), chosen)
    spans = tuple((layer.name, tuple(layer.spans)) for layer in offloaded.layers if not layer.reason)
    return AcceleratedRun(
        model.name,
        accelerator.spelled(),
        level,
        verified,
        tuple(offloaded.layers),
        cycles,
        figures,
        spans,
        len(inputs),
        (f"time at {clock_mhz:g} MHz, a clock that was assumed; CPU time is that of this machine",),
    )


def _times(cycles: Cycles, clock_mhz: float, cpu_ms: Figure) -> dict[str, Figure]:
    """Latency by term, and what was moved."""
    idle = (cycles.total - cycles.counters.get("compute", 0)) / (1e3 * clock_mhz)
    return {
        **latency(cycles, cpu_ms, clock_mhz=clock_mhz).figures,
        "array_idle_ms": Figure(idle, "ms", Source.SIMULATED, note="the array waits for words or drains"),
        "bytes_in": Figure(cycles.bytes_in, "bytes", Source.SIMULATED),
        "bytes_out": Figure(cycles.bytes_out, "bytes", Source.SIMULATED),
        "utilisation": Figure(cycles.utilisation, "fraction", Source.SIMULATED),
    }


def _cpu_ms(offloaded: Offloaded, inputs: dict[str, np.ndarray]) -> Figure:
    """Time of what stays on the CPU: the median of a few runs, without the accelerator's steps."""
    steps = offloaded.executable.steps
    times = offloaded.executable.times(inputs, 5)
    own = [i for i, step in enumerate(steps) if step.impl != "accelerator"]
    low, middle, high = np.quantile(1e-6 * times[:, own].sum(1), (0.0, 0.5, 1.0))
    return Figure(
        float(middle), "ms", Source.MEASURED, float(low), float(high), len(times), "on this machine"
    )


def _judged(here: np.ndarray, there: np.ndarray, rows: Dataset | None) -> dict[str, Figure]:
    flat = [a.reshape(len(a), -1) for a in (here, there)]
    same = (flat[0] == flat[1]).all(1)
    figures = {"identical_rows": proportion(int(same.sum()), len(same), "every output equal to the CPU's")}
    if flat[0].shape[1] > 1:
        agree = flat[0].argmax(1) == flat[1].argmax(1)
        figures["label_agreement"] = proportion(int(agree.sum()), len(agree), "with the CPU")
    if rows is not None and rows.labels is not None and rows.task == "classify":
        figures["top1"] = top1(flat[0], np.asarray(rows.labels))
        figures["top1_cpu"] = top1(flat[1], np.asarray(rows.labels))
    return figures
