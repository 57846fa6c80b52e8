"""One float network, and the same with any of its layers in int8: made, ranked by error, and compared."""

from __future__ import annotations

from collections.abc import Callable, Collection, Iterator, Mapping
from dataclasses import dataclass
from functools import cached_property
from typing import Any

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.calibration import Batches, Range, open_session, parts
from dlas.compress.qdq import Grid, weight_grid
from dlas.compress.quantize._int8.bias import FloatMeans, add_to_bias
from dlas.compress.quantize._int8.guard import guard_float_layers
from dlas.compress.quantize._int8.quantise import (
    bias_shifts,
    corrected,
    grids_of,
    measure_ranges,
    prepare,
    require_layers,
)
from dlas.compress.quantize._int8.rewrite import Rewriter
from dlas.compress.quantize._int8.scheme import (
    RULES,
    Scheme,
    choose,
    constant,
    data_inputs,
    input_at,
    weight_axis,
)
from dlas.compress.unsigned import unsigned_activations
from dlas.core.errors import DataError
from dlas.graph.model import Model

_RUN = 32  # rows per run
_NEGLIGIBLE = 1e-12


@dataclass(frozen=True)
class Layer:
    """What is float or integer as one: a node that computes, with the activation that is part of it.

    Attributes:
        name: Name of the node.
        op: Its operator.
        outputs: First outputs of the node and of its activation, which tell the nodes.
        weights: Number of constant weights.
    """

    name: str
    op: str
    outputs: tuple[str, ...]
    weights: int


@dataclass(frozen=True)
class Recipe:
    """How the integer layers are made; see the options of ``int8``."""

    per_channel: bool
    calibration: str
    percentile: float
    bias_correction: bool
    unsigned: bool
    keep_float: str


class Mixture:
    """A float network of which any set of layers can be made integer.

    Ranges are found once, for all layers. Biases are corrected anew for each set of layers: where one layer spoils
    everything behind it, what the layers behind it lose on the mean says nothing of a network in which it is float.

    Args:
        model: The float network.
        recipe: How layers are made integer.

    Raises:
        UnsupportedError: No layer can become integer.
    """

    def __init__(self, model: Model, recipe: Recipe) -> None:
        self.spec, self.output, self.recipe = model.inputs[0], model.outputs[0].name, recipe
        self.graph = prepare(model)
        self.scheme = choose(self.graph.graph, recipe.keep_float)
        require_layers(model, self.scheme)
        self.layers = layers_of(self.scheme)
        self._ranges: Mapping[str, Range] = {}
        self._shifts: dict[frozenset[str], list[np.ndarray]] = {}
        self._float_means: FloatMeans = {}

    def calibrate(self, batches: Batches, rows: int, progress: Callable[[float], Any] | None = None) -> None:
        """Find ranges on calibration rows, which are held; raises DataError when they do not fit."""
        self._held = list(batches())  # every network that is made reads them again
        touched = [v for n in self.scheme.nodes for v in [*(v for _, v in data_inputs(n)), *n.outputs]]
        self._ranges = measure_ranges(
            self.graph,
            self.spec,
            self.scheme,
            self._calibration,
            rows=rows,
            method=self.recipe.calibration,
            percentile=self.recipe.percentile,
            values=touched,  # with float neighbours other tensors decide the grids
            progress=progress,
        )

    def _calibration(self) -> Iterator[np.ndarray]:
        return iter(self._held)

    def made(self, floats: Collection[Layer] = (), *, signed: bool = False) -> tuple[ir.Model, list[str]]:
        """The network with all but these layers integer, and what the user must know.

        Args:
            floats: Layers that stay float.
            signed: Leave codes of activations int8 whatever the recipe says.
        """
        graph = self.graph.clone()
        kept = frozenset(name for layer in floats for name in layer.outputs)
        scheme = choose(graph.graph, self.recipe.keep_float, kept)
        grids = grids_of(scheme, self._ranges)
        if self.recipe.bias_correction:
            layers = corrected(scheme)
            add_to_bias(graph.graph, layers, self._shifted(kept, grids, bool(layers)))
        notes = Rewriter(graph.graph, scheme, grids, per_channel=self.recipe.per_channel).run()
        guard_float_layers(graph.graph)
        RemoveUnusedNodesPass()(graph)
        if self.recipe.unsigned and not signed:
            unsigned_activations(graph)
        return graph, notes

    def _shifted(
        self, kept: frozenset[str], grids: Mapping[ir.Value, Grid], any_layer: bool
    ) -> list[np.ndarray]:
        """Bias shifts of the layers that are integer while those with the outputs ``kept`` are not."""
        if any_layer and kept not in self._shifts:
            if not self._float_means and kept:
                self.made()  # the means of all layers, of which every other network uses some
            self._shifts[kept] = bias_shifts(
                self.graph,
                self.spec,
                grids,
                self._calibration,
                keep_float=self.recipe.keep_float,
                outputs=kept,
                per_channel=self.recipe.per_channel,
                rows=0,
                float_means=self._float_means,
            )
        return self._shifts.get(kept, [])

    def ranking(self) -> list[Layer]:
        """The layers, those first whose loss of precision shows most.

        For every activation, how far it is from its float self (cross-model error) and how much its own rounding
        adds (QDQ error), both as noise-to-signal ratios in decibels scaled to 0..1, count half each. Layers without
        an activation of their own, and those that are equal in that, follow by the error of their weights.
        """
        cross, own = self._activation_errors()
        cross, own = _scaled(cross), _scaled(own)
        weights = {layer: self._weight_error(layer) for layer in self.layers}

        def key(layer: Layer) -> tuple[float, float]:
            last = layer.outputs[-1]
            score = 0.5 * cross[last] + 0.5 * own[last] if last in cross else -1.0
            return -round(score, 9), -weights[layer]

        return sorted(self.layers, key=key)

    def _activation_errors(self) -> tuple[dict[str, float], dict[str, float]]:
        """Cross-model and QDQ error in decibels of every activation of the wholly integer network."""
        graph, _ = self.made(signed=True)
        pairs = _pairs(graph.graph, {name for layer in self.layers for name in layer.outputs})
        names = list(pairs)
        before, after = [p[0] for p in pairs.values()], [p[1] for p in pairs.values()]
        exact, rounded = open_session(self.graph, names), open_session(graph, [*before, *after])
        sums = np.zeros((3, len(names)))
        for array in self._held:
            for part in parts(array, self._fixed or _RUN, self._fixed):
                real: Any = exact.run(names, {self.spec.name: part})
                found: Any = rounded.run([*before, *after], {self.spec.name: part})
                for i, (a, b, c) in enumerate(
                    zip(real, found[: len(names)], found[len(names) :], strict=True)
                ):
                    sums[0, i] += _energy(a)
                    sums[1, i] += _energy(a - c)
                    sums[2, i] += _energy(b - c)
        signal = np.maximum(sums[0], _NEGLIGIBLE)
        cross, own = (10 * np.log10(np.maximum(s / signal, _NEGLIGIBLE)) for s in sums[1:])
        return dict(zip(names, map(float, cross), strict=True)), dict(
            zip(names, map(float, own), strict=True)
        )

    def _weight_error(self, layer: Layer) -> float:
        """``||w - dequantised w|| / ||w||``; 0 without weights."""
        node = next(n for n in self.scheme.nodes if n.outputs[0].name == layer.outputs[0])
        weight = constant(input_at(node, 1))
        if not layer.weights or weight is None:
            return 0.0
        grid = weight_grid(weight, weight_axis(node) if self.recipe.per_channel else None, name=layer.name)
        error = weight - grid.dequantize(grid.quantize(weight, -127))
        return float(np.sqrt(_energy(error) / max(_energy(weight), _NEGLIGIBLE)))

    def answers(self, graph: ir.Model, rows: np.ndarray) -> np.ndarray:
        """First output for every row, in float arithmetic: integer kernels saturate differently by processor."""
        session = open_session(graph, [self.output])
        found = []
        for start in range(0, len(rows), self._fixed or _RUN):
            few = rows[start : start + (self._fixed or _RUN)]
            for part in parts(few, len(few), self._fixed):
                result: Any = session.run([self.output], {self.spec.name: part})[0]
                if result.ndim == 0 or len(result) != len(part):
                    raise DataError(
                        f"output {self.output!r} has the shape {list(result.shape)} for {len(part)} rows",
                        "the first output must have one row per sample",
                    )
                found.append(result[: len(few)])
        return np.concatenate(found)

    @cached_property
    def _fixed(self) -> int:
        return self.spec.shape[0] if self.spec.shape and isinstance(self.spec.shape[0], int) else 0


def layers_of(scheme: Scheme) -> list[Layer]:
    """What can be float or integer by itself, in graph order: not what only moves numbers, nor what is absorbed."""
    found = []
    for node in scheme.nodes:
        if node in scheme.absorbed or RULES[node.op_type].kind == "same":
            continue
        followers = [use.node for use in node.outputs[0].uses() if use.node in scheme.absorbed]
        weight = constant(input_at(node, 1)) if RULES[node.op_type].kind == "weighted" else None
        outputs = tuple(str(n.outputs[0].name) for n in (node, *followers))
        found.append(
            Layer(str(node.name or outputs[0]), node.op_type, outputs, 0 if weight is None else weight.size)
        )
    return found


def difference(float_answers: np.ndarray, answers: np.ndarray) -> tuple[float | None, float]:
    """Share of rows with another label (None unless there is a vector of scores per row), and ``||a - b|| / ||a||``.

    A network that gives no numbers differs in everything.
    """
    a, b = float_answers.astype(np.float64), answers.astype(np.float64)
    classifies = a.ndim == 2 and a.shape[1] >= 2
    if not np.isfinite(b).all():
        return (1.0 if classifies else None), 1.0
    labels = float(np.mean(a.argmax(1) != b.argmax(1))) if classifies else None
    error = float(np.linalg.norm(a - b) / max(float(np.linalg.norm(a)), _NEGLIGIBLE))
    return labels, error


def _pairs(graph: ir.Graph, wanted: Collection[str]) -> dict[str, tuple[str, str]]:
    """Names of each wanted activation before and after its Q and DQ, by its name in the float network."""
    found: dict[str, tuple[str, str]] = {}
    for node in graph:
        if node.op_type != "QuantizeLinear" or node.inputs[0] is None:
            continue
        back = [use.node for use in node.outputs[0].uses() if use.node.op_type == "DequantizeLinear"]
        if not back:
            continue
        before, after = str(node.inputs[0].name), str(back[0].outputs[0].name)
        name = before if before in wanted else after  # an output of the network hands its name to the DQ
        if name in wanted:
            found.setdefault(name, (before, after))
    return found


def _scaled(values: Mapping[str, float]) -> dict[str, float]:
    """Scaled to 0..1 over all."""
    low, high = min(values.values(), default=0.0), max(values.values(), default=0.0)
    return {name: (v - low) / (high - low) if high > low else 0.0 for name, v in values.items()}


def _energy(values: np.ndarray) -> float:
    return float(np.sum(np.square(values, dtype=np.float64)))
