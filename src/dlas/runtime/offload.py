"""A network with its matrix products on an accelerator and everything else on the CPU.

The engine lowers the network to operators on bytes, as it always does; those that the accelerator takes are computed by
it (or its model), the others by the engine's own kernels, which round as TFLite's reference kernels do.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.graph.model import Model
from dlas.graph.qoperators import decoded
from dlas.hardware.accelerator import LEVELS, Accelerator, Cycles, DoesNotFitError, Layer
from dlas.kernels.kernel import Context, Form, Kernel, Node, PythonLayer
from dlas.kernels.layout import Layout, Storage
from dlas.runtime.artifact import Signature
from dlas.runtime.backend import LayerTiming, deployable
from dlas.runtime.engine.engine import assembled, prepared
from dlas.runtime.engine.executable import EngineExecutable
from dlas.runtime.engine.network import Call, Network
from dlas.runtime.engine.select import Choice, candidates, choose

_CPU_RUNS = 20


@dataclass
class Placed:
    """Where one operator of the network is computed.

    Attributes:
        name: Node.
        op: Operator.
        macs: Multiply-accumulates per run.
        reason: Why it is not on the accelerator; empty where it is.
        cycles: Of the latest run, where it is on the accelerator.
        buffers: Bytes of each buffer in use and bytes there are.
        spans: What its units do when; see :meth:`~dlas.hardware.accelerator.Layer.spans`.
    """

    name: str
    op: str
    macs: int
    reason: str = ""
    cycles: Cycles = field(default_factory=Cycles)
    buffers: dict[str, tuple[int, int]] = field(default_factory=dict)
    spans: list[tuple[str, str, int, int]] = field(default_factory=list)


class Offloaded:
    """A network that runs on an accelerator as far as that takes it.

    Args:
        model: A network of integers.
        accelerator: What takes the matrix products.
        level: One of :data:`~dlas.hardware.accelerator.LEVELS`.
        batch: Rows per run.
        threads: Of the operators on the CPU.

    Attributes:
        layers: Every operator with products, and where it is computed.

    Raises:
        UnsupportedError: The network is not quantised, or the accelerator takes none of it.
        OptionError: There is no such level.
    """

    def __init__(
        self, model: Model, accelerator: Accelerator, *, level: str = "tlm", batch: int = 1, threads: int = 1
    ) -> None:
        if level not in LEVELS:
            raise OptionError("level", level, "one of " + ", ".join(LEVELS))
        model = deployable(decoded(model))
        rounding = getattr(accelerator.options, "rounding", "double")
        network = prepared(model, batch=batch, rounding=rounding)
        context = Context.here(threads)
        kernel = _OnAccelerator(accelerator, level)
        options = [
            kernel.place(call) or found
            for call, found in zip(network.calls, candidates(network, context, exact=True), strict=True)
        ]
        self.layers = kernel.layers
        if not any(not layer.reason for layer in self.layers):
            raise UnsupportedError(
                f"{accelerator.name} takes no layer of {model.name}: {_why(network, self.layers)}",
                "quantise it first: `dlas compress MODEL int8 --data D`" if not _integer(network) else "",
            )
        signature = Signature.of(model, batch)
        self.executable: EngineExecutable = assembled(
            network, choose(network, options), signature, context, "rules"
        )
        self._kernel = kernel

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """One inference; afterwards :attr:`layers` hold its cycles."""
        return self.executable.run(inputs)

    @property
    def cycles(self) -> Cycles:
        """Of the latest run, all layers on the accelerator."""
        total = Cycles()
        for layer in self.layers:
            total = total + layer.cycles
        return total

    def cpu_ms(self, inputs: Mapping[str, np.ndarray], runs: int = _CPU_RUNS) -> Figure:
        """Time of what stays on the CPU, measured: the accelerator's steps hand out their latest results meanwhile."""
        own = [i for i, step in enumerate(self.executable.steps) if step.impl != _OnAccelerator.name]
        with self._replayed(inputs):
            times = self.executable.times(inputs, runs)
        low, middle, high = np.quantile(1e-6 * times[:, own].sum(1), (0.25, 0.5, 0.75))
        note = "on this machine; quartiles"
        return Figure(float(middle), "ms", Source.MEASURED, float(low), float(high), runs, note)

    def profile(self, inputs: Mapping[str, np.ndarray], repeats: int) -> tuple[LayerTiming, ...]:
        """Time of every step on the CPU; that of the accelerator's steps means nothing."""
        with self._replayed(inputs):
            return self.executable.profile(inputs, repeats)

    @contextlib.contextmanager
    def _replayed(self, inputs: Mapping[str, np.ndarray]) -> Iterator[None]:
        """The accelerator's steps hand out what they found for ``inputs``, and do not compute."""
        self.run(inputs)
        self._kernel.replay = True
        try:
            yield
        finally:
            self._kernel.replay = False

    def close(self) -> None:
        """Let go of what the CPU's part holds."""
        self.executable.close()


def _integer(network: Network) -> bool:
    return any(call.node.op.startswith("Q") for call in network.calls)


def _why(network: Network, layers: Sequence[Placed]) -> str:
    if not _integer(network):
        return "it is not quantised to integers"
    reasons = list(dict.fromkeys(f"{layer.op}: {layer.reason}" for layer in layers))
    return "; ".join(reasons[:3]) or "it has no matrix products"


class _OnAccelerator(Kernel):
    """The accelerator as a kernel of the engine."""

    name: ClassVar[str] = "accelerator"
    ops: ClassVar[tuple[str, ...]] = ()
    summary: ClassVar[str] = ""

    def __init__(self, accelerator: Accelerator, level: str) -> None:
        self._accelerator, self._level = accelerator, level
        self.replay = False
        self._ready: dict[int, tuple[Layer, Placed]] = {}
        self.layers: list[Placed] = []

    def place(self, call: Call) -> list[Choice] | None:
        """The choice for a call, or None where it stays on the CPU."""
        node = call.node
        if call.is_alias or not (node.macs or node.op in self._accelerator.ops):
            return None
        placed = Placed(call.name, node.op, node.macs)
        self.layers.append(placed)
        layer = None
        if node.op not in self._accelerator.ops:
            placed.reason = f"{self._accelerator.name} does not compute {node.op}"
        else:
            placed.reason = self._accelerator.refuses(node)
        if not placed.reason:
            try:
                layer = self._accelerator.layer(node)
            except DoesNotFitError as error:
                placed.reason = error.message
        if layer is None:
            return None
        self._ready[id(node)] = layer, placed
        placed.buffers, placed.spans = layer.buffers(), layer.spans()
        return [Choice(self.name, Form.all(node, Layout.PLAIN), self, 0.0)]

    def prepare(
        self, node: Node, inputs: Sequence[Storage | None], outputs: Sequence[Storage], context: Context
    ) -> Any:
        """The layer that was made when the call was placed."""
        return _Step(self, *self._ready[id(node)], self._level)


class _Step(PythonLayer):
    def __init__(self, kernel: _OnAccelerator, layer: Layer, placed: Placed, level: str) -> None:
        self._kernel, self._layer, self._placed, self._level = kernel, layer, placed, level
        self._found: np.ndarray | None = None

    def run(
        self, inputs: Sequence[np.ndarray | None], outputs: Sequence[np.ndarray], scratch: np.ndarray
    ) -> None:
        assert inputs[0] is not None
        if self._found is None or not self._kernel.replay:
            self._found, self._placed.cycles = self._layer.run(inputs[0], self._level)
        np.copyto(outputs[0], self._found)
