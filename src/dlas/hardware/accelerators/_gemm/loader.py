"""Takes the words of the bus apart: settings into registers, weights and pixels into buffers with room."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._gemm.geometry import ROWS_PER_PARAMETERS, Geometry
from dlas.hardware.accelerators._gemm.protocol import CONFIGURE, INPUTS, WEIGHTS, Opcode
from dlas.hardware.rtl.bus import Bus


class Loader(wiring.Component):
    """The side of the accelerator that the host writes to.

    Ports besides the bus: what a buffer is given (address, and one write strobe per unit and kind), the settings, what
    the two halves of the weight buffers hold, how many whole tiles wait, and what the sequencer says of its progress.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        per_half = data.ArrayLayout
        super().__init__(
            {
                "source": In(Bus()),
                "running": In(1),
                "settings": Out(CONFIGURE.layout),
                "restart": Out(1),
                "weight_address": Out(range(g.weight_words)),
                "weight_write": Out(g.units),
                "parameter_address": Out(range(g.channel_slots // ROWS_PER_PARAMETERS)),
                "bias_write": Out(g.units),
                "multiplier_write": Out(g.units),
                "shift_write": Out(g.units),
                "pixel_address": Out(range(g.input_words)),
                "pixel_write": Out(1),
                "blocks": Out(per_half(16, 2)),
                "tiles": Out(per_half(32, 2)),
                "final": Out(per_half(1, 2)),
                "waiting": Out(16),
                "taken": In(1),
                "done": In(1),
                "left": In(2),
                "took_weights": Out(1),
                "took_inputs": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A state per section."""
        m = Module()
        g, source = self.geometry, self.source
        steps = self.settings.steps
        header = {h.opcode: data.View(h.layout, source.data) for h in (CONFIGURE, WEIGHTS, INPUTS)}
        half, unit = Signal(init=1), Signal(range(max(g.units, 2)))
        block, word = Signal(16), Signal(16)
        base, line = Signal(range(g.weight_words)), Signal(range(g.channel_slots))
        kind, group = Signal(2), Signal(range(max(g.rows // ROWS_PER_PARAMETERS, 2)))
        slot, tile, place = Signal(16), Signal(32), Signal(range(g.input_words))
        occupied, whole = Signal(16), Signal()
        pending = [Signal(16, name=f"pending_{i}") for i in range(2)]
        words = Signal(16)  # of a block in one unit
        shift = g.steps_per_word.bit_length() - 1
        m.d.comb += words.eq((steps + g.steps_per_word - 1) >> shift)
        last_unit, last_block = unit == g.units - 1, block == self.blocks[half] - 1
        m.d.comb += [
            self.weight_address.eq(base + word),
            self.parameter_address.eq(line + group),
            self.pixel_address.eq(place),
        ]
        accepted = source.valid & source.ready
        started = Signal()
        with m.FSM():
            with m.State("HEADER"):
                opcode = header[Opcode.CONFIGURE].opcode
                needed = Mux(half, pending[0], pending[1]) != 0  # the other half, by tiles before
                wait = ((opcode == Opcode.CONFIGURE) & self.running) | ((opcode == Opcode.WEIGHTS) & needed)
                m.d.comb += source.ready.eq(~wait)
                with m.If(accepted), m.Switch(opcode):
                    with m.Case(int(Opcode.CONFIGURE)):
                        m.d.comb += self.restart.eq(1)
                        m.d.sync += [self.settings.eq(header[Opcode.CONFIGURE]), slot.eq(0), place.eq(0)]
                    with m.Case(int(Opcode.WEIGHTS)):
                        m.d.sync += [
                            half.eq(~half),
                            self.blocks[~half].eq(header[Opcode.WEIGHTS].blocks),
                            base.eq(Mux(half, 0, g.weight_words // 2)),
                            line.eq(Mux(half, 0, g.channel_slots // ROWS_PER_PARAMETERS // 2)),
                            block.eq(0), unit.eq(0), word.eq(0), kind.eq(0), group.eq(0),
                        ]  # fmt: skip
                        m.next = "WEIGHTS"
                    with m.Case(int(Opcode.INPUTS)):
                        m.d.sync += [
                            self.tiles[half].eq(header[Opcode.INPUTS].tiles),
                            self.final[half].eq(header[Opcode.INPUTS].final),
                            tile.eq(0), word.eq(0),
                        ]  # fmt: skip
                        m.next = "INPUTS"
            with m.State("WEIGHTS"):
                m.d.comb += source.ready.eq(1)
                with m.If(accepted):
                    m.d.comb += [self.weight_write.eq(1 << unit), self.took_weights.eq(1)]
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == words - 1):
                        m.d.sync += [word.eq(0), unit.eq(unit + 1)]
                        with m.If(last_unit):
                            m.d.sync += [unit.eq(0), block.eq(block + 1), base.eq(base + words)]
                            with m.If(last_block):
                                m.d.sync += block.eq(0)
                                m.next = "PARAMETERS"
            with m.State("PARAMETERS"):
                m.d.comb += source.ready.eq(1)
                with m.If(accepted):
                    m.d.comb += self.took_weights.eq(1)
                    with m.Switch(kind):
                        with m.Case(0):
                            m.d.comb += self.bias_write.eq(1 << unit)
                        with m.Case(1):
                            m.d.comb += self.multiplier_write.eq(1 << unit)
                        with m.Default():
                            m.d.comb += self.shift_write.eq(1 << unit)
                    m.d.sync += kind.eq(kind + 1)
                    with m.If(kind == 2):
                        m.d.sync += [kind.eq(0), group.eq(group + 1)]
                        with m.If(group == g.rows // ROWS_PER_PARAMETERS - 1):
                            m.d.sync += [group.eq(0), unit.eq(unit + 1)]
                            with m.If(last_unit):
                                m.d.sync += [
                                    unit.eq(0),
                                    block.eq(block + 1),
                                    line.eq(line + g.rows // ROWS_PER_PARAMETERS),
                                ]
                                with m.If(last_block):
                                    m.next = "HEADER"
            with m.State("INPUTS"):
                m.d.comb += source.ready.eq((word != 0) | (occupied < self.settings.slots))
                with m.If(accepted):
                    m.d.comb += [
                        self.pixel_write.eq(1), self.took_inputs.eq(1), started.eq(word == 0),
                    ]  # fmt: skip
                    m.d.sync += [word.eq(word + 1), place.eq(place + 1)]
                    with m.If(word == steps - 1):
                        m.d.comb += whole.eq(1)
                        m.d.sync += [word.eq(0), slot.eq(slot + 1), tile.eq(tile + 1)]
                        with m.If(slot == self.settings.slots - 1):
                            m.d.sync += [slot.eq(0), place.eq(0)]
                        with m.If(tile == self.tiles[half] - 1):
                            m.next = "HEADER"
        m.d.sync += [
            occupied.eq(occupied + started - self.done),
            self.waiting.eq(self.waiting + whole - self.taken),
        ]
        for i in range(2):
            m.d.sync += pending[i].eq(pending[i] + (whole & (half == i)) - self.left[i])
        return m
