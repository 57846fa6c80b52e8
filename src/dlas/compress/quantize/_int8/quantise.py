"""The steps that static 8-bit quantisations share: an editable float graph, ranges, grids and bias shifts."""

from __future__ import annotations

from collections.abc import Callable, Collection, Mapping, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import Batches, Range, calibrate
from dlas.compress.qdq import Grid, activation_grid
from dlas.compress.quantize._int8.bias import CORRECTED, FloatMeans, mean_errors
from dlas.compress.quantize._int8.lower import lower, restore_weights
from dlas.compress.quantize._int8.rewrite import Rewriter, weighted
from dlas.compress.quantize._int8.scheme import Scheme, choose, constant, input_at
from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model, TensorSpec
from dlas.kernels.formats.grid import Grid as Levels

_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def prepare(model: Model) -> ir.Model:
    """An editable copy, simplified, with every operator in the form the rules know."""
    from dlas.graph import passes
    from dlas.graph.padding import fold_padding

    opset = model.ir.graph.opset_imports.get("", 0)
    if opset < 13:
        raise UnsupportedError(
            f"{model.name} uses ONNX opset {opset}; int8 needs 13 or newer", "convert it to opset 18 first"
        )
    refuse_quantized(model)
    for spec in model.inputs:
        if spec.dtype == "float16":
            raise UnsupportedError(
                f"input {spec.name!r} of {model.name} is float16", "quantise the float32 network instead"
            )
    graph = model.editable()
    restore_weights(graph.graph)
    passes.simplify(graph)
    fold_padding(graph)  # no runtime does so once both ends are quantised
    lower(graph.graph)
    return graph


def refuse_quantized(model: Model) -> None:
    """Raise UnsupportedError where activations are quantised; weights alone may be."""
    for node in model.ir.graph:
        weights = node.op_type == "DequantizeLinear" and constant(input_at(node, 0)) is not None
        if node.op_type in _QUANTIZED and not weights:
            raise UnsupportedError(
                f"{model.name} is already quantised (node {node.name!r} is a {node.op_type})",
                "start from the float network",
            )


def require_layers(model: Model, scheme: Scheme) -> None:
    """Raise UnsupportedError unless some layer can become integer."""
    if not scheme.nodes:
        reasons = "; ".join(f"{name} ({op}): {why}" for name, op, why in scheme.left[:5])
        raise UnsupportedError(
            f"{model.name} has no layer that int8 can quantise" + (f": {reasons}" if reasons else ""),
            "int8 starts at Conv, ConvTranspose, Gemm and MatMul",
        )


def corrected(scheme: Scheme) -> list[ir.Node]:
    """The layers whose bias can be corrected, in graph order."""
    return [n for n in weighted(scheme) if n.op_type in CORRECTED]


def notes_on(scheme: Scheme) -> tuple[str, ...]:
    """Which nodes stay float and why, one line per operator and reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, op, why in scheme.left:
        grouped.setdefault((op, why), []).append(name)
    return tuple(f"{op} stays float: {why} ({_listed(names)})" for (op, why), names in grouped.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")


def measure_ranges(
    graph: ir.Model,
    spec: TensorSpec,
    scheme: Scheme,
    batches: Batches,
    *,
    rows: int,
    method: str,
    percentile: float,
    values: Sequence[ir.Value] = (),
    progress: Callable[[float], Any] | None = None,
) -> dict[str, Range]:
    """Range of every tensor that decides a grid, by name.

    Args:
        graph: The float network that ``scheme`` is about.
        spec: Its one input.
        scheme: What becomes integer.
        batches: Stream of calibration rows.
        rows: How many there are.
        method: See :func:`~dlas.compress.calibration.calibrate`.
        percentile: Likewise.
        values: Further tensors whose ranges are wanted.
        progress: Called with the fraction done.
    """
    observed: dict[str, str] = {}
    ranges: dict[str, Range] = {}
    for value in dict.fromkeys([*scheme.sources(), *values]):
        array = constant(value)
        if array is not None:
            ranges[str(value.name)] = Range(float(array.min()), float(array.max()))
        else:
            producer = value.producer()
            observed[str(value.name)] = str((producer.name if producer else "") or value.name)
    # Cutting the top score would turn the answer into a tie.
    whole = {str(v.name) for v in scheme.scores()}
    return ranges | calibrate(
        graph,
        spec,
        observed,
        batches,
        method=method,
        percentile=percentile,
        whole=whole,
        progress=progress,
        rows=rows,
    )


def grids_of(scheme: Scheme, ranges: Mapping[str, Range]) -> dict[ir.Value, Grid]:
    """Grid of every group, by the tensor that stands for it."""
    merged: dict[ir.Value, Range] = {}
    for value in scheme.sources():
        root, span = scheme.group(value), ranges[str(value.name)]
        merged[root] = merged[root].union(span) if root in merged else span
    grids = {root: activation_grid(span.low, span.high) for root, span in merged.items()}
    return grids | {scheme.group(value): grid for value, grid in scheme.fixed.items()}


def bias_shifts(
    graph: ir.Model,
    spec: TensorSpec,
    grids: Mapping[ir.Value, Grid],
    batches: Batches,
    *,
    keep_float: str,
    outputs: Collection[str] = (),
    per_channel: bool,
    rows: int,
    progress: Callable[[float], Any] | None = None,
    float_means: FloatMeans | None = None,
    levels: Levels | None = None,
) -> list[np.ndarray]:
    """What :func:`corrected` layers lose on the mean, ``(channels,)`` each; ``graph`` stays as it is.

    ``keep_float`` and ``outputs`` are those of :func:`~dlas.compress.quantize._int8.scheme.choose`, ``levels`` those
    of the Rewriter, the rest those of :func:`~dlas.compress.quantize._int8.bias.mean_errors`.
    """
    copy, trial = graph.clone(), graph.clone()
    float_scheme = choose(copy.graph, keep_float, outputs)
    trial_scheme = choose(trial.graph, keep_float, outputs)
    by_name = {value.name: grid for value, grid in grids.items()}
    roots = {trial_scheme.group(value) for value in trial_scheme.tensors}
    trial_layers = corrected(trial_scheme)
    biases = [input_at(layer, 2) for layer in trial_layers]
    trial_grids = {root: by_name[root.name] for root in roots}
    Rewriter(trial.graph, trial_scheme, trial_grids, per_channel=per_channel, levels=levels).run()
    for layer, bias in zip(trial_layers, biases, strict=True):
        if bias is not None:
            layer.replace_input_with(2, bias)  # its own rounding is done anew, not corrected
    layers = corrected(float_scheme)
    return mean_errors(
        copy,
        layers,
        trial,
        trial_layers,
        spec,
        batches,
        rows=rows,
        progress=progress,
        float_means=float_means,
    )
