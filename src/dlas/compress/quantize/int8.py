"""Static 8-bit post-training quantisation: int8 weights, activations and arithmetic, int32 biases.

The network comes out in QDQ form, which onnxruntime fuses into integer kernels and which translates one to one into
TFLite's 8-bit scheme (Jacob et al. 2018, "Quantization and Training of Neural Networks for Efficient
Integer-Arithmetic-Only Inference"; TFLite 8-bit quantization specification). Not for networks that lose much to 8-bit
activations, such as those with layer normalisation: keep such layers float with ``keep_float``.

Bias correction is on because it keeps the network closer to its float self and costs one more pass. Calibrated on 300
rows, judged on others, labels equal to those of the float network without and with it: MobileNet v1 0.25 73.8 and
90.8 % (500 rows of ImageNet; top-1 41.2 and 42.2 %, float 42.6 %), ResNet-8 96.4 and 96.6 % (8,000 of CIFAR-10; top-1
75.05 and 75.28 %, float 75.01 %), ResNet-20 98.6 and 98.7 % (same; 81.0 and 81.2 %, float 80.9 %), digits-cnn 100 %
both, the keyword spotter DS-CNN 99.75 % both (800 recordings of digits).
"""

from __future__ import annotations

import dataclasses
from dataclasses import dataclass
from typing import Literal

import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.calibration import CALIBRATIONS, calibration_batches
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._int8.bias import CORRECTED, add_to_bias, outputs
from dlas.compress.quantize._int8.guard import guard_float_layers
from dlas.compress.quantize._int8.quantise import (
    bias_shifts,
    corrected,
    grids_of,
    measure_ranges,
    notes_on,
    prepare,
    require_layers,
)
from dlas.compress.quantize._int8.rewrite import Rewriter, weighted
from dlas.compress.quantize._int8.scheme import (
    choose,
    constant,
    input_at,
    weight_axis,
)
from dlas.compress.unsigned import unsigned_activations
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.kernels.formats.grid import Grid as Levels


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
    activations: Literal["uint8", "int8"] = option(
        "uint8",
        "how codes inside an ONNX file are stored: the same numbers, uint8 is faster in ONNX Runtime on x86; "
        "TFLite files hold int8 either way",
        choices=("uint8", "int8"),
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
        graph = prepare(model)
        scheme = choose(graph.graph, self.options.keep_float)
        require_layers(model, scheme)
        changes = [_weight_change(n, self.options) for n in weighted(scheme)]
        before = sum(v.const_value.nbytes for v in graph.graph.initializers.values() if v.const_value)
        saved = sum(was - now for _, was, now in changes)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(before - saved, "bytes", Source.ESTIMATED),
        }
        return Plan(self.spelled(), tuple(c for c, _, _ in changes), expected, notes_on(scheme))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network in QDQ form; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: Already quantised, not float32, or without a layer that can become integer.
            DataError: No rows, rows of another shape, or activations that are not finite.
            ModelError: Weights that are not finite.
        """
        return self.on_levels(model, data, progress, None)

    def on_levels(
        self, model: Model, data: Dataset | None, progress: Progress | None, levels: Levels | None
    ) -> Model:
        """As :meth:`apply`; layers whose weights are all on ``levels`` hold the integers of these, not 127ths."""
        graph = prepare(model)
        scheme = choose(graph.graph, self.options.keep_float)
        require_layers(model, scheme)
        batches, rows = calibration_batches(model, data, self.options.rows)
        options = self.options
        share = 0.6 if options.bias_correction else 0.9
        ranges = measure_ranges(
            graph,
            model.inputs[0],
            scheme,
            batches,
            rows=rows,
            method=options.calibration,
            percentile=options.percentile,
            progress=None if progress is None else lambda f: progress(share * f, "calibrating"),
        )
        grids = grids_of(scheme, ranges)
        if options.bias_correction:
            shifts = bias_shifts(
                graph,
                model.inputs[0],
                grids,
                batches,
                keep_float=options.keep_float,
                per_channel=options.per_channel,
                levels=levels,
                rows=rows,
                progress=None if progress is None else lambda f: progress(0.6 + 0.3 * f, "correcting biases"),
            )
            add_to_bias(graph.graph, corrected(scheme), shifts)
        rewriter = Rewriter(
            graph.graph, scheme, grids, per_channel=options.per_channel, io=options.io, levels=levels
        )
        notes = rewriter.run()
        guard_float_layers(graph.graph)
        RemoveUnusedNodesPass()(graph)
        if options.activations == "uint8":
            unsigned_activations(graph)
        if progress is not None:
            progress(1.0, "quantised")
        step = Step(
            self.name,
            options_dict(self.options),
            step_versions("numpy", "onnx-ir", "onnxruntime"),
            (*notes_on(scheme), *notes, _used(data, self.options.rows)),
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


def _used(data: Dataset | None, rows: int) -> str:
    return (
        "" if data is None else f"calibrated on {min(rows, len(data))} rows of {data.name} ({data.hash[:16]})"
    )


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
