"""What ``int4``, ``po2``, ``apot`` and ``msq`` share: weights on a few levels, repaired afterwards or trained for it.

The first convolution and the last layer keep 8 bits, as everybody does who publishes such networks. Weights come out
as int8 behind a DequantizeLinear, which every runtime, the TFLite writer and the 8-bit methods read.
"""

from __future__ import annotations

import glob
from abc import abstractmethod
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar, Literal

import numpy as np
import onnx_ir as ir
from onnx_ir.passes.common import RemoveUnusedNodesPass

from dlas.compress.method import Change, Method, Plan, Progress
from dlas.compress.qdq import Grid as QdqGrid
from dlas.compress.qdq import QdqWriter
from dlas.compress.quantize._few_bits.layers import EIGHT_BITS, FLOAT_END, Layer, editable, layers_of
from dlas.core.errors import DataError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.kernels.formats.grid import Grid

if TYPE_CHECKING:
    from torch import nn


@dataclass(frozen=True)
class LevelOptions:
    """Options that all of them have."""

    per_channel: bool = option(True, "one scale per output channel instead of one per layer")
    alpha: Literal["max", "mse"] = option(
        "max",
        "scale: the largest weight, or the least squared error (which costs accuracy)",
        choices=("max", "mse"),
    )
    ends: Literal["int8", "same", "float"] = option(
        "int8", "the first convolution and the last layer", choices=("int8", "same", "float")
    )
    depthwise: Literal["same", "int8"] = option("same", "depthwise convolutions", choices=("same", "int8"))
    repair: Literal["none", "stats", "bias"] = option(
        "stats",
        "fit mean and variance (bias: the mean alone) of each layer's output to the float network's; "
        "not after training, which has done so",
        choices=("none", "stats", "bias"),
    )
    rows: int = option(1000, "training rows that repair uses", low=1)
    activations: Literal["float", "int8"] = option(
        "float", "int8 quantises them as the method int8 does, on the same rows", choices=("float", "int8")
    )
    codes: Literal["levels", "int8"] = option(
        "levels",
        "what the int8 tensors hold: the levels as integers, exact, or 127 times the level, rounded, as in published "
        "files (always so where a level exceeds 127)",
        choices=("levels", "int8"),
    )
    keep_float: str = option("", "patterns of node names to leave float, separated by |")
    epochs: int = option(0, "epochs of quantisation-aware training", low=0)
    train_rows: int = option(0, "training rows per epoch; 0 uses all", low=0)
    lr: float = option(0.02, "learning rate of the training", low=0.0)
    batch_size: int = option(128, "batch size of the training", low=1)
    seed: int = option(0, "seed of the training", low=0)


class LevelMethod(Method):
    """A method that puts weights on the levels of one grid.

    Class attributes:
        weight_decay: Of the training.
    """

    Options = LevelOptions
    needs_data = True
    weight_decay: ClassVar[float] = 5e-4
    options: Any  # LevelOptions, or what a member adds to them

    @property
    @abstractmethod
    def grid(self) -> Grid:
        """The levels of the inner layers."""

    def fake(self, layer: Layer) -> nn.Module:
        """What stands in for the rounding of one layer's weights while they are trained; see ``fake.py``."""
        from dlas.compress.quantize._few_bits.fake import StraightThrough

        return StraightThrough(layer.magnitudes(), layer.grid.boundaries, layer.axis)

    @property
    def wants_data(self) -> bool:
        """Whether ``apply`` needs training rows with these options."""
        return self.options.repair != "none" or self.options.epochs > 0 or self.options.activations == "int8"

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Layers with their levels and bytes; needs no rows."""
        graph = editable(model)
        layers, left = layers_of(model, graph, self.grid, self.options)
        changes = tuple(
            Change(
                layer.name,
                f"{layer.node.op_type} {'x'.join(map(str, layer.weight.shape))}: {layer.what()}",
                f"{4 * layer.weight.size} bytes",
                f"{layer.packed_bytes} bytes packed",
            )
            for layer in layers
        )
        size = sum(layer.weight.size for layer in layers)
        packed = sum(layer.packed_bytes for layer in layers)
        expected = {
            "weight_bytes_before": Figure(4 * size, "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(sum(layer.stored_bytes for layer in layers), "bytes", Source.ESTIMATED),
            "packed_weight_bytes": Figure(packed, "bytes", Source.ESTIMATED, note="codes and scales"),
            "bits_per_weight": Figure(
                8 * packed / size, "bits", Source.ESTIMATED, note="packed, with scales"
            ),
        }
        return Plan(self.spelled(), changes, expected, tuple(map(str, left)))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with its weights on the levels; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: Already quantised, or without a layer for the levels; says why.
            DataError: The options ask for rows and none were given, or they do not fit.
            ModelError: Weights that are not finite.
        """
        if self.wants_data and (data is None or len(data) == 0):
            raise DataError(
                f"{self.spelled()} needs training rows and none were given",
                "pass a data set (`--data D`), or choose repair=none and float activations",
            )
        tell = progress or (lambda fraction, text: None)
        notes: list[str] = []
        graph = editable(model)
        layers, left = layers_of(model, graph, self.grid, self.options)
        if self.options.epochs and data is not None:
            graph, layers = self._trained(model, graph, layers, data, notes, tell)
        for layer in layers:
            layer.quantize(self.options.alpha)
        if self.options.repair != "none" and not self.options.epochs:
            from dlas.compress.quantize._few_bits.repair import repair

            notes += repair(
                model, graph, layers, data, self.options.rows, how=self.options.repair,
                progress=lambda fraction: tell(0.9 * fraction, "repairing statistics"),
            )  # fmt: skip
        _write(graph, layers)
        step = Step(
            self.name,
            {**options_dict(self.options), "data": data.hash if data is not None and self.wants_data else ""},
            step_versions("numpy", "onnx-ir", *(["torch"] if self.wants_data else [])),
            (_size_note(layers), *notes, *map(str, left)),
        )
        done = model.with_step(graph, step)
        if self.options.activations == "int8":
            from dlas.compress.quantize.int8 import Int8

            ends = [glob.escape(name) for name, reason in left if reason == FLOAT_END]
            floats = "|".join(filter(None, [self.options.keep_float, *ends]))
            member: Any = Int8(rows=self.options.rows, keep_float=floats)
            exact = any(layer.exact for layer in layers if layer.grid is not EIGHT_BITS)
            done = member.on_levels(done, data, None, self.grid if exact else None)
        tell(1.0, "quantised")
        return done

    def _trained(
        self,
        model: Model,
        graph: ir.Model,
        layers: list[Layer],
        data: Dataset,
        notes: list[str],
        tell: Progress,
    ) -> tuple[ir.Model, list[Layer]]:
        """The graph with trained weights, and its layers with the scales that were learned."""
        from dlas.compress.training import fine_tune

        options = self.options
        fakes: dict[str, Any] = {str(layer.value.name): self.fake(layer) for layer in layers}

        def put(module: Any) -> None:
            for name, fake in fakes.items():
                module.on_weight(name, fake)

        count = min(options.train_rows, len(data)) if options.train_rows else len(data)
        trained = fine_tune(
            Model(graph, model.name, preprocessing=model.preprocessing),
            data.take(np.arange(count) * len(data) // count),
            epochs=options.epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            seed=options.seed,
            weight_decay=self.weight_decay,
            prepared=put,
            progress=lambda fraction, text: tell(0.9 * fraction, text),
        )
        notes.append(f"trained on {count} rows; {trained.history[-1].notes[0]}")
        graph = trained.editable()
        layers, _ = layers_of(model, graph, self.grid, options)
        for layer in layers:
            layer.learned(*fakes[str(layer.value.name)].learned(layer.weight))
        return graph, layers


def _write(graph: ir.Model, layers: list[Layer]) -> None:
    """Replace the weights by int8 behind a DequantizeLinear, in place."""
    writer = QdqWriter(graph.graph)
    for layer in layers:
        axis = layer.axis if layer.unit.ndim else None
        grid = QdqGrid(layer.unit, np.zeros(layer.unit.shape, np.int8), axis)
        node = writer.dequantized_constant(layer.stored, grid, str(layer.value.name))
        graph.graph.insert_before(layer.uses[0], node)
        for use in layer.uses:
            use.replace_input_with(1, node.outputs[0])
    graph.graph.sort()
    RemoveUnusedNodesPass()(graph)


def _size_note(layers: list[Layer]) -> str:
    inner = [layer for layer in layers if layer.grid is not EIGHT_BITS]
    size = sum(layer.weight.size for layer in layers)
    packed = sum(layer.packed_bytes for layer in layers)
    stored = sum(layer.stored_bytes for layer in layers)
    return (
        f"{len(inner)} of {len(layers)} layers on {len(inner[0].grid.levels)} levels; "
        f"{8 * packed / size:.3f} bits per weight packed, scales included ({packed} bytes; {stored} as stored here)"
    )
