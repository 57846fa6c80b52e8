"""An accelerator as a target: what it takes of a network runs on it, the rest on this machine's processor."""

from __future__ import annotations

from dataclasses import dataclass, fields

from dlas.core.environment import memory_bytes
from dlas.core.figure import Source
from dlas.core.options import Choice, option
from dlas.hardware.accelerator import LEVELS, Accelerator, accelerator_for
from dlas.hardware.target import Target

CLOCK_MHZ = 100.0


@dataclass(frozen=True)
class AcceleratedOptions:
    """How an accelerator is simulated; its own options come beside these."""

    level: str = option("tlm", "tlm: the exact model; rtl: the simulated hardware", choices=LEVELS)
    mhz: float = option(CLOCK_MHZ, "clock that cycles are turned into time with", low=1)


class AcceleratedTarget(Target):
    """A member of the accelerator family beside this machine's processor, written ``vm:units=4,mhz=150``.

    Raises:
        UnknownNameError: There is no such accelerator or option.
        OptionError: An option has a value that it does not accept.
    """

    name = "accelerated"
    summary = "an accelerator, simulated, beside this machine's processor"
    Options = AcceleratedOptions
    source = Source.SIMULATED
    options: AcceleratedOptions

    def __init__(self, choice: Choice) -> None:
        own = {f.name for f in fields(AcceleratedOptions)}
        super().__init__(**{k: v for k, v in choice.options if k in own})
        self._accelerator = accelerator_for(
            Choice.of(choice.name, **{k: v for k, v in choice.options if k not in own})
        )

    @property
    def accelerator(self) -> Accelerator:
        """With its own options."""
        return self._accelerator

    @property
    def memory_bytes(self) -> int:
        """That of this machine, where operands wait."""
        return memory_bytes()

    @property
    def isa(self) -> str:
        """Of the processor beside it."""
        return "native"

    def unusable(self) -> str:
        """The model needs nothing; the simulated hardware its tools."""
        return type(self._accelerator).missing() if self.options.level == "rtl" else ""
