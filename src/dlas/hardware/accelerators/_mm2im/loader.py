"""Takes the words of the bus apart: settings into registers, weights and pixels into buffers with room."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._mm2im.geometry import Geometry
from dlas.hardware.accelerators._mm2im.protocol import (
    COLUMNS,
    CONFIGURE,
    INPUTS,
    PARAMETERS,
    ROWS,
    SUMS,
    Opcode,
)
from dlas.hardware.rtl.bus import Bus
from dlas.hardware.rtl.sizes import BUS_BYTES

PIXEL_BITS = 9  # of an input less its zero point


class Settings(wiring.Signature):
    """What a run is configured with, seen from the loader."""

    def __init__(self) -> None:
        super().__init__(
            {
                "common": Out(CONFIGURE.layout),
                "columns": Out(COLUMNS.layout),
                "rows": Out(ROWS.layout),
                "sums": Out(SUMS.layout),
            }
        )


class Loader(wiring.Component):
    """The side of the accelerator that the host writes to.

    Ports besides the bus: what a buffer is given (address, and one write strobe per element or bank), the settings and
    when they are new (``restart``), parameters of both halves, how many whole positions wait, and what the mapper
    (``done``: a position is worked off) and the drain (``left``: a half is needed no more) say.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "source": In(Bus()),
                "running": In(1),
                "settings": Out(Settings()),
                "restart": Out(1),
                "weight_address": Out(range(g.weight_words)),
                "weight_write": Out(g.pe_count),
                "parameters": Out(data.ArrayLayout(data.ArrayLayout(PARAMETERS, g.pe_count), 2)),
                "pixel_address": Out(range(g.input_words)),
                "pixel_write": Out(g.pe_count),
                "pixel_word": Out(PIXEL_BITS * BUS_BYTES),
                "final": Out(2),
                "waiting": Out(16),
                "taken": In(1),
                "done": In(1),
                "left": In(2),
                "took_weights": Out(1),
                "took_inputs": Out(1),
            }
        )

        self._half, self._resident = Signal(init=1), Signal(2)
        self._lane, self._word = Signal(range(g.pe_count)), Signal(16)
        self._slot, self._place = Signal(16), Signal(range(g.input_words))
        self._pixel, self._positions = Signal(range(g.pe_count)), Signal(32)

    def elaborate(self, platform: object) -> Module:
        """A state per section."""
        m = Module()
        source = self.source
        accepted, started, whole = source.valid & source.ready, Signal(), Signal()
        occupied, opens = Signal(16), Signal(2)
        with m.FSM():
            with m.State("HEADER"):
                self._headers(m, accepted, opens)
            with m.State("WEIGHTS"):
                self._weights(m, accepted)
            with m.State("INPUTS"):
                self._inputs(m, accepted, occupied, started, whole)
        pixels = [
            source.data.word_select(i, 8).as_signed() - self.settings.common.x_zero for i in range(BUS_BYTES)
        ]
        m.d.comb += [
            self.pixel_word.eq(Cat(*(p[:PIXEL_BITS] for p in pixels))),
            self.pixel_address.eq(self._place + self._word),
            self.weight_address.eq(Mux(self._half, self.geometry.weight_words // 2, 0) + self._word),
        ]
        m.d.sync += [
            occupied.eq(occupied + started - self.done),
            self.waiting.eq(self.waiting + whole - self.taken),
            self._resident.eq((self._resident & ~self.left) | opens),
        ]
        return m

    def _headers(self, m: Module, accepted: Value, opens: Signal) -> None:
        source, settings, half = self.source, self.settings, self._half
        opcode = data.View(CONFIGURE.layout, source.data).opcode
        held = Mux(half, self._resident[0], self._resident[1])  # the other half
        wait = ((opcode == Opcode.CONFIGURE) & self.running) | ((opcode == Opcode.WEIGHTS) & held)
        m.d.comb += source.ready.eq(~wait)
        m.d.sync += self.restart.eq(0)
        with m.If(accepted), m.Switch(opcode):
            for header, target in (
                (CONFIGURE, settings.common), (COLUMNS, settings.columns), (ROWS, settings.rows), (SUMS, settings.sums),
            ):  # fmt: skip
                with m.Case(int(header.opcode)):
                    m.d.sync += target.eq(data.View(header.layout, source.data))
                    if header is SUMS:
                        m.d.sync += [self.restart.eq(1), half.eq(1), self._slot.eq(0), self._place.eq(0)]
            with m.Case(int(Opcode.WEIGHTS)):
                m.d.comb += opens.eq(Mux(half, 0b01, 0b10))
                m.d.sync += [half.eq(~half), self._lane.eq(0), self._word.eq(0)]
                m.next = "WEIGHTS"
            with m.Case(int(Opcode.INPUTS)):
                inputs = data.View(INPUTS.layout, source.data)
                m.d.sync += [
                    self._positions.eq(inputs.positions), self._word.eq(0), self._pixel.eq(0),
                    self.final.bit_select(half, 1).eq(inputs.final),
                ]  # fmt: skip
                m.next = "INPUTS"

    def _weights(self, m: Module, accepted: Value) -> None:
        """Filters of a group, one channel after the other; its elements all get them."""
        g, common, lane = self.geometry, self.settings.common, self._lane
        mine = Signal(g.pe_count)
        m.d.comb += [
            self.source.ready.eq(1),
            mine.eq(Cat((p >> common.spread) == lane for p in range(g.pe_count))),
        ]
        with m.If(accepted):
            m.d.comb += self.took_weights.eq(1)
            m.d.sync += self._word.eq(self._word + 1)
            with m.If(self._word != common.filter_words):
                m.d.comb += self.weight_write.eq(mine)
            with m.Else():
                parameters = data.View(PARAMETERS, self.source.data)
                with m.Switch(Cat(lane, self._half)):
                    for case in range(2 * g.pe_count):
                        with m.Case(case):
                            target = self.parameters[case // g.pe_count][case % g.pe_count]
                            m.d.sync += target.eq(parameters)
                m.d.sync += [self._word.eq(0), lane.eq(lane + 1)]
                with m.If(lane == (g.pe_count >> common.spread) - 1):
                    m.next = "HEADER"

    def _inputs(self, m: Module, accepted: Value, occupied: Signal, started: Signal, whole: Signal) -> None:
        """Positions, pixel after pixel, each pixel into a bank of its own."""
        common, word, pixel = self.settings.common, self._word, self._pixel
        begins = (word == 0) & (pixel == 0)
        m.d.comb += self.source.ready.eq(~begins | (occupied < common.slots))
        with m.If(accepted):
            m.d.comb += [self.took_inputs.eq(1), self.pixel_write.eq(1 << pixel), started.eq(begins)]
            m.d.sync += word.eq(word + 1)
            with m.If(word == common.words - 1):
                m.d.sync += [word.eq(0), pixel.eq(pixel + 1)]
                with m.If(pixel == (1 << common.spread) - 1):
                    m.d.comb += whole.eq(1)
                    m.d.sync += [
                        pixel.eq(0), self._positions.eq(self._positions - 1),
                        self._slot.eq(self._slot + 1), self._place.eq(self._place + common.words),
                    ]  # fmt: skip
                    with m.If(self._slot == common.slots - 1):
                        m.d.sync += [self._slot.eq(0), self._place.eq(0)]
                    with m.If(self._positions == 1):
                        m.next = "HEADER"
