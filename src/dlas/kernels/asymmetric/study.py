"""The study of the asymmetric instruction on one network: what overflows, what that costs, what is gained.

The distances between two additions into 32 bits that the emulated overflows allow are those that the models of time
reckon with, so that a gain is never one of wrong answers.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field, replace
from functools import reduce
from operator import add
from typing import Any

import numpy as np

from dlas.core.figure import Figure, Source
from dlas.graph.model import Model
from dlas.kernels.asymmetric import systolic, throughput
from dlas.kernels.asymmetric.emulate import DEPTH, OverflowStats
from dlas.kernels.asymmetric.survey import LayerSurvey, SurveyOptions, survey, whole_batches
from dlas.kernels.asymmetric.systolic import ArrayOptions
from dlas.kernels.asymmetric.throughput import IssueOptions

_EMULATED = "bit-true emulation of rows drawn from the layers, on the data given"


@dataclass(frozen=True)
class LayerStudy:
    """One layer.

    Attributes:
        found: What overflowed, and the sizes of the product.
        cycles: With each instruction, for one sample.
        array_cycles: On each systolic array, for one sample.
    """

    found: LayerSurvey
    cycles: Mapping[str, Figure]
    array_cycles: Mapping[str, Figure]

    @property
    def speedup(self) -> Figure:
        """Of the asymmetric instruction, spills included."""
        return _ratio(self.cycles)

    @property
    def array_speedup(self) -> Figure:
        """Of the asymmetric array."""
        return _ratio(self.array_cycles)

    @property
    def macs(self) -> int:
        """Multiply-accumulates per sample."""
        return self.found.rows * self.found.columns * self.found.depth

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary."""
        layer = self.found
        return {
            "name": layer.name,
            "op": layer.op,
            "m": layer.rows,
            "n": layer.columns,
            "k": layer.depth,
            "activations": "int8" if layer.signed else "uint8",
            "spill": layer.spill,
            "overflow": {spell(spill): _figures(stats) for spill, stats in layer.stats.items()},
            "cycles": {name: figure.to_dict() for name, figure in self.cycles.items()},
            "speedup": self.speedup.to_dict(),
            "array_cycles": {name: figure.to_dict() for name, figure in self.array_cycles.items()},
            "array_speedup": self.array_speedup.to_dict(),
        }


@dataclass(frozen=True)
class AsymmetricStudy:
    """A network.

    Attributes:
        network: Its name.
        samples: Samples it was run on.
        options: How layers were put on the grids.
        machine: The modelled processor; ``spill`` is each layer's own.
        array: The modelled array.
        layers: Dense layers, in the order of the network.
    """

    network: str
    samples: int
    layers: tuple[LayerStudy, ...]
    options: SurveyOptions = field(default_factory=SurveyOptions)
    machine: IssueOptions = field(default_factory=IssueOptions)
    array: ArrayOptions = field(default_factory=ArrayOptions)

    def overflow(self, spill: int | None) -> OverflowStats:
        """All layers together at one distance."""
        return reduce(add, (layer.found.stats[spill] for layer in self.layers))

    @property
    def speedup(self) -> Figure:
        """Of all layers together by the asymmetric instruction."""
        return _ratio(_total([layer.cycles for layer in self.layers]))

    @property
    def array_speedup(self) -> Figure:
        """Of all layers together on the asymmetric array."""
        return _ratio(_total([layer.array_cycles for layer in self.layers]))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, every figure with its source."""
        return {
            "network": self.network,
            "samples": self.samples,
            "accumulator": self.options.accumulator,
            "tolerance": self.options.tolerance,
            "machine": {k: v for k, v in vars(self.machine).items() if k != "spill"},
            "array": dict(vars(self.array)),
            "layers": [layer.to_dict() for layer in self.layers],
            "overflow": {spell(spill): _figures(self.overflow(spill)) for spill in self.options.spills},
            "speedup": self.speedup.to_dict(),
            "array_speedup": self.array_speedup.to_dict(),
        }


def study(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    options: SurveyOptions | None = None,
    machine: IssueOptions | None = None,
    array: ArrayOptions | None = None,
) -> AsymmetricStudy:
    """Count overflows layer by layer, then model the time at the distances that they allow.

    Args:
        model: A network with float activations.
        inputs: Samples, as :func:`dlas.graph.reference.intermediates` takes them.
        options: Grids, distances and tolerance; None for the defaults.
        machine: The processor to model; its ``spill`` is replaced by each layer's own.
        array: The systolic array to model.

    Raises:
        UnsupportedError: There is no dense layer in float32.
        OptionError: Weights or activations hold NaN or an infinity.
    """
    options, machine = options or SurveyOptions(), machine or IssueOptions()
    array = array or ArrayOptions()
    layers = []
    for found in survey(model, inputs, options):
        size = (found.rows, found.columns, found.depth)
        issue = replace(machine, spill=found.spill or -(-found.depth // DEPTH) * DEPTH)
        cycles = {
            name: throughput.instructions(*size, name, issue)["cycles"] for name in throughput.INSTRUCTIONS
        }
        array_cycles = {name: systolic.cycles(*size, name, array)["cycles"] for name in systolic.ELEMENTS}
        layers.append(LayerStudy(found, cycles, array_cycles))
    samples = len(next(iter(whole_batches(model, inputs).values())))
    return AsymmetricStudy(model.name, samples, tuple(layers), options, machine, array)


def spell(spill: int | None) -> str:
    """A distance as users write it."""
    return "none" if spill is None else str(spill)


def _total(parts: list[Mapping[str, Figure]]) -> dict[str, Figure]:
    return {name: replace(parts[0][name], value=sum(p[name].value for p in parts)) for name in parts[0]}


def _ratio(cycles: Mapping[str, Figure]) -> Figure:
    before, after = cycles["symmetric"], cycles["asymmetric"]
    return Figure(before.value / after.value, "x", Source.ESTIMATED, note=after.note)


def _figures(stats: OverflowStats) -> dict[str, Any]:
    shares = {
        "of_additions": (stats.overflow_rate, stats.updates),
        "of_outputs": (stats.any_rate, stats.outputs),
        "outputs_wrong": (stats.wrong_rate, stats.outputs),
    }
    return {
        **{
            name: Figure(share, "fraction", Source.SIMULATED, n=n, note=_EMULATED).to_dict()
            for name, (share, n) in shares.items()
        },
        "largest": stats.largest,
    }
