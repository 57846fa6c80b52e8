"""dlas's own engine: any layer by any of its kernels, or by another back end."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import ClassVar

from dlas.core.options import option
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.hardware.accelerated import AcceleratedTarget
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    ONNX_FILE,
    Signature,
    artifact_file,
    foreign_operators,
    unbound_dimensions,
    write_onnx,
)
from dlas.runtime.backend import Backend, Executable, backends

POLICIES = ("portfolio", "measure", "rules", "fixed")


@dataclass(frozen=True)
class EngineOptions:
    """Options of the engine."""

    policy: str = option(
        "portfolio",
        "how kernels are chosen: whole networks timed, kernels timed, by rule, or by rule with impl only",
        choices=POLICIES,
    )
    impl: str = option("", "kernels to use, such as Conv=gspc+node:/fc=onnxruntime")
    without: str = option("", "passes to leave out, such as fuse-residual+fuse-activation")
    exact: bool = option(False, "leave out kernels whose results differ by more than rounding (winograd)")
    rounding: str = option(
        "auto",
        "how 8-bit results are rounded: as LiteRT runs TFLite files, as its reference kernels, or as ONNX says",
        choices=("auto", "xnnpack", "double", "single", "onnx"),
    )
    plan: str = option("", "plan file to follow")
    plugin: str = option("", "shared objects with layers of your own, joined by +; loading one runs its code")


@backends.register("engine")
class Engine(Backend):
    """Own native kernels in one static plan; other back ends where they are better."""

    name = "engine"
    summary = "dlas's own kernels, chosen per layer, and other back ends where they are faster"
    Options = EngineOptions
    requires: ClassVar[Mapping[str, str]] = {}
    distribution = "dlas"
    isa_aware = True
    accelerates = True
    options: EngineOptions

    @classmethod
    def missing(cls) -> str:
        """The native kernels need a compiler when dlas is installed."""
        from dlas.kernels.extension import missing_native

        return missing_native()

    def supports(self, model: Model, target: Target) -> str:
        """Operators of unknown domains and unbound dimensions are refused."""
        if target.accelerator is not None and self.options != EngineOptions():
            return (
                "beside an accelerator the processor's kernels are fixed: leave out the options of the engine"
            )
        return target.unusable() or foreign_operators(model, "com.microsoft") or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Write ``model.onnx``; kernels are chosen when the number of threads is known, and remembered.

        Raises:
            UnsupportedError: An operator that neither a kernel nor another back end computes.
        """
        from dlas.runtime.engine.lower import lower

        lower(model, batch=batch)  # refuses what cannot be lowered while the caller still knows the network
        signature = Signature.of(model, batch)
        write_onnx(model, folder)
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> Executable:
        """Choose the kernels and put the program together."""
        from dlas.runtime.engine.engine import make

        signature = Signature.read(folder)
        model = load_model(artifact_file(folder, ONNX_FILE), allow_nan=True)
        if isinstance(target, AcceleratedTarget):
            from dlas.runtime.accelerated import AcceleratedExecutable

            return AcceleratedExecutable(model, target, batch=signature.batch, threads=threads)
        return make(model, signature, self.options, target.isa, threads)
