"""What a back end is.

Compiling has two halves, so that the result can be cached and shared by several thread counts: ``build`` writes a
self-contained artifact into a folder, ``load`` makes it runnable. Both may crash the process in third-party code, so
studies call them only inside a worker (``runtime.session``).
"""

from __future__ import annotations

import contextlib
import weakref
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.files import scratch_folder
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry
from dlas.graph.model import Model
from dlas.hardware.target import Target, target_for

backends: Registry[type[Backend]] = Registry("backend", "dlas.runtime.backends")


@dataclass(frozen=True)
class LayerTiming:
    """Time of one node of the compiled network.

    Attributes:
        name: Node name as the back end reports it.
        op: Operator type as the back end reports it.
        milliseconds: Median time per run.
        source: How it was obtained.
    """

    name: str
    op: str
    milliseconds: float
    source: Source = Source.MEASURED


class Executable(ABC):
    """A compiled network, ready to run. Use as a context manager or call :meth:`close`.

    Attributes:
        notes: Anything that differs from what was asked, such as ``arithmetic in float32``.
    """

    notes: tuple[str, ...] = ()

    @abstractmethod
    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by the Model's output names; arrays are the caller's own (never views into the engine).

        Raises:
            ShapeError: An input has another name, shape or dtype than the Model declares (batch as built).
        """

    def runner(self, inputs: Mapping[str, np.ndarray]) -> Callable[[], object]:
        """A call without arguments that does one inference, with everything but the inference done beforehand."""
        return lambda: self.run(inputs)

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int = 30) -> tuple[LayerTiming, ...]:
        """Time per layer; raises UnsupportedError where the back end cannot tell."""
        raise UnsupportedError(f"{type(self).__name__} has no per-layer profile")

    def modelled(self) -> dict[str, Figure]:
        """After a run, figures of a device that is not here (``latency_ms``, its terms); empty where a clock tells."""
        return {}

    def memory(self) -> dict[str, Figure]:
        """Memory figures the back end itself can give (arena, planned activations); may be empty."""
        return {}

    def close(self) -> None:
        """Give back what the engine holds; calling it again does nothing."""

    def __enter__(self) -> Executable:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


class Backend(Configurable):
    """Systems software that runs a network.

    Class attributes:
        distribution: Name of the Python distribution whose version identifies the back end.
        isa_aware: Whether it honours the target's ``isa``.
        fixed_batch: Whether an artifact runs one batch size only.
        accelerates: Whether it gives layers to the target's accelerator.
    """

    distribution: ClassVar[str] = ""
    isa_aware: ClassVar[bool] = False
    fixed_batch: ClassVar[bool] = True
    accelerates: ClassVar[bool] = False

    def supports(self, model: Model, target: Target) -> str:
        """Why this network cannot run here, or an empty string."""
        return ""

    def refusal(self, model: Model, target: Target) -> str:
        """Why this network cannot be built for this target, or an empty string: the target, the back end, the network.

        A back end that picks its instructions itself would be measured with those of this machine, whatever the
        target says; that is refused.
        """
        reason = target.unusable()
        if not reason and target.accelerator is not None and not self.accelerates:
            reason = f"it has no driver for {target.accelerator.spelled()}; the back end engine has"
        if not reason and not self.isa_aware and target.isa != "native":
            reason = f"it chooses its instructions itself and cannot be held to {target.isa}"
        return reason or self.supports(model, target)

    @abstractmethod
    def build(self, model: Model, target: Target, folder: Path, *, batch: int = 1) -> None:
        """Write the artifact into the existing, empty ``folder``.

        Raises:
            UnsupportedError: The network uses something the back end cannot do.
        """

    @abstractmethod
    def load(self, folder: Path, target: Target, *, threads: int = 1) -> Executable:
        """Make an artifact runnable with ``threads`` threads."""

    def compile(
        self, model: Model, target: str | Target = "host", *, threads: int = 1, batch: int = 1
    ) -> Executable:
        """Build into a temporary folder and load; for interactive use (no worker, no cache)."""
        if isinstance(target, str):
            target = target_for(target)
        model = deployable(model)
        reason = self.refusal(model, target)
        if reason:
            raise UnsupportedError(f"{self.name} cannot run {model.name}: {reason}")
        with contextlib.ExitStack() as stack:
            folder = stack.enter_context(scratch_folder())
            self.build(model, target, folder, batch=batch)
            executable = self.load(folder, target, threads=threads)
            weakref.finalize(executable, stack.pop_all().close)  # the artifact lives as long as what runs it
        return executable


def deployable(model: Model) -> Model:
    """The network in the form every back end is given: constants and batch norms folded, the same answers."""
    from dlas.graph.passes import simplify

    graph = model.editable()
    simplify(graph)
    return replace(model, ir=graph)


def backend_for(choice: str | Choice) -> Backend:
    """A back end given as ``name:key=value``; raises MissingDependencyError when its library is absent."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    member = backends.get(choice.name)
    missing = member.missing()
    if missing:
        raise UnsupportedError(f"back end {choice.name} {missing}")
    return member(**choice.as_dict())


def installed_backends() -> list[str]:
    """Back ends whose libraries are here, onnxruntime first."""
    ready = [name for name, member in backends.members() if not member.missing()]
    return sorted(ready, key=lambda name: (name != "onnxruntime", name))
