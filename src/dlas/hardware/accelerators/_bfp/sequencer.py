"""Says what is multiplied when: slot by slot, past every row of activations."""

from __future__ import annotations

from amaranth.hdl import Module, Signal
from amaranth.lib import wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.accelerators._bfp.protocol import INPUTS, WEIGHTS


class Sequencer(wiring.Component):
    """Counters of steps, passes, blocks and slots. They stand still while results are held up.

    Activations lie in the order in which they are met: all rows of the first super-block, then those of the second.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "inputs": In(INPUTS.layout),
                "weights": In(WEIGHTS.layout),
                "waiting": In(range(g.slots + 1)),
                "taken": Out(1),
                "done": Out(1),
                "slot": Out(range(g.slots)),
                "block": Out(range(g.input_blocks)),
                "step": Out(range(g.steps)),
                "enable": Out(1),
                "first": Out(1),
                "last": Out(1),
                "end": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The counters."""
        m = Module()
        g = self.geometry
        passed, number = Signal(16), Signal(32)
        last_step, last_pass, last_slot = Signal(), Signal(), Signal()
        m.d.comb += [
            self.enable.eq((self.step != 0) | (passed != 0) | (self.waiting != 0)),
            last_step.eq(self.step == g.steps - 1),
            last_pass.eq(passed == self.inputs.passes - 1),
            self.taken.eq(self.enable & (self.step == 0) & (passed == 0)),
            self.done.eq(self.enable & last_step & last_pass),
            last_slot.eq(number == self.weights.slots - 1),
            self.end.eq(last_step & last_pass & last_slot & self.weights.final),
        ]
        with m.Switch(self.weights.format):
            for wire in g.wires:
                with m.Case(wire.number):
                    period = max(wire.period // g.groups, 1)
                    place = self.step & (period - 1)
                    m.d.comb += [self.first.eq(place == 0), self.last.eq(place == period - 1)]
        with m.If(self.enable):
            m.d.sync += self.step.eq(self.step + 1)
            with m.If(last_step):
                m.d.sync += [passed.eq(passed + 1), self.block.eq(self.block + 1)]
                with m.If(self.block == self.inputs.blocks - 1):
                    m.d.sync += self.block.eq(0)
        with m.If(self.done):
            m.d.sync += [passed.eq(0), number.eq(number + 1), self.slot.eq(self.slot + 1)]
            with m.If(last_slot):  # the loader starts its next section at slot 0
                m.d.sync += [number.eq(0), self.slot.eq(0)]
        return m
