"""Bit strings of any length to words of the bus, and back."""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.rtl.sizes import BUS_BITS

MOST = 64  # bits that go in or out in a cycle


class Packer(wiring.Component):
    """Joins up to 64 bits per cycle to words, the first bit lowest.

    ``bits`` are 0 above ``length``. A word is there in the cycle of the bits that fill it; ``flush`` gives the rest.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "bits": In(MOST),
                "length": In(range(MOST + 1)),
                "flush": In(1),
                "word": Out(BUS_BITS),
                "valid": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """What is left over, and the bits behind it."""
        m = Module()
        rest, fill = Signal(BUS_BITS), Signal(range(BUS_BITS))
        joined, total = Signal(BUS_BITS + MOST), Signal(range(BUS_BITS + MOST))
        m.d.comb += [
            joined.eq(rest | (self.bits << fill)),
            total.eq(fill + self.length),
            self.word.eq(joined[:BUS_BITS]),
        ]
        with m.If(self.flush):
            m.d.comb += self.valid.eq(fill != 0)
            m.d.sync += [rest.eq(0), fill.eq(0)]
        with m.Elif(total >= BUS_BITS):
            m.d.comb += self.valid.eq(1)
            m.d.sync += [rest.eq(joined[BUS_BITS:]), fill.eq(total - BUS_BITS)]
        with m.Else():
            m.d.sync += [rest.eq(joined), fill.eq(total)]
        return m


class Unpacker(wiring.Component):
    """Gives up to 64 bits per cycle of a string that comes in words.

    ``bits`` shows the next ones, of which ``fill`` are there (0 behind them); ``take`` of them leave. A word is taken
    whenever there is room for it, in a cycle with ``valid`` and ``ready``. ``clear`` drops what is left.
    """

    def __init__(self) -> None:
        super().__init__(
            {
                "data": In(BUS_BITS),
                "valid": In(1),
                "ready": Out(1),
                "clear": In(1),
                "bits": Out(MOST),
                "fill": Out(range(2 * BUS_BITS + 1)),
                "take": In(range(MOST + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Two words of room."""
        m = Module()
        held, left = Signal(2 * BUS_BITS), Signal(2 * BUS_BITS)
        after = Signal(range(2 * BUS_BITS + 1))
        m.d.comb += [
            self.ready.eq(self.fill <= BUS_BITS),
            self.bits.eq(held),
            left.eq(held >> self.take),
            after.eq(self.fill - self.take),
        ]
        m.d.sync += [held.eq(left), self.fill.eq(after)]
        with m.If(self.valid & self.ready):
            room = after[: BUS_BITS.bit_length()]  # at most a word is left where another one comes
            m.d.sync += [
                held.eq(left | (Cat(self.data, Const(0, BUS_BITS)) << room)[: 2 * BUS_BITS]),
                self.fill.eq(after + BUS_BITS),
            ]
        with m.If(self.clear):
            m.d.sync += [held.eq(0), self.fill.eq(0)]
        return m
