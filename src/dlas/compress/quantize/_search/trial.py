"""The network while its scales are searched: the loss of any scales, with what they do not change computed once."""

from __future__ import annotations

from collections.abc import Mapping

import numpy as np
import onnx_ir as ir

from dlas.compress.quantize._search.distance import mean_distance
from dlas.compress.quantize._search.evolution import Fitness, State
from dlas.compress.quantize._search.network import FewBitNetwork
from dlas.compress.quantize._search.suffix import Kept, Rows, dependent, entering, part_of
from dlas.compress.quantize._search.uniform import UniformGrid
from dlas.core.errors import DataError

Scales = Mapping[int, np.ndarray]
"""Scales, ``(channels,) float32``, by the position of the layer."""


class Trial:
    """Losses of a calibrated network.

    Args:
        network: With its grids.
        rows: Calibration rows.
        loss: Name of the distance.
        batch: Rows per batch of it.
        room: Bytes for values that are kept.

    Raises:
        DataError: The float network's answers are not finite.
    """

    def __init__(self, network: FewBitNetwork, rows: Rows, loss: str, batch: int, room: int) -> None:
        self.network, self.rows, self._room = network, rows, room
        self._distance, self._batch = loss, batch
        self.graph, layers = network.rounded()
        self._weights = [str(layer.inputs[1].name) for layer in layers]  # type: ignore[union-attr]
        self._output = self.graph.graph.outputs[0]
        self._exact = self._answers(network.float_graph)
        if not np.isfinite(self._exact).all():
            raise DataError(
                f"{network.model.name} gives answers that are not finite for the calibration rows",
                "check the rows and the network's preprocessing",
            )
        parts = [dependent(self.graph.graph, [layers[i] for i in unit.layers]) for unit in network.units]
        self._entering = [entering(self.graph.graph, part) for part in parts]
        self._made = [{out for node in part for out in node.outputs} for part in parts]
        self._sizes: dict[ir.Value, int] = {}
        self._kept: dict[int, Kept] = {}

    def label(self, unit: int) -> str:
        """The layers of a unit."""
        return ", ".join(self.network.names[i] for i in self.network.units[unit].layers)

    def grids_of(self, scales: Scales) -> dict[str, UniformGrid]:
        """Grids with these scales, by the name of the layer's output."""
        return {self.network.keys[i]: self.network.grid(i).scaled(s) for i, s in scales.items()}

    def loss(self, scales: Scales) -> float:
        """Loss of the whole network, with these scales in place of the first ones."""
        graph = self.graph.clone()
        self._set(graph, scales)
        return self._loss(self._answers(graph))

    def fitness(self, unit: int, state: State) -> Fitness:
        """Loss as a function of the scales of one unit, the others being those of ``state``.

        Units are to be visited last to first, again and again: only then is what is kept still right.
        """
        self._set(self.graph, state.scales)
        kept = self._values(unit)
        names = {i: self._weights[i] for i in self.network.units[unit].layers}
        part = part_of(self.graph, self._entering[unit], [self._output], list(names.values()))
        running = self.rows.opened(part, [str(self._output.name)])

        def loss(scales: Scales) -> float:
            weights = {name: self._rounded(i, scales[i]) for i, name in names.items()}
            return self._loss(self.rows.joined(running(kept, weights)[str(self._output.name)]))

        return loss

    def _values(self, unit: int) -> Kept:
        """What enters the part that depends on a unit; found for as many units before it as there is room for."""
        if unit not in self._kept:
            group = self._group(unit)
            wanted = dict.fromkeys(value for other in group for value in self._entering[other])
            found = self._computed(list(wanted), self.rows)
            self._kept = {
                other: {str(v.name): found[str(v.name)] for v in self._entering[other]} for other in group
            }
        return self._kept.pop(unit)

    def _group(self, unit: int) -> list[int]:
        """Units from ``unit`` down whose entering values fit, and do not depend on one that changes before them."""
        if not self._sizes:
            every = list(dict.fromkeys(v for values in self._entering for v in values))
            found = self._computed(every, self.rows.first())
            self._sizes = {v: found[str(v.name)][0].nbytes * len(self.rows.parts) for v in every}
        group: list[int] = []
        held: set[ir.Value] = set()
        room = self._room
        for other in range(unit, -1, -1):
            more = [v for v in self._entering[other] if v not in held]
            room -= sum(self._sizes[v] for v in more)
            changed = any(v in self._made[later] for later in group for v in self._entering[other])
            if group and (room < 0 or changed):
                break
            held.update(more)
            group.append(other)
        return group

    def _computed(self, values: list[ir.Value], rows: Rows) -> Kept:
        sources = [v for v in self.graph.graph.inputs if v.name not in self.graph.graph.initializers]
        found: Kept = {str(v.name): rows.parts for v in values if v in sources}
        computed = [v for v in values if v not in sources]
        if computed:
            names = [str(v.name) for v in computed]
            found |= rows.opened(part_of(self.graph, sources, computed, []), names)({}, {})
        return found

    def _answers(self, graph: ir.Model) -> np.ndarray:
        name = str(graph.graph.outputs[0].name)
        return self.rows.joined(self.rows.opened(graph, [name])({}, {})[name])

    def _set(self, graph: ir.Model, scales: Scales) -> None:
        for i, scale in scales.items():
            value = graph.graph.initializers[self._weights[i]]
            value.const_value = ir.tensor(self._rounded(i, scale), name=value.name)

    def _rounded(self, layer: int, scale: np.ndarray) -> np.ndarray:
        return self.network.grid(layer).scaled(scale).rounded(self.network.weight(layer))

    def _loss(self, answers: np.ndarray) -> float:
        return mean_distance(self._distance, answers, self._exact, self._batch)
