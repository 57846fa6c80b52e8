"""The way from sums to the bus: a result of all rows at a time, four numbers of 32 bits to a word."""

from __future__ import annotations

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._bfp.datapath import STEP
from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.rtl.sizes import BUS_BITS


class Results(wiring.Component):
    """Holds a finished result until its last word is gone, which is before the next one is finished."""

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "step": In(STEP),
                "sums": In(data.ArrayLayout(signed(32), g.rows)),
                "minima": In(data.ArrayLayout(signed(32), g.rows)),
                "data": Out(BUS_BITS),
                "valid": Out(1),
                "last": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Words in turn."""
        m = Module()
        g = self.geometry
        most = max(g.result_words(wire) for wire in g.wires)
        words = [Signal(BUS_BITS, name=f"word_{i}", reset_less=True) for i in range(most)]
        alone = Cat(*(self.sums[row] for row in range(g.rows)))
        pairs = Cat(*(Cat(self.sums[row], self.minima[row]) for row in range(g.rows)))
        paired = Signal()
        for wire in g.wires:
            if wire.minima:
                with m.If(self.step.format == wire.number):
                    m.d.comb += paired.eq(1)
        flat = Mux(paired, pairs, alone) if g.has_minima else alone
        flat = Cat(flat, Const(0, BUS_BITS * most - min(len(flat), BUS_BITS * most)))
        turn, final = (Signal(range(max(most, 2)), name=name) for name in ("turn", "final"))
        ends = Signal()
        m.d.comb += [
            self.data.eq(Array(words)[turn] if most > 1 else words[0]),
            self.last.eq(ends & (turn == final)),
        ]
        with m.If(self.valid):
            m.d.sync += turn.eq(turn + 1)
            with m.If(turn == final):
                m.d.sync += [turn.eq(0), self.valid.eq(0)]
        with m.If(self.step.enable & self.step.last):
            m.d.sync += [word.eq(flat[BUS_BITS * i : BUS_BITS * (i + 1)]) for i, word in enumerate(words)]
            m.d.sync += [self.valid.eq(1), turn.eq(0), ends.eq(self.step.end)]
            for wire in g.wires:
                with m.If(self.step.format == wire.number):
                    m.d.sync += final.eq(g.result_words(wire) - 1)
        return m
