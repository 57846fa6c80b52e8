"""ExecuTorch: the graph rebuilt as a PyTorch module, exported, and lowered to XNNPACK where XNNPACK can.

What XNNPACK does not take runs on ExecuTorch's portable kernels, which are right but slow. The size of the thread pool
belongs to the process and is set whenever an artifact is loaded.
"""

from __future__ import annotations

import logging
import warnings
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.files import write_atomic
from dlas.core.lazy import optional_import
from dlas.core.options import option
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
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

_FILE = "program.pte"
# torch.export and the lowering say in all these ways that they cannot.
_FAILURES = (
    NotImplementedError, ValueError, TypeError, KeyError, AttributeError, IndexError, AssertionError, RuntimeError,
)  # fmt: skip


@dataclass(frozen=True)
class ExecuTorchOptions:
    """Options of ExecuTorch."""

    delegate: str = option(
        "xnnpack", "XNNPACK where it can, or the portable kernels alone", choices=("xnnpack", "portable")
    )


@backends.register("executorch")
class ExecuTorch(Backend):
    """Exports the module with ``torch.export`` and writes an ExecuTorch program."""

    name = "executorch"
    summary = "ExecuTorch: an exported PyTorch program on XNNPACK or portable kernels"
    Options = ExecuTorchOptions
    requires: ClassVar[Mapping[str, str]] = {"executorch": "executorch", "torch": "all"}
    distribution = "executorch"
    options: ExecuTorchOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains and unbound dimensions are refused; the export names the rest at build."""
        return target.unusable() or foreign_operators(model) or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Export to ``program.pte``, weights inside.

        Raises:
            UnsupportedError: An operator has no translation to PyTorch or to ExecuTorch.
        """
        optional_import("executorch", extra="executorch", needed_for="the back end executorch")
        import torch

        from dlas.graph.torch_module import to_torch

        signature = Signature.of(model, batch)
        module = to_torch(bind_batch(model, batch)).eval()
        example = tuple(torch.from_numpy(a) for a in signature.random_inputs().values())
        with _quiet():
            try:
                code = _lowered(torch.export.export(module, example), self.options.delegate)
            except _FAILURES as error:
                raise refused("ExecuTorch", error) from error
        write_atomic(folder / _FILE, code)
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> ExecuTorchExecutable:
        """Load the program.

        Raises:
            ModelError: The artifact is damaged.
        """
        path = artifact_file(folder, _FILE)
        return ExecuTorchExecutable(Signature.read(folder), path, threads)


class ExecuTorchExecutable(SignedExecutable):
    """One method of one program."""

    def __init__(self, signature: Signature, path: Path, threads: int) -> None:
        super().__init__(signature)
        with _quiet():
            engine = optional_import(
                "executorch.extension.pybindings.portable_lib",
                extra="executorch",
                needed_for="the back end executorch",
            )
        engine._unsafe_reset_threadpool(threads)
        try:
            self._program: Any = engine._load_program(
                str(path), program_verification=engine.Verification.InternalConsistency
            )
            self._method: Any = self._program.load_method("forward")
        except (RuntimeError, ValueError) as error:
            raise damaged(path, error) from error

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The method on tensors made beforehand."""
        self._check(inputs)
        return partial(self._method, self._tensors(inputs))

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Not available: the wheel is built without event tracing; always raises UnsupportedError."""
        raise UnsupportedError(
            "ExecuTorch's wheel cannot tell the time of one layer", "profile with onnxruntime or openvino"
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        return [np.array(t.numpy(), order="C") for t in self._method(self._tensors(inputs))]

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        import torch

        return [torch.from_numpy(np.array(inputs[p.name], order="C")) for p in self.signature.inputs]

    def _free(self) -> None:
        self._method = self._program = None


def _lowered(program: Any, delegate: str) -> bytes:
    """The exported program as a file ExecuTorch reads."""
    wanted = "the back end executorch"
    exir = optional_import("executorch.exir", extra="executorch", needed_for=wanted)
    partitioners: list[Any] = []
    if delegate == "xnnpack":
        place = "executorch.backends.xnnpack.partition.xnnpack_partitioner"
        partitioners = [optional_import(place, extra="executorch", needed_for=wanted).XnnpackPartitioner()]
    return exir.to_edge_transform_and_lower(program, partitioner=partitioners).to_executorch().buffer


@contextmanager
def _quiet() -> Iterator[None]:
    """Its import and export warn about interfaces of their own that a user of dlas never meets."""
    before = logging.root.manager.disable
    logging.disable(logging.WARNING)
    try:
        with warnings.catch_warnings():
            warnings.simplefilter("ignore")
            yield
    finally:
        logging.disable(before)
