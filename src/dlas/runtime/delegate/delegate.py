"""An accelerator inside the LiteRT interpreter: it computes the matrix products, LiteRT everything else.

The delegate takes ``CONV_2D``, ``FULLY_CONNECTED`` and ``TRANSPOSE_CONV`` of 8-bit integers as far as the accelerator
computes them. With LiteRT's reference kernels for the rest and an accelerator that rounds as they do (``double``) the
outputs are those of the reference kernels, to the bit.

The interpreter needs to be told its kernels (``experimental_op_resolver_type``): by default LiteRT's own delegate,
XNNPACK, computes what is left, and rounds in another way.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any

import numpy as np

from dlas.core.errors import OptionError
from dlas.core.options import Choice
from dlas.hardware.accelerator import LEVELS, Accelerator, Cycles, DoesNotFitError, Layer, accelerator_for
from dlas.hardware.verification import require
from dlas.runtime.delegate.bridge import Bridge, Operator
from dlas.runtime.delegate.build import library
from dlas.runtime.delegate.nodes import ENGINE, back, engine_node, into, macs, refusal, resized
from dlas.runtime.offload import Placed


def litert_delegate(accelerator: str | Choice | Accelerator, level: str = "tlm") -> LiteRtDelegate:
    """A delegate for ``Interpreter(..., experimental_delegates=[delegate])``; compiled on first use.

    Args:
        accelerator: What takes the operators, or ``name:key=value``.
        level: One of :data:`~dlas.hardware.accelerator.LEVELS`.

    Raises:
        UnknownNameError: There is no such accelerator.
        OptionError: There is no such level, or an option has a value that is not accepted.
        UnsupportedError: There is no C++ compiler, or LiteRT's structures are not those that dlas knows.
        MissingDependencyError: LiteRT is not installed, or the tools that simulate RTL are not.
        CheckFailedError: The accelerator is known to differ from its RTL.
    """
    if level not in LEVELS:
        raise OptionError("level", level, "one of " + ", ".join(LEVELS))
    chosen = accelerator if isinstance(accelerator, Accelerator) else accelerator_for(accelerator)
    require(chosen)
    if level == "rtl":
        _ = chosen.simulator  # built now, not in the middle of an inference
    return LiteRtDelegate(chosen, level)


class LiteRtDelegate:
    """What the interpreter is given, and what is known of the work afterwards.

    An exception in the middle of an inference makes ``Interpreter.invoke`` raise RuntimeError with its words;
    :meth:`check` raises the exception itself, and :meth:`invoke` does both steps.
    """

    def __init__(self, accelerator: Accelerator, level: str) -> None:
        self._handler = _Handler(accelerator, level)
        self._bridge = Bridge(library(), self._handler)

    @property
    def layers(self) -> list[Placed]:
        """Every operator with products, where it is computed, and its cycles in the latest run."""
        return list(self._handler.placed.values())

    @property
    def cycles(self) -> Cycles:
        """Of the latest run, all operators on the accelerator."""
        return sum((layer.cycles for layer in self.layers), Cycles())

    def report(self) -> str:
        """A line for every operator with products: its cycles in the latest run, or why LiteRT computes it."""
        lines = []
        for layer in self.layers:
            cycles = layer.cycles
            done = f"{cycles.total} cycles, {100 * cycles.utilisation:.1f} % used (simulated)"
            lines.append(f"{layer.op} {layer.name}: " + (f"LiteRT, {layer.reason}" if layer.reason else done))
        return "\n".join(lines)

    def invoke(self, interpreter: Any) -> None:
        """``interpreter.invoke()``, whose failures are told as what they are.

        Raises:
            DlasError: A layer failed on the accelerator.
            RuntimeError: LiteRT failed.
        """
        self._bridge.forget()
        try:
            interpreter.invoke()
        except RuntimeError:
            self.check()
            raise

    def check(self) -> None:
        """Raise what made the interpreter fail, if it was this delegate.

        Raises:
            DlasError: A layer failed on the accelerator, or LiteRT's structures are not those that dlas reads.
        """
        self._bridge.check()

    def _get_native_delegate_pointer(self) -> int:  # the interpreter asks for it by this name
        return self._bridge.pointer


class _Handler:
    """Answers of the delegate; one number per operator that is taken."""

    def __init__(self, accelerator: Accelerator, level: str) -> None:
        self._accelerator, self._level = accelerator, level
        self._rounding = getattr(accelerator.options, "rounding", "double")
        self._taken: list[tuple[Operator, Layer, Placed]] = []
        self.placed: dict[tuple[int, int], Placed] = {}  # by graph and operator: LiteRT may prepare twice

    def consider(self, operator: Operator) -> int | None:
        placed = Placed(operator.y.name, operator.op, macs(operator))
        self.placed[operator.graph, operator.node] = placed
        layer = self._layer(operator, placed)
        if layer is None:
            return None
        self._taken.append((operator, layer, placed))
        return len(self._taken) - 1

    def unreadable(self, graph: int, node: int, op: str) -> None:
        self.placed[graph, node] = Placed(f"operator {node}", op, 0, "its tensors are sparse or missing")

    def shape(self, number: int, x: tuple[int, ...]) -> Sequence[int]:
        operator, layer, placed = self._taken[number]
        if x != operator.x.shape:
            operator = resized(operator, x)
            layer = self._accelerator.layer(engine_node(operator, self._rounding))
            placed.macs, placed.spans = macs(operator), layer.spans()
            self._taken[number] = operator, layer, placed
        return operator.y.shape

    def run(self, number: int, x: np.ndarray, y: np.ndarray) -> None:
        operator, layer, placed = self._taken[number]
        found, placed.cycles = layer.run(into(operator, x), self._level)
        y[:] = back(operator, found)

    def _layer(self, operator: Operator, placed: Placed) -> Layer | None:
        """The prepared layer, or None with the reason in ``placed``."""
        placed.reason = refusal(operator)
        op = ENGINE.get(operator.op, "")
        if not placed.reason and op not in self._accelerator.ops:
            placed.reason = f"{self._accelerator.name} does not compute {operator.op}"
        if placed.reason:
            return None
        node = engine_node(operator, self._rounding)
        placed.reason = self._accelerator.refuses(node)
        if placed.reason:
            return None
        try:
            layer = self._accelerator.layer(node)
        except DoesNotFitError as error:
            placed.reason = error.message
            return None
        placed.spans = layer.spans()
        return layer
