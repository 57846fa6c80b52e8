"""LiteRT (TensorFlow Lite): the network as a ``.tflite`` file, interpreted with XNNPACK or the built-in kernels.

TFLite images are channels-last, so the exporter may give the file another axis order than the Model. ``run`` takes and
gives the Model's order; in timed runs the inputs are turned round beforehand, since a TFLite application would hold
them in the file's order anyway.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.lazy import optional_import
from dlas.core.options import option
from dlas.graph.format import save_model
from dlas.graph.model import Model
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    Signature,
    SignedExecutable,
    artifact_file,
    damaged,
    foreign_operators,
    refused,
    unbound_dimensions,
)
from dlas.runtime.backend import Backend, LayerTiming, backends

_FILE = "model.tflite"
RESOLVERS = {
    "xnnpack": "AUTO",
    "builtin": "BUILTIN_WITHOUT_DEFAULT_DELEGATES",
    "reference": "BUILTIN_REF",
}
"""Sets of kernels and what LiteRT calls them."""


@dataclass(frozen=True)
class LiteRtOptions:
    """Options of LiteRT."""

    kernels: str = option(
        "xnnpack",
        "XNNPACK delegate, the optimised built-in kernels, or the reference kernels",
        choices=tuple(RESOLVERS),
    )


@backends.register("litert")
class LiteRt(Backend):
    """Writes TFLite with the package's own exporter and interprets it."""

    name = "litert"
    summary = "LiteRT interpreter: XNNPACK, built-in or reference kernels"
    Options = LiteRtOptions
    requires: ClassVar[Mapping[str, str]] = {"ai_edge_litert": "tflite"}
    distribution = "ai-edge-litert"
    options: LiteRtOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains and unbound dimensions are refused; the exporter names the rest at build."""
        return target.unusable() or foreign_operators(model) or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Export to ``model.tflite``.

        Raises:
            UnsupportedError: An operator has no TFLite form.
        """
        signature = Signature.of(model, batch)
        written = save_model(model, folder / _FILE, batch=batch)
        Signature(batch, signature.inputs, signature.outputs, written.notes).write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> LiteRtExecutable:
        """Create an interpreter.

        Raises:
            UnsupportedError: The chosen kernels cannot run an operator of the file.
            ModelError: The artifact is damaged.
        """
        path = artifact_file(folder, _FILE)
        return LiteRtExecutable(Signature.read(folder), path, self.options.kernels, threads)


class LiteRtExecutable(SignedExecutable):
    """One interpreter with its tensors allocated."""

    def __init__(self, signature: Signature, path: Path, kernels: str, threads: int) -> None:
        super().__init__(signature)
        self._interpreter: Any = _interpreter(path, kernels, threads)
        self._inputs = [d["index"] for d in self._interpreter.get_input_details()]
        self._outputs = [d["index"] for d in self._interpreter.get_output_details()]
        axes = _axes(path)
        self._into = [axes["inputs"].get(p.name) for p in signature.inputs]
        self._back = [_inverse(axes["outputs"].get(p.name)) for p in signature.outputs]

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """``interpreter.invoke`` on inputs already in place; TFLite never overwrites them."""
        self._check(inputs)
        self._place(inputs)
        return self._interpreter.invoke

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Not available: the Python interpreter has no clock inside a run; always raises UnsupportedError."""
        raise UnsupportedError(
            "LiteRT's Python interpreter cannot tell the time of one layer",
            "profile with onnxruntime or openvino",
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        self._place(inputs)
        self._interpreter.invoke()
        found = [self._interpreter.get_tensor(i) for i in self._outputs]  # get_tensor copies
        return [
            a if axes is None else np.ascontiguousarray(a.transpose(axes))
            for a, axes in zip(found, self._back, strict=True)
        ]

    def _place(self, inputs: Mapping[str, np.ndarray]) -> None:
        for port, index, axes in zip(self.signature.inputs, self._inputs, self._into, strict=True):
            array = inputs[port.name]
            self._interpreter.set_tensor(index, array if axes is None else array.transpose(axes))

    def _free(self) -> None:
        self._interpreter = None


def _interpreter(path: Path, kernels: str, threads: int) -> Any:
    litert = optional_import("ai_edge_litert.interpreter", extra="tflite", needed_for="the back end litert")
    resolver = getattr(litert.OpResolverType, RESOLVERS[kernels])
    try:
        interpreter = litert.Interpreter(
            model_path=str(path), num_threads=threads, experimental_op_resolver_type=resolver
        )
    except ValueError as error:
        raise damaged(path, error) from error
    try:
        interpreter.allocate_tensors()
    except (RuntimeError, ValueError) as error:
        raise refused("LiteRT", error) from error
    return interpreter


def _axes(path: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    from dlas.graph.formats.tflite import read_layouts

    return read_layouts(path)


def _inverse(axes: Sequence[int] | None) -> tuple[int, ...] | None:
    return None if axes is None else tuple(int(i) for i in np.argsort(axes))
