"""A network on its way to weights of few bits: the prepared graph, what becomes integer in it, and the grids."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from typing import TYPE_CHECKING

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.qdq import Grid
from dlas.compress.quantize._int8.bias import CORRECTED, add_to_bias, mean_errors
from dlas.compress.quantize._int8.guard import guard_float_layers
from dlas.compress.quantize._int8.quantise import corrected, grids_of, measure_ranges, prepare, require_layers
from dlas.compress.quantize._int8.rewrite import weighted
from dlas.compress.quantize._int8.scheme import Scheme, choose, constant, input_at, weight_axis
from dlas.compress.quantize._search.graph import PACKED_IR, PACKED_OPSET, FewBits, can_pack
from dlas.compress.quantize._search.rows import products_on_rows
from dlas.compress.quantize._search.uniform import UniformGrid, omse_grid
from dlas.compress.quantize._search.units import Unit, units
from dlas.compress.unsigned import unsigned_activations
from dlas.graph.model import Model

if TYPE_CHECKING:
    from dlas.compress.quantize._search.suffix import Rows
    from dlas.compress.quantize.cptv import Options


class FewBitNetwork:
    """The float graph of a network, and what is decided about it.

    Attributes:
        float_graph: The prepared graph.
        graph: The same; calibration changes its biases.
        scheme: What becomes integer.
        layers: Nodes with weights, in graph order.
        keys: Their outputs' names, which stand for them in every copy of the graph.
        names: What a user knows them by.
        units: What the search changes at a time.
        packed: Whether codes are stored two in a byte.
        notes: What the user must know.
        grids: First grid of each layer's weights, by key; filled by :meth:`calibrate`.
    """

    def __init__(self, model: Model, options: Options) -> None:
        self.model, self.options = model, options
        self.float_graph = prepare(model)
        products_on_rows(self.float_graph.graph)
        self.graph = self.float_graph.clone()
        self.scheme = self._scheme(self.graph)
        require_layers(model, self.scheme)
        self.layers = weighted(self.scheme)
        self.keys = [str(layer.outputs[0].name) for layer in self.layers]
        self.names = [layer.name or key for layer, key in zip(self.layers, self.keys, strict=True)]
        self.units: list[Unit] = units(self.graph.graph, self.layers, options.unit)
        small = options.pack and any(self.bits(i) <= 4 for i in range(len(self.layers)))
        reason = can_pack(self.graph.graph) if small else ""
        self.packed = small and not reason
        self.notes = [f"codes of up to 4 bits take a byte each: {reason}"] if reason else []
        self.grids: dict[str, UniformGrid] = {}
        self._activations: dict[str, Grid] = {}

    def bits(self, layer: int) -> int:
        """Bits of a layer's weights."""
        edge = layer in (0, len(self.layers) - 1)
        return self.options.edge_bits if edge else self.options.bits

    def weight(self, layer: int) -> np.ndarray:
        """The float weights of a layer."""
        weight = constant(input_at(self.layers[layer], 1))
        assert weight is not None
        return weight

    def grid(self, layer: int) -> UniformGrid:
        """The first grid of a layer's weights."""
        return self.grids[self.keys[layer]]

    def stored_bytes(self, layer: int) -> int:
        """Bytes of a layer's codes, scales and zero points in the file."""
        weight = self.weight(layer)
        channels = weight.shape[weight_axis(self.layers[layer])]
        if self.packed and self.bits(layer) <= 4:
            return -(-weight.size // 2) + 4 * channels + -(-channels // 2)
        return weight.size + 5 * channels

    def weight_bytes(self) -> int:
        """Bytes of all codes, scales and zero points in the file."""
        return sum(self.stored_bytes(i) for i in range(len(self.layers)))

    def packed_bytes(self) -> int:
        """Bytes that an accelerator loads: codes and zero points without a gap, scales of 32 bits."""
        total = 0
        for i, layer in enumerate(self.layers):
            weight = self.weight(i)
            channels = weight.shape[weight_axis(layer)]
            total += self.bits(i) * (weight.size + channels) + 32 * channels
        return -(-total // 8)

    def bits_per_weight(self) -> float:
        """Bits per weight of these, scales and zero points included."""
        return 8 * self.packed_bytes() / sum(self.weight(i).size for i in range(len(self.layers)))

    def calibrate(self, rows: Rows, tell: Callable[[float], None]) -> None:
        """Find ranges of activations and grids of weights, and let biases make up for the mean error.

        Raises:
            DataError: Activations that are not finite.
            ModelError: Weights that are not finite.
        """
        spec, options = self.model.inputs[0], self.options

        def batches() -> Iterator[np.ndarray]:
            return iter([rows.rows])

        share = 0.6 if options.bias_correction else 1.0
        for i, layer in enumerate(self.layers):
            value = input_at(layer, 1)
            grid = omse_grid(
                self.weight(i), weight_axis(layer), self.bits(i), name=str(value.name if value else "")
            )
            self.grids[self.keys[i]] = grid
        ranges = measure_ranges(
            self.graph,
            spec,
            self.scheme,
            batches,
            rows=len(rows),
            method=options.calibration,
            percentile=options.percentile,
            progress=lambda f: tell(share * f),
        )
        self._activations = {str(v.name): grid for v, grid in grids_of(self.scheme, ranges).items()}
        if not options.bias_correction:
            return
        exact, (trial, trial_layers) = self.float_graph.clone(), self.rounded()
        shifts = mean_errors(
            exact,
            corrected(self._scheme(exact)),
            trial,
            [layer for layer in trial_layers if layer.op_type in CORRECTED],
            spec,
            batches,
            rows=len(rows),
            progress=lambda f: tell(share + (1 - share) * f),
        )
        add_to_bias(self.graph.graph, corrected(self.scheme), shifts)

    def rounded(self) -> tuple[ir.Model, list[ir.Node]]:
        """A copy whose weights are rounded but float and whose activations are rounded, and its layers."""
        copy = self.graph.clone()
        scheme = self._scheme(copy)
        layers = weighted(scheme)
        self._rewriter(copy, scheme, self.grids, stored=False).run()
        RemoveUnusedNodesPass()(copy)
        return copy, layers

    def stored(self, grids: Mapping[str, UniformGrid]) -> tuple[ir.Model, list[str]]:
        """The network as it will be written, with its weights on these grids, and what the user must know of it."""
        copy = self.graph.clone()
        notes = self._rewriter(copy, self._scheme(copy), grids, stored=True).run()
        guard_float_layers(copy.graph)
        RemoveUnusedNodesPass()(copy)
        unsigned_activations(copy)
        if self.packed:
            copy.graph.opset_imports[""] = max(PACKED_OPSET, copy.graph.opset_imports.get("", 0))
            copy.ir_version = max(copy.ir_version, PACKED_IR)
        return copy, notes

    def _scheme(self, graph: ir.Model) -> Scheme:
        return choose(graph.graph, self.options.keep_float)

    def _rewriter(
        self, copy: ir.Model, scheme: Scheme, weights: Mapping[str, UniformGrid], *, stored: bool
    ) -> FewBits:
        grids = {
            root: self._activations[str(root.name)] for root in {scheme.group(v) for v in scheme.tensors}
        }
        return FewBits(copy.graph, scheme, grids, weights, stored=stored, packed=self.packed)
