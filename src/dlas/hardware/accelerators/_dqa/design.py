"""The hardware around the activation quantiser: the bus, and the counters."""

from __future__ import annotations

from amaranth.hdl import EnableInserter, Module, Signal

from dlas.hardware.accelerators._dqa.core import PHASES, Core
from dlas.hardware.accelerators._dqa.geometry import Geometry
from dlas.hardware.rtl.bus import Design

COUNTERS = ("total", *PHASES, "store")


class DqaDesign(Design):
    """An activation quantiser.

    Args:
        geometry: Sizes.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(COUNTERS)

    def elaborate(self, platform: object) -> Module:
        """The core, which a host that takes no result stops."""
        m = Module()
        core, advance = Core(self.geometry), Signal()
        m.submodules.core = EnableInserter(advance)(core)
        m.d.comb += [
            advance.eq(~(core.sink.valid & ~self.sink.ready)),
            core.source.data.eq(self.source.data), core.source.valid.eq(self.source.valid),
            self.source.ready.eq(core.source.ready & advance),
            self.sink.data.eq(core.sink.data), self.sink.last.eq(core.sink.last),
            self.sink.valid.eq(core.sink.valid),
        ]  # fmt: skip
        self.count(
            m, Signal(name="running"), {name: core.phase[i] & advance for i, name in enumerate(PHASES)}
        )
        return m
