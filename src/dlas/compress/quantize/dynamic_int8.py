"""Dynamic-range quantisation: weights in 8 bits, activations left in float.

Weights become symmetric int8 codes with one scale per output channel (per gate for recurrent layers, which is what
LiteRT's kernels take), biases and activations stay float32, and no calibration rows are needed. A quarter of the
weight bytes, linear in the number of weights. What it brings in time is the run time's affair: LiteRT rounds the
activations of each layer to int8 as they come and multiplies integers, ONNX Runtime mostly widens the weights and
computes in float. Follows the dynamic-range form of TensorFlow Lite's 8-bit specification. Where the hardware has only
integer arithmetic, use ``int8``.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.qdq import Grid, QdqWriter, weight_grid
from dlas.compress.quantize._int8.scheme import constant, weight_axis
from dlas.core.errors import UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.passes import simplify

GATES = {"LSTM": 4, "GRU": 3, "RNN": 1}
_WEIGHTS = {
    "Conv": (1,),
    "ConvTranspose": (1,),
    "Gemm": (1,),
    "MatMul": (0, 1),
    **dict.fromkeys(GATES, (1, 2)),
}
_SHOWN = 12  # layers in a note
_NOTE = (
    "activations stay float in the file: LiteRT rounds them to int8 at run time; ONNX Runtime computes in float, but "
    "fully optimised it rounds the activations of matrix products whose weights are stored as (inputs, outputs)"
)


@dataclass(frozen=True)
class Options:
    """Options of ``dynamic-int8``."""

    granularity: Literal["per-channel", "per-tensor"] = option(
        "per-channel",
        "one scale per output channel, or one per weight tensor",
        choices=("per-channel", "per-tensor"),
    )
    min_elements: int = option(
        1024, "weights with fewer values stay float, as in the TFLite converter", low=0
    )


@dataclass(frozen=True, eq=False)
class _Weight:
    """A weight that becomes int8.

    Attributes:
        node: Layer that reads it.
        index: Position among the layer's inputs.
        array: Its values.
        axis: Channel axis, or None for one scale.
        gates: Gates stacked along ``axis`` that have one scale each; 0 where every channel has its own.
    """

    node: ir.Node
    index: int
    array: np.ndarray
    axis: int | None
    gates: int = 0

    @property
    def scales(self) -> int:
        """Number of scales stored."""
        return 1 if self.axis is None else self.array.shape[self.axis]


@methods.register("dynamic-int8")
class DynamicInt8(Method):
    """Weights in 8 bits, activations in float; needs no rows."""

    name = "dynamic-int8"
    summary = "Dynamic-range quantisation: int8 weights, float activations, no calibration"
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Layers whose weights become int8, with their bytes before and after; needs no rows."""
        graph = _prepare(model)
        found, left = self._weights(graph, model.name)
        before = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
        saved = _saved(found)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(before - saved, "bytes", Source.ESTIMATED),
        }
        return Plan(self.spelled(), tuple(_change(w) for w in found), expected, (*left, _NOTE))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with DequantizeLinear on its int8 weights; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: It is quantised already, or has no float32 weight that is large enough.
            ModelError: A weight is not finite.
        """
        graph = _prepare(model)
        found, left = self._weights(graph, model.name)
        writer = QdqWriter(graph.graph)
        for weight in found:
            _store(graph.graph, writer, weight)
        RemoveUnusedNodesPass()(graph)
        if progress is not None:
            progress(1.0, "weights in int8")
        notes = (f"{len(found)} weights became int8", *left, _NOTE)
        step = Step(self.name, options_dict(self.options), step_versions("numpy", "onnx-ir"), notes)
        return model.with_step(graph, step)

    def _weights(self, graph: ir.Model, name: str) -> tuple[list[_Weight], tuple[str, ...]]:
        """The weights that become int8, and a note on the layers that keep theirs."""
        found, small = [], []
        for node in graph.graph:
            if node.domain not in ("", "ai.onnx"):
                continue
            for index in _WEIGHTS.get(node.op_type, ()):
                array = constant(node.inputs[index]) if index < len(node.inputs) else None
                if array is None or array.dtype != np.float32 or array.ndim < 2:
                    continue
                if array.size >= self.options.min_elements:
                    found.append(self._weight(node, index, array))
                else:
                    small.append(f"{node.name or node.outputs[0].name} ({array.size})")
        if not found:
            raise UnsupportedError(
                f"{name} has no float32 weight of {self.options.min_elements} values or more",
                "lower min_elements, or start from the float network",
            )
        return found, _left(small, self.options.min_elements)

    def _weight(self, node: ir.Node, index: int, array: np.ndarray) -> _Weight:
        if node.op_type in GATES:  # (directions, gates * hidden, ...)
            return _Weight(
                node, index, array, 1, 1 if self.options.granularity == "per-tensor" else GATES[node.op_type]
            )
        matrices = node.op_type == "MatMul" and array.ndim != 2
        if self.options.granularity == "per-tensor" or matrices or (node.op_type == "MatMul" and index == 0):
            return _Weight(node, index, array, None)
        return _Weight(node, index, array, weight_axis(node))


def _left(small: list[str], least: int) -> tuple[str, ...]:
    if not small:
        return ()
    shown = ", ".join(small[:_SHOWN]) + (f" and {len(small) - _SHOWN} more" if len(small) > _SHOWN else "")
    return (f"weights of fewer than {least} values stay float (option min_elements): {shown}",)


def _prepare(model: Model) -> ir.Model:
    """An editable copy, simplified; refuses a network that is quantised already."""
    for node in model.ir.graph:
        if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
            raise UnsupportedError(
                f"{model.name} is quantised already (node {node.name!r} is a {node.op_type})",
                "start from the float network",
            )
    if model.ir.graph.opset_imports.get("", 0) < 13:
        opset = model.ir.graph.opset_imports.get("", 0)
        raise UnsupportedError(
            f"{model.name} uses ONNX opset {opset}; dynamic-int8 needs 13 or newer",
            "convert it to opset 18 first",
        )
    graph = model.editable()
    simplify(graph)
    return graph


def _saved(found: list[_Weight]) -> int:
    """Bytes by which the weights shrink: layers that share one store it once, for each form of its scales."""
    readers: dict[ir.Value, list[_Weight]] = {}
    for weight in found:
        value = weight.node.inputs[weight.index]
        if value is not None:
            readers.setdefault(value, []).append(weight)
    saved = 0
    for value, weights in readers.items():
        if len(weights) == len(list(value.uses())) and not value.is_graph_output():
            saved += 4 * weights[0].array.size  # else the float values stay, for what still reads them
        forms = {(w.axis, w.gates): w for w in weights}.values()
        saved -= sum(w.array.size + 5 * w.scales for w in forms)
    return saved


def _grid(weight: _Weight, name: str) -> Grid:
    """The grid of a weight; gates that share a scale have it repeated for each of their channels."""
    if not weight.gates or weight.axis is None:
        return weight_grid(weight.array, weight.axis, name=name)
    rows = weight.array.shape[weight.axis] // weight.gates
    parts = np.split(weight.array, weight.gates, weight.axis)
    scales = [weight_grid(part, None, name=name).scale for part in parts]
    scale = np.repeat(np.array(scales, np.float32), rows)
    return Grid(scale, np.zeros(len(scale), np.int8), weight.axis)


def _store(graph: ir.Graph, writer: QdqWriter, weight: _Weight) -> None:
    name = str(weight.node.inputs[weight.index].name)  # type: ignore[union-attr]
    grid = _grid(weight, name)
    stored = writer.dequantized_constant(grid.quantize(weight.array, -127), grid, name)
    graph.insert_before(weight.node, stored)
    weight.node.replace_input_with(weight.index, stored.outputs[0])


def _change(weight: _Weight) -> Change:
    shape = "x".join(map(str, weight.array.shape))
    many = weight.gates or weight.scales
    scales = "one scale" if weight.axis is None or many == 1 else f"{many} scales on axis {weight.axis}"
    return Change(
        str(weight.node.name or weight.node.outputs[0].name),
        f"{weight.node.op_type} {shape}: weights 8 bits, {scales}",
        f"{weight.array.size * 4} bytes",
        f"{weight.array.size + 5 * weight.scales} bytes",
    )
