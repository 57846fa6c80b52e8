"""The streams between host and accelerator: words with valid, ready and last, as on AXI4-Stream."""

from __future__ import annotations

from collections.abc import Mapping

from amaranth.hdl import Module, Signal, Value
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.rtl.sizes import BUS_BITS


class Bus(wiring.Signature):
    """One direction of the bus, seen from the side that sends.

    A word moves in each cycle in which ``valid`` and ``ready`` are high; ``last`` marks the end of a result.

    Attributes:
        width: Bits of ``data``.
    """

    def __init__(self, width: int = BUS_BITS) -> None:
        self.width = width
        super().__init__({"data": Out(width), "last": Out(1), "valid": Out(1), "ready": In(1)})


class Design(wiring.Component):
    """What every accelerator looks like from outside: a bus in, a bus out, and a 32-bit counter per unit.

    Args:
        counters: Names of the counters, in the order in which a simulation reports them.
    """

    source: Bus
    sink: Bus

    def __init__(self, counters: tuple[str, ...]) -> None:
        self.counters = counters
        super().__init__(
            {"source": In(Bus()), "sink": Out(Bus()), **{f"count_{name}": Out(32) for name in counters}}
        )

    def count(self, m: Module, running: Signal, events: Mapping[str, Value]) -> None:
        """Count cycles by unit; ``total``, ``load_wait`` and ``store`` are seen at the bus.

        Args:
            m: The design's module.
            running: Made high from the first word in to the last word out.
            events: Counter to what is high in each cycle that counts, for the other counters.
        """
        taken, given = self.source.valid & self.source.ready, self.sink.valid & self.sink.ready
        with m.If(taken):
            m.d.sync += running.eq(1)
        with m.If(given & self.sink.last):
            m.d.sync += running.eq(0)
        seen = {"total": running | taken, "load_wait": self.source.valid & ~self.source.ready, "store": given}
        for name in self.counters:
            counter = getattr(self, f"count_{name}")
            with m.If(events[name] if name in events else seen[name]):
                m.d.sync += counter.eq(counter + 1)
