"""Processing elements: they multiply channels of a pixel by a tap of a filter, and add the sum where it belongs."""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.loader import PIXEL_BITS
from dlas.hardware.rtl.sizes import BUS_BITS, BUS_BYTES


class Elements(wiring.Component):
    """All processing elements with the sums that they hold.

    Operands come with the flags of the mapper, one cycle behind its addresses. A product of a pixel and a tap takes as
    many cycles as it has steps; :data:`~.geometry.ARRAY_LATENCY` cycles after the mapper's last one its sum is written.
    Sums are kept twice: one copy for adding, one for the drain, which reads a column of all elements per cycle.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "spread": In(3),
                "weights": In(data.ArrayLayout(BUS_BITS, g.pe_count)),
                "pixels": In(data.ArrayLayout(PIXEL_BITS * BUS_BYTES, g.pe_count)),
                "part": In(range(max(g.steps_per_word, 2))),
                "first": In(1),
                "enable": In(1),
                "last": In(1),
                "fresh": In(1),
                "inside": In(g.pe_count),
                "address": In(data.ArrayLayout(range(g.sum_words), g.pe_count)),
                "drain_address": In(range(g.sum_words)),
                "drained": Out(data.ArrayLayout(signed(32), g.pe_count)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Flags in step with the data, and the elements."""
        m = Module()
        first, enable = _later(m, self.first, 2, "first"), _later(m, self.enable, 2, "enable")
        last, fresh = _later(m, self.last, 3, "last"), _later(m, self.fresh, 3, "fresh")
        inside = _later(m, self.inside, 3, "inside")
        places = [_later(m, self.address[i], 2, f"place_{i}") for i in range(self.geometry.pe_count)]
        for element in range(self.geometry.pe_count):
            pixel = self._chosen(element)
            total = self._product(m, element, Array(self.pixels)[pixel], first, enable)
            write = last & inside.bit_select(pixel, 1)
            self._add(m, element, total, Array(places)[pixel], fresh, write)
        return m

    def _chosen(self, element: int) -> Value:
        """Which pixel of the position an element works on: those of one channel are neighbours."""
        choices = [element % (1 << k) for k in range(self.geometry.pe_count.bit_length())]
        return Array(choices)[self.spread]

    def _product(self, m: Module, element: int, pixels: Value, first: Value, enable: Value) -> Signal:
        """Products, their tree, and the sum over the steps."""
        g, terms = self.geometry, []
        weights = self.weights[element].word_select(self.part, 8 * g.uf)
        pixels = pixels.word_select(self.part, PIXEL_BITS * g.uf)
        for i in range(g.uf):
            found = weights.word_select(i, 8).as_signed() * pixels.word_select(i, PIXEL_BITS).as_signed()
            terms.append(_later(m, found, 1, f"product_{element}_{i}"))
        tree = _later(m, sum(terms[1:], terms[0]), 1, f"tree_{element}")
        total = Signal(signed(32), name=f"total_{element}", reset_less=True)
        with m.If(enable):
            m.d.sync += total.eq(Mux(first, 0, total) + tree)
        return total

    def _add(self, m: Module, element: int, total: Signal, place: Value, fresh: Value, write: Value) -> None:
        """Read, add, write: a place that is written can be read for adding in the same cycle."""
        copies = []
        for name in ("sums", "copy"):
            m.submodules[f"{name}_{element}"] = memory = Memory(
                shape=signed(32), depth=self.geometry.sum_words, init=[]
            )
            copies.append((memory, memory.write_port()))
        adding = copies[0][0].read_port(transparent_for=(copies[0][1],))
        draining = copies[1][0].read_port()
        target = _later(m, place, 1, f"target_{element}")
        m.d.comb += [
            adding.addr.eq(place), draining.addr.eq(self.drain_address), self.drained[element].eq(draining.data),
            *(port.addr.eq(target) for _, port in copies),
            *(port.en.eq(write) for _, port in copies),
            *(port.data.eq(Mux(fresh, 0, adding.data) + total) for _, port in copies),
        ]  # fmt: skip


def _later(m: Module, value: Value, cycles: int, name: str) -> Value:
    """``value`` some cycles later; what is in the registers before the first value does not matter."""
    for i in range(cycles):
        register = Signal(value.shape(), name=f"{name}_{i}", reset_less=True)
        m.d.sync += register.eq(value)
        value = register
    return value
