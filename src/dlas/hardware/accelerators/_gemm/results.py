"""The way from sums to the bus: rows in turn through requantisation, bytes into words, units in turn."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._gemm.geometry import ROWS_PER_PARAMETERS, Geometry
from dlas.hardware.accelerators._gemm.protocol import CONFIGURE
from dlas.hardware.rtl.requantize import Requantize
from dlas.hardware.rtl.sizes import BUS_BITS


class Results(wiring.Component):
    """Works off one pass after another; ``start`` comes one cycle before the sums of row 0 can be read.

    Args:
        geometry: Sizes.
        modes: Roundings that are built.
    """

    def __init__(self, geometry: Geometry, modes: tuple[str, ...]) -> None:
        g, self.modes = geometry, modes
        self.geometry = g
        lines = range(g.channel_slots // ROWS_PER_PARAMETERS)
        super().__init__(
            {
                "settings": In(CONFIGURE.layout),
                "start": In(1),
                "end": In(1),
                "address": In(lines),
                "parameter_address": Out(lines),
                "biases": In(data.ArrayLayout(BUS_BITS, g.units)),
                "multipliers": In(data.ArrayLayout(BUS_BITS, g.units)),
                "shifts": In(data.ArrayLayout(8 * ROWS_PER_PARAMETERS, g.units)),
                "row": Out(range(g.rows)),
                "sums": In(data.ArrayLayout(data.ArrayLayout(signed(32), g.columns), g.units)),
                "busy": Out(1),
                "data": Out(BUS_BITS),
                "valid": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Row counter, requantisation per unit, words."""
        m = Module()
        g = self.geometry
        line, ends = Signal.like(self.address), Signal()
        ahead = Signal(range(g.rows + 1))
        m.d.comb += [
            ahead.eq(Mux(self.busy, self.row + 1, 0)),
            self.parameter_address.eq(Mux(self.start, self.address, line + (ahead >> 2))),
        ]
        with m.If(self.busy):
            m.d.sync += self.row.eq(self.row + 1)
            with m.If(self.row == g.rows - 1):
                m.d.sync += self.busy.eq(0)
        with m.If(self.start):
            m.d.sync += [self.busy.eq(1), self.row.eq(0), line.eq(self.address), ends.eq(self.end)]
        state = Cat(self.busy, ends, self.row)  # goes along with the bytes
        for i in range(Requantize.latency):
            later = Signal(len(state), name=f"state_{i}")
            m.d.sync += later.eq(state)
            state = later
        valid, ending, row = state[0], state[1], state[2:]
        per_word = g.rows_per_word
        place, is_whole = row & (per_word - 1), Signal()
        m.d.comb += is_whole.eq(valid & (place == per_word - 1))
        lane = self.row & (ROWS_PER_PARAMETERS - 1)
        words = []
        for unit in range(g.units):
            m.submodules[f"requantize_{unit}"] = part = Requantize(g.columns, self.modes)
            m.d.comb += [
                part.sums.eq(self.sums[unit]),
                part.bias.eq(self.biases[unit].word_select(lane, 32).as_signed()),
                part.multiplier.eq(self.multipliers[unit].word_select(lane, 32).as_signed()),
                part.shift.eq(self.shifts[unit].word_select(lane, 8).as_signed()),
                part.mode.eq(self.settings.mode),
                part.zero_point.eq(self.settings.zero_point),
                part.low.eq(self.settings.low),
                part.high.eq(self.settings.high),
            ]
            now, word = part.bytes.as_value(), Signal(BUS_BITS, name=f"word_{unit}")
            parts = []
            for i in range(per_word - 1):
                kept = Signal(8 * g.columns, name=f"kept_{unit}_{i}")
                with m.If(valid & (place == i)):
                    m.d.sync += kept.eq(now)
                parts.append(kept)
            with m.If(is_whole):
                m.d.sync += word.eq(Cat(*parts, now))
            words.append(word)
        turn, ending_word = Signal(range(max(g.units, 2))), Signal()
        m.d.comb += [
            self.data.eq(Array(words)[turn]),
            self.last.eq(ending_word & (turn == g.units - 1)),
        ]
        with m.If(self.valid):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn == g.units - 1):
                m.d.sync += [turn.eq(0), self.valid.eq(0)]
        with m.If(is_whole):
            m.d.sync += [self.valid.eq(1), turn.eq(0), ending_word.eq(ending & (row == g.rows - 1))]
        return m
