"""PyTorch on the CPU: the graph rebuilt as a module and run eagerly, channels-last, or through torch.compile."""

from __future__ import annotations

import copy
import shutil
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from functools import partial
from pathlib import Path
from statistics import median
from time import perf_counter
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.options import option
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.hardware.target import Target
from dlas.runtime.artifact import (
    ONNX_FILE,
    Signature,
    SignedExecutable,
    artifact_file,
    foreign_operators,
    refused,
    unbound_dimensions,
    write_onnx,
)
from dlas.runtime.backend import Backend, LayerTiming, backends


@dataclass(frozen=True)
class TorchOptions:
    """Options of PyTorch."""

    mode: str = option(
        "eager",
        "how the module is run; compile needs a C++ compiler",
        choices=("eager", "channels_last", "compile"),
    )


@backends.register("torch")
class Torch(Backend):
    """Rebuilds the graph as a ``torch.nn.Module`` in inference mode."""

    name = "torch"
    summary = "PyTorch, CPU: eager, channels-last or torch.compile"
    Options = TorchOptions
    requires: ClassVar[Mapping[str, str]] = {"torch": "all"}
    distribution = "torch"
    options: TorchOptions

    def supports(self, model: Model, target: Target) -> str:
        """Unknown operator domains, unbound dimensions, and a missing compiler are refused."""
        if self.options.mode == "compile" and not (shutil.which("g++") or shutil.which("clang++")):
            return "mode=compile needs a C++ compiler (g++ or clang++)"
        return target.unusable() or foreign_operators(model) or unbound_dimensions(model)

    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Write ``model.onnx`` with its batch bound; the module is made at load.

        Raises:
            UnsupportedError: An operator has no translation to PyTorch.
        """
        from dlas.graph.torch_module import to_torch

        signature = Signature.of(model, batch)
        bound = bind_batch(model, batch)
        to_torch(bound)  # refuses what cannot be translated while the caller still knows the network
        write_onnx(bound, folder)
        signature.write(folder)

    def load(self, folder: Path, target: Target, *, threads: int = 1) -> TorchExecutable:
        """Make the module.

        Raises:
            UnsupportedError: An operator has no translation to PyTorch, or torch.compile fails.
        """
        from dlas.graph.torch_module import to_torch

        signature = Signature.read(folder)
        model = load_model(artifact_file(folder, ONNX_FILE), allow_nan=True)
        nodes = [
            (str(n.name or n.outputs[0].name), n.op_type) for n in model.ir.graph if n.op_type != "Constant"
        ]
        return TorchExecutable(signature, to_torch(model), nodes, self.options.mode, threads)


class TorchExecutable(SignedExecutable):
    """A module in evaluation mode; the number of threads is a process-wide setting of PyTorch, renewed at each run."""

    def __init__(
        self, signature: Signature, module: Any, nodes: list[tuple[str, str]], mode: str, threads: int
    ) -> None:
        import torch

        super().__init__(signature)
        self._threads = threads
        self._nodes = nodes
        self._channels_last = mode == "channels_last"
        self._plain: Any = module.eval()
        if self._channels_last:
            self._plain = module.to(memory_format=torch.channels_last)
        self._module: Any = self._plain
        if mode == "compile":
            self._module = self._compiled()

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """The module on tensors made beforehand, in inference mode."""
        import torch

        self._check(inputs)
        feed, module = self._tensors(inputs), self._module
        torch.set_num_threads(self._threads)

        def once() -> object:
            with torch.inference_mode():
                return module(*feed)

        return once

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Median time of every operator of the graph, run eagerly on a copy with a clock around each call."""
        import torch

        self._check(inputs)
        if self._module is not self._plain:
            raise UnsupportedError("a compiled module has no layers of its own", "profile with mode=eager")
        clocked, times = copy.deepcopy(self._plain), [[] for _ in self._nodes]
        clocked.wrap_calls(partial(_clocked, times))
        feed = self._tensors(inputs)
        torch.set_num_threads(self._threads)
        with torch.inference_mode():
            for _ in range(repeats + 3):
                clocked(*feed)
        return tuple(
            LayerTiming(name, op, 1e3 * median(taken[3:]))
            for (name, op), taken in zip(self._nodes, times, strict=True)
        )

    def _infer(self, inputs: Mapping[str, np.ndarray]) -> Sequence[np.ndarray]:
        found: Any = self.runner(inputs)()
        listed = list(found) if isinstance(found, tuple | list) else [found]
        return [np.array(t.numpy(), order="C") for t in listed]

    def _tensors(self, inputs: Mapping[str, np.ndarray]) -> list[Any]:
        import torch

        tensors = [torch.from_numpy(np.array(inputs[p.name], order="C")) for p in self.signature.inputs]
        if self._channels_last:
            last = torch.channels_last
            tensors = [t.contiguous(memory_format=last) if t.dim() == 4 else t for t in tensors]
        return tensors

    def _compiled(self) -> Any:
        """Compile and run once, so that no timed run pays for it."""
        import torch

        torch.set_num_threads(self._threads)
        module = torch.compile(self._plain)
        try:
            with torch.inference_mode():
                module(*self._tensors(self.signature.random_inputs()))
        except RuntimeError as error:  # the compiler's errors all derive from it
            raise refused("torch.compile", error) from error
        return module

    def _free(self) -> None:
        self._module = self._plain = None


def _clocked(times: list[list[float]], index: int, call: Callable[..., Any]) -> Callable[..., Any]:
    """``call`` with its seconds added to ``times[index]``."""

    def timed(*arguments: Any) -> Any:
        begun = perf_counter()
        result = call(*arguments)
        times[index].append(perf_counter() - begun)
        return result

    return timed
