"""How long a network would take on a board: accelerator, transfers and processor, each a figure of its own."""

from __future__ import annotations

from dataclasses import dataclass
from typing import Any

from dlas.core.errors import OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.hardware.accelerator import Cycles
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.hardware.synthesis.boards import Board

DMA_EFFICIENCY = 0.8  # of the bus's peak that a DMA engine reaches with long bursts; an assumption


@dataclass(frozen=True)
class Latency:
    """Time of one inference by term.

    Attributes:
        accelerator: Cycles over clock. A word per cycle moves meanwhile, so that an ideal bus is part of it.
        dma: What the words take beyond that, because the bus does not move one in every cycle. Nothing of it is
            hidden behind the array's work: an upper bound.
        cpu: What stays on the processor.
    """

    accelerator: Figure
    dma: Figure
    cpu: Figure

    @property
    def total(self) -> Figure:
        """Together: nothing overlaps."""
        terms = (self.accelerator, self.dma, self.cpu)
        value = sum(term.value for term in terms)
        return Figure(
            value, "ms", Source.ESTIMATED, note="accelerator, transfers and CPU, one after the other"
        )

    @property
    def figures(self) -> dict[str, Figure]:
        """Every term and the total."""
        return {
            "accelerator_ms": self.accelerator,
            "dma_ms": self.dma,
            "cpu_ms": self.cpu,
            "latency_ms": self.total,
        }

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {name: figure.to_dict() for name, figure in self.figures.items()}


def latency(
    cycles: Cycles, cpu: Figure, *, clock_mhz: float, dma_efficiency: float = DMA_EFFICIENCY
) -> Latency:
    """Put the terms together.

    Args:
        cycles: Of all layers on the accelerator.
        cpu: Time of the others in ms: measured somewhere, or from :func:`cpu_time`.
        clock_mhz: Of accelerator and bus.
        dma_efficiency: Share of the bus's peak that transfers reach.

    Raises:
        OptionError: A number is out of range, or ``cpu`` is no time in ms.
    """
    if not clock_mhz > 0:
        raise OptionError("clock_mhz", clock_mhz, "a number over 0")
    if not 0 < dma_efficiency <= 1:
        raise OptionError("dma_efficiency", dma_efficiency, "a fraction over 0, at most 1")
    if cpu.unit != "ms":
        raise OptionError("cpu", cpu.unit, "a figure in ms")
    words = (cycles.bytes_in + cycles.bytes_out) / BUS_BYTES
    per_ms = 1e3 * clock_mhz
    at = f"at {clock_mhz:g} MHz"
    return Latency(
        Figure(cycles.total / per_ms, "ms", Source.SIMULATED, note=f"{at}, the bus never pausing"),
        Figure(
            words * (1 / dma_efficiency - 1) / per_ms, "ms", Source.ESTIMATED,
            note=f"{at}, beyond a word per cycle: the bus reaches {100 * dma_efficiency:g} % of that",
        ),
        cpu,
    )  # fmt: skip


def cpu_time(macs: int, board: Board) -> Figure:
    """A rough time of ``macs`` int8 multiply-accumulates on a board's processor, all cores busy.

    Raises:
        UnsupportedError: The board has no processor.
    """
    if not board.cpu:
        raise UnsupportedError(
            f"{board.title} has no processor to model", "give a time that was measured elsewhere"
        )
    rate = board.cpu_cores * board.cpu_macs_per_cycle * 1e3 * board.cpu_mhz
    cores = f"{board.cpu_cores} x {board.cpu} at {board.cpu_mhz:g} MHz"
    note = f"{cores}, {board.cpu_macs_per_cycle:g} MACs per cycle each, assumed"
    return Figure(macs / rate, "ms", Source.ESTIMATED, note=note)
