"""What a target is: a device, what it can run, and how its figures are obtained."""

from __future__ import annotations

from abc import abstractmethod
from typing import ClassVar

from dlas.core.figure import Source
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry

targets: Registry[type[Target]] = Registry("target", "dlas.hardware.targets")


class Target(Configurable):
    """A device.

    Class attributes:
        source: How figures for this device are obtained.
    """

    source: ClassVar[Source] = Source.MEASURED

    @property
    @abstractmethod
    def memory_bytes(self) -> int:
        """Memory a network may use."""

    @property
    @abstractmethod
    def isa(self) -> str:
        """Instruction-set level code is generated for (``x86-64-v3``, ``native``)."""

    @abstractmethod
    def unusable(self) -> str:
        """Why nothing can run on it here (the CPU lacks the instructions, say), or an empty string."""

    def energy_reader(self) -> EnergyReader | None:
        """A counter of energy, where the device has one that can be read; never a guess."""
        return None


class EnergyReader:
    """A running counter of energy in joules."""

    def read_joules(self) -> float:
        """Counter value now."""
        raise NotImplementedError


def target_for(choice: str | Choice) -> Target:
    """A target given as ``name:key=value``."""
    if isinstance(choice, str):
        choice = Choice.parse(choice)
    return targets.get(choice.name)(**choice.as_dict())
