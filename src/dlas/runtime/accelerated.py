"""Run a network on an accelerator over a data set: is it still right, and where do the cycles go?"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass, field, replace
from typing import Any

import numpy as np

from dlas.core.errors import DataError
from dlas.core.figure import Figure, Source
from dlas.core.statistics import proportion
from dlas.data.dataset import Dataset
from dlas.data.metrics import top1
from dlas.data.preprocess import prepare
from dlas.graph.model import Model
from dlas.hardware.accelerated import CLOCK_MHZ, AcceleratedTarget
from dlas.hardware.accelerator import Accelerator, Cycles
from dlas.hardware.synthesis.latency import latency
from dlas.hardware.verification import require
from dlas.runtime.backend import Executable, LayerTiming, backend_for
from dlas.runtime.offload import Offloaded, Placed


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
        cpu = offloaded.cpu_ms({given.name: inputs[:1]})
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
        (_clock_note(clock_mhz),),
    )


class AcceleratedExecutable(Executable):
    """A network on an accelerated target: right answers, and the time of a device that is not here.

    Args:
        model: The network.
        target: Accelerator, level and clock.
        batch: Rows per run.
        threads: Of what stays on the CPU.

    Raises:
        UnsupportedError: The network is not quantised, or nothing of it can be offloaded.
        CheckFailedError: The accelerator is known to differ from its RTL.
    """

    def __init__(self, model: Model, target: AcceleratedTarget, *, batch: int = 1, threads: int = 1) -> None:
        verified = require(target.accelerator)
        self._mhz = target.options.mhz
        self._offloaded = Offloaded(
            model, target.accelerator, level=target.options.level, batch=batch, threads=threads
        )
        left = [layer.name for layer in self._offloaded.layers if layer.reason]
        self.notes = (
            f"{target.accelerator.spelled()} ({target.options.level}): {verified}",
            _clock_note(self._mhz),
            *([f"{len(left)} layers with products stay on the CPU: {', '.join(left[:3])}"] if left else []),
        )

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """See :meth:`Executable.run`."""
        return self._offloaded.run(inputs)

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Cycles over clock for layers on the accelerator, measured times for the others."""
        there = {layer.name: layer.cycles.total for layer in self._offloaded.layers if not layer.reason}
        return tuple(
            replace(row, milliseconds=there[row.name] / (1e3 * self._mhz), source=Source.SIMULATED)
            if row.name in there
            else row
            for row in self._offloaded.profile(inputs, repeats)
        )

    def modelled(self) -> dict[str, Figure]:
        """Latency by term, bytes moved and utilisation of one run."""
        cpu = self._offloaded.cpu_ms(self._offloaded.executable.signature.random_inputs())
        return _times(self._offloaded.cycles, self._mhz, cpu)

    def memory(self) -> dict[str, Figure]:
        """Of the part on the CPU."""
        return self._offloaded.executable.memory()

    def close(self) -> None:
        """Let go of what the CPU's part holds."""
        self._offloaded.close()


def _clock_note(mhz: float) -> str:
    return f"time at {mhz:g} MHz, a clock that was assumed; CPU time is that of this machine"


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
