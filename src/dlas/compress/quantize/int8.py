"""Static 8-bit post-training quantisation: int8 weights, activations and arithmetic, int32 biases.

The network comes out in QDQ form, which onnxruntime fuses into integer kernels and which translates one to one into
TFLite's 8-bit scheme (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; TFLite 8-bit quantization specification). Not for networks that lose much to 8-bit
activations, such as those with layer normalisation: keep such layers float with ``keep_float``.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.calibration import CALIBRATIONS, Batches, Range, calibrate, calibration_batches
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.qdq import Grid, QdqWriter, activation_grid, bias_codes, weight_grid
from dlas.compress.quantize._bias import CORRECTED, add_to_bias, mean_errors, outputs
from dlas.compress.quantize._lower import lower, restore_weights
from dlas.compress.quantize._scheme import (
    RULES,
    Scheme,
    choose,
    constant,
    data_inputs,
    input_at,
    weight_axis,
)
from dlas.core.errors import UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions


@dataclass(frozen=True)
class Options:
    """Options of ``int8``."""

    per_channel: bool = option(
        True, "one weight scale per output channel; one per tensor ruins depthwise networks"
    )
    calibration: Literal["min-max", "percentile", "mse"] = option(
        "mse", "how a range is read from the calibration rows", choices=CALIBRATIONS
    )
    percentile: float = option(
        99.99, "percent of the values kept by calibration=percentile", low=50, high=100
    )
    rows: int = option(512, "training rows used for calibration", low=1)
    io: Literal["float32", "int8"] = option(
        "float32", "dtype of the network's inputs and outputs", choices=("float32", "int8")
    )
    bias_correction: bool = option(
        True, "add the mean error of each layer over the calibration rows to its bias"
    )
    keep_float: str = option("", "patterns of node names to leave float, separated by |")


@methods.register("int8")
class Int8(Method):
    """Weights and activations in 8 bits, calibrated on training rows."""

    name = "int8"
    summary = "Static 8-bit post-training quantisation of weights and activations (QDQ)"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Layers that become integer with their bytes; needs no rows."""
        graph = _prepare(model)
        scheme = choose(graph.graph, self.options.keep_float)
        _require_layers(model, scheme)
        changes = [_weight_change(n, self.options) for n in _weighted(scheme)]
        before = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
        saved = sum(was - now for _, was, now in changes)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(before - saved, "bytes", Source.ESTIMATED),
        }
        return Plan(self.spelled(), tuple(c for c, _, _ in changes), expected, _notes(scheme))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network in QDQ form; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: Already quantised, not float32, or without a layer that can become integer.
            DataError: No rows, rows of another shape, or activations that are not finite.
            ModelError: Weights that are not finite.
        """
        graph = _prepare(model)
        scheme = choose(graph.graph, self.options.keep_float)
        _require_layers(model, scheme)
        batches, rows = calibration_batches(model, data, self.options.rows)
        grids = self._calibrate(model, graph, scheme, batches, rows, progress)
        if self.options.bias_correction:
            self._correct(model, graph, scheme, grids, batches, rows, progress)
        notes = _Rewriter(graph.graph, scheme, grids, self.options).run()
        RemoveUnusedNodesPass()(graph)
        if progress is not None:
            progress(1.0, "quantised")
        step = Step(
            self.name,
            options_dict(self.options),
            step_versions("numpy", "onnx-ir", "onnxruntime"),
            (*_notes(scheme), *notes, _used(data, self.options.rows)),
        )
        preprocessing = model.preprocessing
        source = graph.graph.inputs[0]
        if preprocessing is not None and source.dtype is ir.DataType.INT8:
            grid = grids[scheme.group(source)]
            preprocessing = dataclasses.replace(
                preprocessing,
                dtype="int8",
                quant_scale=float(grid.scale),
                quant_zero_point=int(grid.zero_point),
            )
        return model.with_step(graph, step, preprocessing=preprocessing)

    def _calibrate(
        self,
        model: Model,
        graph: ir.Model,
        scheme: Scheme,
        batches: Batches,
        rows: int,
        progress: Progress | None,
    ) -> dict[ir.Value, Grid]:
        """Grid of every group, by the tensor that stands for it."""
        share = 0.6 if self.options.bias_correction else 0.9
        observed: dict[str, str] = {}
        ranges: dict[str, Range] = {}
        for value in scheme.sources():
            array = constant(value)
            if array is not None:
                ranges[str(value.name)] = Range(float(array.min()), float(array.max()))
            else:
                producer = value.producer()
                observed[str(value.name)] = str((producer.name if producer else "") or value.name)
        ranges |= calibrate(
            graph,
            model.inputs[0],
            observed,
            batches,
            method=self.options.calibration,
            percentile=self.options.percentile,
            whole={
                str(v.name) for v in scheme.scores()
            },  # cutting the top score would turn the answer into a tie
            progress=None if progress is None else lambda f: progress(share * f, "calibrating"),
            rows=rows,
        )
        merged: dict[ir.Value, Range] = {}
        for value in scheme.sources():
            root, span = scheme.group(value), ranges[str(value.name)]
            merged[root] = merged[root].union(span) if root in merged else span
        grids = {root: activation_grid(span.low, span.high) for root, span in merged.items()}
        return grids | {scheme.group(value): grid for value, grid in scheme.fixed.items()}

    def _correct(
        self,
        model: Model,
        graph: ir.Model,
        scheme: Scheme,
        grids: dict[ir.Value, Grid],
        batches: Batches,
        rows: int,
        progress: Progress | None,
    ) -> None:
        """Move the mean error of every layer of ``graph``, still float, into its bias."""
        copy, trial = graph.clone(), graph.clone()
        float_scheme = choose(copy.graph, self.options.keep_float)
        trial_scheme = choose(trial.graph, self.options.keep_float)
        by_name = {value.name: grid for value, grid in grids.items()}
        roots = {trial_scheme.group(value) for value in trial_scheme.tensors}
        trial_layers = _biased(trial_scheme)
        biases = [input_at(layer, 2) for layer in trial_layers]
        _Rewriter(
            trial.graph,
            trial_scheme,
            {root: by_name[root.name] for root in roots},
            dataclasses.replace(self.options, io="float32"),
        ).run()
        for layer, bias in zip(trial_layers, biases, strict=True):
            if bias is not None:
                layer.replace_input_with(2, bias)  # its own rounding is done anew, not corrected
        shifts = mean_errors(
            copy,
            _biased(float_scheme),
            trial,
            trial_layers,
            model.inputs[0],
            batches,
            rows=rows,
            progress=None if progress is None else lambda f: progress(0.6 + 0.3 * f, "correcting biases"),
        )
        for layer, shift in zip(_biased(scheme), shifts, strict=True):
            add_to_bias(graph.graph, layer, shift)


class _Rewriter:
    """Puts Q and DQ nodes and integer weights into one graph."""

    def __init__(
        self, graph: ir.Graph, scheme: Scheme, grids: dict[ir.Value, Grid], options: Options
    ) -> None:
        self.graph = graph
        self.scheme = scheme
        self.grids = grids
        self.options = options
        self.writer = QdqWriter(graph)
        self.active = set(scheme.nodes)
        self.notes: list[str] = []

    def run(self) -> list[str]:
        """Rewrite; returns what the user must know."""
        for node in _weighted(self.scheme):
            self._weights(node)
        for node, index in sorted(self.scheme.requantize, key=lambda e: (e[0].name or "", e[1])):
            self._enter(node, index)
        for value in self.scheme.tensors:
            if constant(value) is not None:
                self._operand(value)
            else:
                self._activation(value)
        self.graph.sort()
        if self.options.io == "int8":
            ends = [("input", v) for v in self.graph.inputs] + [("output", v) for v in self.graph.outputs]
            self.notes += [
                f"{what} {v.name} stays float32: no integer layer there"
                for what, v in ends
                if v.dtype is ir.DataType.FLOAT
            ]
        return self.notes

    def grid(self, value: ir.Value) -> Grid:
        return self.grids[self.scheme.group(value)]

    def _weights(self, node: ir.Node) -> None:
        source, value, bias_value = node.inputs[0], node.inputs[1], input_at(node, 2)
        weight, bias = constant(value), constant(bias_value)
        if source is None or value is None or weight is None:
            return
        input_scale = self.grid(source).scale
        axis = weight_axis(node) if self.options.per_channel else None
        grid = weight_grid(weight, axis, bias=bias, input_scale=float(input_scale), name=str(value.name))
        stored = self.writer.dequantized_constant(grid.quantize(weight, -127), grid, str(value.name))
        self.graph.insert_before(node, stored)
        node.replace_input_with(1, stored.outputs[0])
        if bias is not None and bias_value is not None:
            codes, scale = bias_codes(bias.reshape(-1), input_scale, grid)
            stored = self.writer.dequantized_bias(codes, scale, str(bias_value.name))
            self.graph.insert_before(node, stored)
            node.replace_input_with(2, stored.outputs[0])

    def _enter(self, node: ir.Node, index: int) -> None:
        """Bring one input of a Concat onto the grid of its output."""
        value, grid = node.inputs[index], self.grid(node.outputs[0])
        if value is None:
            return
        name = self.writer.name(f"{value.name}_in_{node.outputs[0].name}")
        quantize = self.writer.quantize(value, grid, name)
        dequantize = self.writer.dequantize(quantize.outputs[0], grid, name)
        self.graph.insert_before(node, [quantize, dequantize])
        node.replace_input_with(index, dequantize.outputs[0])
        self.active.add(quantize)

    def _operand(self, value: ir.Value) -> None:
        array, grid = constant(value), self.grid(value)
        if array is None:
            return
        for use in self._integer_uses(value):
            stored = self.writer.dequantized_constant(grid.quantize(array), grid, str(value.name))
            self.graph.insert_before(use.node, stored)
            use.node.replace_input_with(use.idx, stored.outputs[0])

    def _activation(self, value: ir.Value) -> None:
        name, grid, producer = str(value.name), self.grid(value), value.producer()
        made_here = producer in self.active
        outputs = [i for i, out in enumerate(self.graph.outputs) if out is value and made_here]
        first = self.graph[0] if producer is None else None
        arrives_coded = producer is None and self.options.io == "int8"
        uses = list(value.uses()) if made_here or arrives_coded else self._integer_uses(value)
        if arrives_coded:
            codes, new = value, []
        else:
            quantize = self.writer.quantize(value, grid, name)
            codes, new = quantize.outputs[0], [quantize]
        whole = bool(outputs) and self.options.io == "int8"
        dequantize = None
        if uses or (outputs and not whole):
            dequantize = self.writer.dequantize(codes, grid, name)
            new.append(dequantize)
            for use in uses:
                use.node.replace_input_with(use.idx, dequantize.outputs[0])
        if first is not None:
            self.graph.insert_before(first, new)
        else:
            self.graph.insert_after(producer, new)  # type: ignore[arg-type]
        if arrives_coded:
            value.type = ir.TensorType(ir.DataType.INT8)
            self.notes.append(_signature("input", name, grid))
        if outputs:
            final = codes if whole or dequantize is None else dequantize.outputs[0]
            value.name = self.writer.name(f"{name}_float")
            final.name = name
            for i in outputs:
                self.graph.outputs[i] = final
            if whole:
                self.notes.append(_signature("output", name, grid))

    def _integer_uses(self, value: ir.Value) -> list:
        return [
            use
            for use in value.uses()
            if use.node in self.active
            and (use.node.op_type == "QuantizeLinear" or use.idx in [i for i, _ in data_inputs(use.node)])
        ]


def _used(data: Dataset | None, rows: int) -> str:
    return (
        "" if data is None else f"calibrated on {min(rows, len(data))} rows of {data.name} ({data.hash[:16]})"
    )


def _signature(what: str, name: str, grid: Grid) -> str:
    return f"{what} {name}: int8, scale {float(grid.scale):.9g}, zero point {int(grid.zero_point)}"


_QUANTIZED = ("QuantizeLinear", "DequantizeLinear", "DynamicQuantizeLinear", "QLinearConv", "QLinearMatMul")


def _prepare(model: Model) -> ir.Model:
    """An editable copy, simplified, with every operator in the form the rules know."""
    from dlas.graph import passes
    from dlas.graph.padding import fold_padding

    opset = model.ir.graph.opset_imports.get("", 0)
    if opset < 13:
        raise UnsupportedError(
            f"{model.name} uses ONNX opset {opset}; int8 needs 13 or newer", "convert it to opset 18 first"
        )
    for node in model.ir.graph:
        weights = node.op_type == "DequantizeLinear" and constant(input_at(node, 0)) is not None
        if node.op_type in _QUANTIZED and not weights:
            raise UnsupportedError(
                f"{model.name} is already quantised (node {node.name!r} is a {node.op_type})",
                "start from the float network",
            )
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


def _require_layers(model: Model, scheme: Scheme) -> None:
    if not scheme.nodes:
        reasons = "; ".join(f"{name} ({op}): {why}" for name, op, why in scheme.left[:5])
        raise UnsupportedError(
            f"{model.name} has no layer that int8 can quantise" + (f": {reasons}" if reasons else ""),
            "int8 starts at Conv, ConvTranspose, Gemm and MatMul",
        )


def _weighted(scheme: Scheme) -> list[ir.Node]:
    return [
        n
        for n in scheme.nodes
        if RULES[n.op_type].kind == "weighted" and constant(input_at(n, 1)) is not None
    ]


def _biased(scheme: Scheme) -> list[ir.Node]:
    return [n for n in _weighted(scheme) if n.op_type in CORRECTED]


def _weight_change(node: ir.Node, options: Options) -> tuple[Change, int, int]:
    """One line of the plan, bytes before and bytes after (scales and zero points included)."""
    weight, bias = constant(input_at(node, 1)), constant(input_at(node, 2))
    assert weight is not None
    per_channel = options.per_channel
    channels = weight.shape[weight_axis(node)] if per_channel else 1
    before = weight.size * 4 + (0 if bias is None else bias.size * 4)
    after = weight.size + channels * 5 + (0 if bias is None else bias.size * 4 + channels * 8)
    if bias is None and options.bias_correction and node.op_type in CORRECTED:
        after += outputs(node, weight) * 4 + channels * 8
    shape = "x".join(map(str, weight.shape))
    scales = f"{channels} scales on axis {weight_axis(node)}" if per_channel else "one scale"
    change = Change(
        str(node.name or node.outputs[0].name),
        f"{node.op_type} {shape}: weights 8 bits, {scales}",
        f"{before} bytes",
        f"{after} bytes",
    )
    return change, before, after


def _notes(scheme: Scheme) -> tuple[str, ...]:
    """Which nodes stay float and why, one line per operator and reason."""
    grouped: dict[tuple[str, str], list[str]] = {}
    for name, op, why in scheme.left:
        grouped.setdefault((op, why), []).append(name)
    return tuple(f"{op} stays float: {why} ({_listed(names)})" for (op, why), names in grouped.items())


def _listed(names: Sequence[str]) -> str:
    return ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
