"""The hardware of transposed convolutions: loader, buffers, mapper, processing elements, drain, and the bus.

The loader takes words as they come: weights into the half of the weight buffers that no sum needs any more, pixels into
a ring of positions. The mapper takes a position as soon as it is whole and walks over the taps that reach the output;
the elements add each product to a sum in place. A row of the output that is whole is drained beside the adding of the
next ones, in a ring of rows. A host that does not take a result stops everything behind the buffers.
"""

from __future__ import annotations

from amaranth.hdl import EnableInserter, Module, Mux, Signal
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import connect, flipped

from dlas.hardware.accelerators._mm2im.drain import Drain
from dlas.hardware.accelerators._mm2im.elements import Elements
from dlas.hardware.accelerators._mm2im.geometry import ARRAY_LATENCY, Geometry
from dlas.hardware.accelerators._mm2im.loader import PIXEL_BITS, Loader
from dlas.hardware.accelerators._mm2im.mapper import Mapper
from dlas.hardware.rtl.bus import Design
from dlas.hardware.rtl.sizes import BUS_BITS, BUS_BYTES

COUNTERS = ("total", "load_weights", "load_inputs", "load_wait", "compute", "taps", "post", "store")
_FLAGS = ("first", "enable", "last", "fresh", "inside", "part")


class Mm2imDesign(Design):
    """The accelerator.

    Args:
        geometry: Sizes.
        modes: Roundings that are built.
    """

    def __init__(self, geometry: Geometry, modes: tuple[str, ...]) -> None:
        self.geometry, self.modes = geometry, modes
        super().__init__(COUNTERS)

    def elaborate(self, platform: object) -> Module:
        """Put the parts together."""
        m = Module()
        advance, running = Signal(), Signal()
        m.submodules.loader = loader = Loader(self.geometry)
        mapper, elements, drain = (
            Mapper(self.geometry),
            Elements(self.geometry),
            Drain(self.geometry, self.modes),
        )
        for name, part in (("mapper", mapper), ("elements", elements), ("drain", drain)):
            m.submodules[name] = EnableInserter(advance)(part)
        connect(m, flipped(self.source), loader.source)
        for part in (mapper, drain):
            for name in ("common", "columns", "rows", "sums"):
                m.d.comb += getattr(part.settings, name).eq(getattr(loader.settings, name))
            m.d.comb += part.restart.eq(loader.restart)
        m.d.comb += [
            advance.eq(~(self.sink.valid & ~self.sink.ready)),
            self.sink.data.eq(drain.data), self.sink.valid.eq(drain.valid), self.sink.last.eq(drain.last),
            loader.running.eq(running), loader.left.eq(Mux(advance, drain.left, 0)),
            loader.taken.eq(mapper.taken & advance), loader.done.eq(mapper.done & advance),
            mapper.waiting.eq(loader.waiting), mapper.drained.eq(drain.rows),
            drain.parameters.eq(loader.parameters), drain.final.eq(loader.final),
            elements.spread.eq(loader.settings.common.spread), elements.drain_address.eq(drain.address),
            drain.sums.eq(elements.drained),
        ]  # fmt: skip
        self._buffers(m, advance, loader, mapper, elements)
        self._follow(m, advance, mapper, elements, drain)
        self._count(m, advance, running, loader, mapper, drain)
        return m

    def _buffers(
        self, m: Module, advance: Signal, loader: Loader, mapper: Mapper, elements: Elements
    ) -> None:
        g = self.geometry
        for element in range(g.pe_count):
            for name, width, depth, strobe, written, to, asked, target in (
                (
                    "weights", BUS_BITS, g.weight_words, loader.weight_write, self.source.data,
                    loader.weight_address, mapper.weight_address, elements.weights,
                ),
                (
                    "pixels", PIXEL_BITS * BUS_BYTES, g.bank_words(element), loader.pixel_write, loader.pixel_word,
                    loader.pixel_address, mapper.pixel_address, elements.pixels,
                ),
            ):  # fmt: skip
                m.submodules[f"{name}_{element}"] = memory = Memory(shape=width, depth=depth, init=[])
                read, write = memory.read_port(), memory.write_port()
                m.d.comb += [
                    read.en.eq(advance), read.addr.eq(asked), target[element].eq(read.data),
                    write.en.eq(strobe[element]), write.addr.eq(to), write.data.eq(written),
                ]  # fmt: skip

    def _follow(self, m: Module, advance: Signal, mapper: Mapper, elements: Elements, drain: Drain) -> None:
        """Flags one cycle behind the addresses; whole rows once their last sum is written."""
        whole = mapper.whole_rows
        with m.If(advance):
            m.d.sync += [getattr(elements, name).eq(getattr(mapper, name)) for name in _FLAGS]
            m.d.sync += elements.address.eq(mapper.address)
            for i in range(ARRAY_LATENCY):
                later = Signal.like(whole, name=f"whole_{i}")
                m.d.sync += later.eq(whole)
                whole = later
        m.d.comb += drain.whole_rows.eq(whole)

    def _count(
        self, m: Module, advance: Signal, running: Signal, loader: Loader, mapper: Mapper, drain: Drain
    ) -> None:
        events = {
            "load_weights": loader.took_weights,
            "load_inputs": loader.took_inputs,
            "compute": mapper.enable & advance,
            "taps": mapper.last & advance,
            "post": drain.busy & advance,
        }
        self.count(m, running, events)
