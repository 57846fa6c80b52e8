"""Empirical bias correction: the mean error of every layer's output goes into its bias.

Rounded weights and clipped activations shift the mean of a layer's output, and the shift adds up over the layers
(Nagel et al. 2019, "Data-Free Quantization Through Weight Equalization and Bias Correction", section 4.2 and appendix
D). Both networks run once over the calibration rows. Each layer of the quantised one is put right inside the batch
before the next one reads it, so that every layer sees the inputs it will see and one pass does for all: as exact as
layer after layer, at the price of two forward passes.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import Batches, open_session, parts
from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._int8.scheme import attribute, constant, input_at, weight_axis
from dlas.graph.model import TensorSpec

_BATCH = 16  # the mean over one batch is close enough to that over all rows; larger ones take memory only
CORRECTED = ("Conv", "ConvTranspose", "Gemm")
"""Operators with a bias to correct; a MatMul has none."""

FloatMeans = dict[int, dict[str, np.ndarray]]
"""Mean of each layer's output over the rows of a part, by the number of the part and the name of the output."""


def mean_errors(
    network: ir.Model,
    layers: Sequence[ir.Node],
    trial: ir.Model,
    trial_layers: Sequence[ir.Node],
    spec: TensorSpec,
    batches: Batches,
    *,
    rows: int = 0,
    progress: Callable[[float], Any] | None = None,
    float_means: FloatMeans | None = None,
) -> list[np.ndarray]:
    """Mean over rows and positions of float output minus quantised output, per layer and channel.

    Args:
        network: The float network; gets outputs, so pass a copy.
        layers: Its layers to compare, operators of :data:`CORRECTED`.
        trial: The same network in QDQ form with float input; is rewritten, so pass a copy.
        trial_layers: The same layers there, in the same order.
        spec: The one input.
        batches: Stream of calibration rows.
        rows: Number of rows in the stream, for ``progress``.
        progress: Called with the fraction done.
        float_means: What the float layers answered on the same rows in an earlier call, which is then not computed
            again; filled by the first call, which must be for all layers there will be.

    Returns:
        ``(channels,) float64`` per layer. 0 where a mean is not finite, as behind a clip that hides an overflow.
    """
    if not layers:
        return []
    names = [str(layer.outputs[0].name) for layer in layers]
    exact = _FloatNetwork(network, layers, spec.name, {} if float_means is None else float_means)
    trial_writer = QdqWriter(trial.graph)
    pairs = [_put_right(trial_writer, layer) for layer in trial_layers]
    given, errors = [str(a.name) for a, _ in pairs], [str(b.name) for _, b in pairs]
    quantised = open_session(trial, errors)
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 0
    sums, count, done = [np.zeros(())] * len(layers), 0, 0
    for array in batches():
        for part in parts(array, fixed or _BATCH, fixed):
            means = exact.means(done, part)
            feed = {spec.name: part, **{g: means[n] for g, n in zip(given, names, strict=True)}}
            done += 1
            found = quantised.run(errors, feed)
            sums = [
                s + len(part) * np.asarray(e, np.float64).reshape(-1)
                for s, e in zip(sums, found, strict=True)
            ]
            count += len(part)
            if progress is not None and rows:
                progress(min(1.0, count / rows))
    return [np.where(np.isfinite(s), s, 0.0) / max(count, 1) for s in sums]


class _FloatNetwork:
    """Means of the layers of the float network over each part of the rows; ``known`` ones are not computed."""

    def __init__(self, network: ir.Model, layers: Sequence[ir.Node], feed: str, known: FloatMeans) -> None:
        self._feed, self._known = feed, known
        if known:
            return
        writer = QdqWriter(network.graph)
        self._names = [str(layer.outputs[0].name) for layer in layers]
        self._wanted = [str(_add_mean(writer, layer).name) for layer in layers]
        self._session = open_session(network, self._wanted)

    def means(self, at: int, part: np.ndarray) -> dict[str, np.ndarray]:
        """Means over the part number ``at`` by the layer's output."""
        if at not in self._known:
            found: Any = self._session.run(self._wanted, {self._feed: part})
            self._known[at] = dict(zip(self._names, found, strict=True))
        return self._known[at]


def outputs(layer: ir.Node, weight: np.ndarray) -> int:
    """Number of values in a layer's bias."""
    groups = int(attribute(layer, "group", 1)) if layer.op_type == "ConvTranspose" else 1
    return weight.shape[weight_axis(layer)] * groups


def add_to_bias(graph: ir.Graph, layers: Sequence[ir.Node], shifts: Sequence[np.ndarray]) -> None:
    """Add each shift, ``(channels,)``, to the bias of its float layer, in place; a layer without one gets one."""
    writer = QdqWriter(graph)
    for layer, shift in zip(layers, shifts, strict=True):
        value = input_at(layer, 2)
        bias = constant(value)
        before = np.zeros(len(shift)) if bias is None else bias.reshape(-1).astype(np.float64)
        name = f"{layer.outputs[0].name}_bias" if value is None else f"{value.name}_corrected"
        corrected = writer.constant((before + shift).astype(np.float32), name)
        if len(layer.inputs) < 3:
            layer.resize_inputs(3)
        layer.replace_input_with(2, corrected)


def _add_mean(writer: QdqWriter, layer: ir.Node) -> ir.Value:
    """Compute the mean of a layer's output over rows and positions, ``(1, channels, 1, ...)``."""
    node = _mean_node(writer, layer)
    writer.graph.insert_after(layer, node)
    return node.outputs[0]


def _put_right(writer: QdqWriter, layer: ir.Node) -> tuple[ir.Value, ir.Value]:
    """Let a layer's output have the mean that is fed; gives the new input and the mean error."""
    out = layer.outputs[0]
    uses = list(out.uses())
    node = _mean_node(writer, layer)
    wanted = ir.Value(name=writer.name(f"{out.name}_wanted"), type=ir.TensorType(ir.DataType.FLOAT))
    wanted.shape = ir.Shape([1, None, *[1] * (_rank(layer) - 2)])
    writer.graph.inputs.append(wanted)
    error = ir.node("Sub", [wanted, node.outputs[0]])
    right = ir.node("Add", [out, error.outputs[0]])
    for made, what in ((error, "error"), (right, "right")):
        made.name = made.outputs[0].name = writer.name(f"{out.name}_{what}")
    for use in uses:
        use.node.replace_input_with(use.idx, right.outputs[0])
    writer.graph.insert_after(layer, [node, error, right])
    return wanted, error.outputs[0]


def _mean_node(writer: QdqWriter, layer: ir.Node) -> ir.Node:
    value = layer.outputs[0]
    axes = np.array([0, *range(2, _rank(layer))], np.int64)
    if writer.graph.opset_imports.get("", 0) < 18:  # when the axes became an input
        node = ir.node("ReduceMean", [value], {"axes": axes.tolist(), "keepdims": 1})
    else:
        node = ir.node("ReduceMean", [value, writer.constant(axes, f"{value.name}_axes")], {"keepdims": 1})
    node.name = node.outputs[0].name = writer.name(f"{value.name}_mean")
    return node


def _rank(layer: ir.Node) -> int:
    weight = constant(input_at(layer, 1))
    shape = None if layer.inputs[1] is None else layer.inputs[1].shape
    return weight.ndim if weight is not None else len(shape or ())
