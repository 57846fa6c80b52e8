"""What a target is: a device, what it can run, and how its figures are obtained."""

from __future__ import annotations

from abc import abstractmethod
from typing import TYPE_CHECKING, ClassVar

from dlas.core.errors import OptionError, UnknownNameError
from dlas.core.figure import Source
from dlas.core.options import Choice, Configurable
from dlas.core.registry import Registry

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator

targets: Registry[type[Target]] = Registry("target", "dlas.hardware.targets")


class Target(Configurable):
    """A device.

    Class attributes:
        source: How figures for this device are obtained.
    """

    source: ClassVar[Source] = Source.MEASURED

    @property
    def accelerator(self) -> Accelerator | None:
        """What takes layers off the processor; None where a processor does everything."""
        return None

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


def is_accelerator(choice: Choice) -> bool:
    """Whether a target is written by the name of an accelerator."""
    from dlas.hardware.accelerator import accelerators

    return choice.name not in targets.names() and choice.name in accelerators.names()


def target_for(choice: str | Choice) -> Target:
    """A target given as ``name:key=value``: a member of this family, or an accelerator.

    Raises:
        UnknownNameError: There is neither.
        OptionError: An option does not accept its value.
    """
    from dlas.hardware.accelerator import accelerators

    if isinstance(choice, str):
        choice = Choice.parse(choice)
    if is_accelerator(choice):
        from dlas.hardware.accelerated import AcceleratedTarget

        return AcceleratedTarget(choice)
    known = targets.names()
    if choice.name not in known:
        raise UnknownNameError("target", choice.name, [*known, *accelerators.names()], "`dlas list hardware`")
    return targets.get(choice.name)(**choice.as_dict())


def measured_target(choice: str | Choice) -> Target:
    """A target on which running a network is measuring it.

    Raises:
        OptionError: It is an accelerator, whose time is not that of its simulation.
    """
    found = target_for(choice)
    if found.accelerator is not None:
        raise OptionError(
            "target", str(choice), "a device that is here; `dlas hw run` tells an accelerator's time"
        )
    return found
