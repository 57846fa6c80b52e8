"""Ternary weights by stochastic training, and networks that small changes of their input do not fool.

The method trains: first in float, then with every weight drawn as -1, 0 or 1 times a scale per channel with chances
that depend on its latent value (``stochastic_ternary`` of QKeras), last with the nearest codes, which is what is
deployed. With ``jacobian`` the loss also holds down how much the scores move with the input (Hoffman et al. 2019), and
with ``jacobian_layers`` with the input of every layer, which together make deeply quantised networks robust against
adversarial input. Training costs about twice as much with it. Start from a trained network or from random weights; not
for networks whose rows have no labels.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass, replace
from typing import TYPE_CHECKING, Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._ternary.layers import FORMS, Layer, Norm, choose_layers, rectified, take_norms
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions

if TYPE_CHECKING:
    from dlas.compress.training import Schedule


@dataclass(frozen=True)
class Options:
    """Options of ``ternary-stq``."""

    jacobian: float = option(
        0.0, "weight of the Jacobian of the scores by the input; 0.01 to 0.3 are usual", low=0.0
    )
    jacobian_layers: float = option(0.0, "weight of the Jacobians by the input of every other layer", low=0.0)
    ramp_epochs: float = option(10.0, "epochs over which both weights rise from 0 after the warm-up", low=0.0)
    warmup: float = option(0.2, "share of the epochs that is trained in float first", low=0.0, high=1.0)
    settle: float = option(
        0.2, "share of the epochs that is trained with the nearest codes at the end", low=0.0, high=1.0
    )
    ends: Literal["ternary", "int8", "float32"] = option(
        "int8", "weights of the first and the last layer", choices=FORMS
    )
    depthwise: Literal["ternary", "int8", "float32"] = option(
        "int8", "weights of depthwise convolutions", choices=FORMS
    )
    keep_float: str = option("", "patterns of names of layers whose weights stay float, separated by |")
    activation_bits: int = option(0, "bits of what ReLUs hand on, 2 to 8; 0 leaves them float", low=0, high=8)
    epochs: int = option(15, "passes over the training rows", low=1)
    lr: float = option(0.05, "peak learning rate", low=0.0)
    batch_size: int = option(128, "rows per step", low=2)
    weight_decay: float = option(5e-4, "L2 penalty on weights", low=0.0)
    augment: Literal["none", "flip", "shift", "flip-shift"] = option(
        "none", "changes of images while training", choices=("none", "flip", "shift", "flip-shift")
    )
    threads: int = option(2, "threads; the result is repeatable for one number of them", low=1)
    seed: int = option(0, "seed of order, augmentation, codes and directions", low=0)


@methods.register("ternary-stq")
class TernaryStq(Method):
    """Train a network with weights of -1, 0 and 1 times a scale per channel."""

    name = "ternary-stq"
    summary = "Ternary weights by stochastic training, with Jacobian regularisation for robustness"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """What each weight becomes, and its bytes with codes packed; needs no rows."""
        work, layers, _, left = self._prepared(model)
        changes = tuple(
            Change(
                x.name,
                f"{x.op} {'x'.join(map(str, x.shape))}: weights {x.form}"
                + ("" if x.form == "float32" else f", {x.channels} scales on axis {x.axis}"),
                f"{4 * (x.size + x.bias)} bytes",
                f"{x.packed_bytes + x.bias_bytes} bytes packed",
            )
            for x in layers
        )
        own = {x.weight: x for x in layers}.values()
        before = sum(v.const_value.nbytes for v in work.ir.graph.initializers.values() if v.const_value)
        saved = sum(4 * x.size - x.packed_bytes for x in own) + sum(4 * x.bias - x.bias_bytes for x in layers)
        bits = 8 * sum(x.packed_bytes for x in own) / sum(x.size for x in own)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(
                before - saved, "bytes", Source.ESTIMATED, note="codes packed, with scales and biases"
            ),
            "bits_per_weight": Figure(bits, "bits", Source.ESTIMATED, note="with scales"),
        }
        return Plan(self.spelled(), changes, expected, self._notes(left))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The trained network, its weights as int8 codes behind DequantizeLinear; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: Quantised already, or without a layer that can become ternary.
            UnknownNameError: A pattern of ``keep_float`` fits no layer.
            DataError: No rows, no labels, too few of them, or labels that the network has no output for.
            ModelError: Weights that are not finite.
            DlasError: The loss became NaN or infinite.
        """
        from dlas.compress.quantize._ternary.training import Training

        rows = _checked(model, data)
        work, layers, norms, left = self._prepared(model)
        training = Training(work, layers, norms, self.options, rows)
        losses = training.run(self._schedule(), progress)
        graph, packed = training.written()
        weights = sum(x.size for x in {x.weight: x for x in layers}.values())
        zeros, codes = training.zeros
        step = Step(
            self.name,
            {**options_dict(self.options), "data": rows.hash, "rows": len(rows)},
            step_versions("torch", "numpy", "onnx-ir"),
            (
                f"{packed} bytes with codes packed in 2 or 8 bits, scales and biases included; "
                f"{8 * (packed - sum(x.bias_bytes for x in layers)) / weights:.3f} bits per weight with its scale",
                f"the file holds one byte per code; {zeros} of {codes} ternary weights are 0",
                f"mean loss of the epochs: {', '.join(f'{v:.4g}' for v in losses)}",
                f"trained on {len(rows)} rows of {rows.name} ({rows.hash[:16]})",
                *self._notes(left),
            ),
        )
        return model.with_step(graph, step)

    def _prepared(self, model: Model) -> tuple[Model, list[Layer], dict[str, Norm], list[str]]:
        """The network without its normalisations, its layers, these normalisations, and what has other weights."""
        o = self.options
        if 0 < o.activation_bits < 2:
            raise OptionError("ternary-stq: activation_bits", o.activation_bits, "0, or 2 to 8")
        if o.warmup + o.settle > 1:
            raise OptionError("ternary-stq: warmup + settle", o.warmup + o.settle, "at most 1")
        graph, norms = _float_graph(model)
        layers, left = choose_layers(
            graph.graph, ends=o.ends, depthwise=o.depthwise, keep_float=o.keep_float, normalise=True
        )
        if o.activation_bits and not rectified(graph.graph):
            raise UnsupportedError(
                f"{model.name} has no ReLU whose values could be held without a sign", "use activation_bits=0"
            )
        return replace(model, ir=graph, torch_module=None), layers, norms, left

    def _schedule(self) -> Schedule:
        from dlas.compress.training import Schedule

        o = self.options
        # bfloat16 has too few digits to be differentiated twice.
        precision = "float32" if o.jacobian or o.jacobian_layers else "auto"
        return Schedule(
            o.epochs, o.lr, o.batch_size, o.seed, weight_decay=o.weight_decay, augment=o.augment,
            threads=o.threads, precision=precision,
        )  # fmt: skip

    def _notes(self, left: Sequence[str]) -> tuple[str, ...]:
        return (f"other weights stay as they are: {', '.join(left)}",) if left else ()


def _float_graph(model: Model) -> tuple[ir.Model, dict[str, Norm]]:
    """An editable copy with padding folded, and the batch norms that were behind its layers."""
    from dlas.graph.padding import fold_padding
    from dlas.graph.passes import simplify, tidy

    for node in model.ir.graph:
        if "Quantize" in node.op_type or node.op_type.startswith("QLinear"):
            raise UnsupportedError(
                f"{model.name} is quantised already (node {node.name!r} is a {node.op_type})",
                "start from the float network",
            )
    opset = model.ir.graph.opset_imports.get("", 0)
    if opset < 13:
        raise UnsupportedError(
            f"{model.name} uses ONNX opset {opset}; ternary-stq needs 13 or newer",
            "convert it to opset 18 first",
        )
    graph = model.editable()
    tidy(graph)
    norms = take_norms(graph.graph)
    simplify(graph)
    fold_padding(graph)
    return graph, norms


def _checked(model: Model, data: Dataset | None) -> Dataset:
    """The training rows; raises DataError unless the network can learn from them."""
    if data is None:
        raise DataError("ternary-stq trains, and no rows were given", "pass a data set (`--data D`)")
    if data.labels is None:
        raise DataError(f"{data.name} has no labels to train on", "use a data set with labels")
    classes = model.outputs[0].shape[-1] if model.outputs[0].shape else 0
    if isinstance(classes, int) and not 0 <= int(data.labels.min()) <= int(data.labels.max()) < classes:
        raise DataError(
            f"labels of {data.name} go from {data.labels.min()} to {data.labels.max()}, "
            f"the network has {classes} outputs",
            "the data set does not belong to this network",
        )
    least = max(2, len(np.unique(data.labels)))
    if len(data) < 2 * least:
        raise DataError(
            f"{data.name} has {len(data)} rows for {least} classes, too few to train on",
            f"give {2 * least} or more",
        )
    return data
