"""Says what the array multiplies when: tile by tile, past every resident block of weights."""

from __future__ import annotations

from amaranth.hdl import Module, Mux, Signal
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._gemm.geometry import ROWS_PER_PARAMETERS, Geometry
from dlas.hardware.accelerators._gemm.protocol import CONFIGURE


class Sequencer(wiring.Component):
    """Addresses and flags for the array. Its registers stand still while results are held up."""

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        per_half = data.ArrayLayout
        super().__init__(
            {
                "settings": In(CONFIGURE.layout),
                "restart": In(1),
                "blocks": In(per_half(16, 2)),
                "tiles": In(per_half(32, 2)),
                "final": In(per_half(1, 2)),
                "waiting": In(16),
                "taken": Out(1),
                "done": Out(1),
                "half": Out(1),
                "pixel_address": Out(range(g.input_words)),
                "weight_address": Out(range(g.weight_words)),
                "weight_step": Out(range(max(g.steps_per_word, 2))),
                "parameter_address": Out(range(g.channel_slots // ROWS_PER_PARAMETERS)),
                "enable": Out(1),
                "first": Out(1),
                "last": Out(1),
                "end": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Counters of steps, blocks and tiles."""
        m = Module()
        g, settings = self.geometry, self.settings
        step, block, tile, slot = Signal(16), Signal(16), Signal(32), Signal(16)
        base, row_base = Signal(range(g.input_words)), Signal.like(self.weight_address)
        line = Signal.like(self.parameter_address)
        shift = g.steps_per_word.bit_length() - 1
        words, lines = Signal(16), g.rows // ROWS_PER_PARAMETERS
        going, pass_ends, tile_ends = Signal(), Signal(), Signal()
        group_ends = tile == self.tiles[self.half] - 1
        new_half = self.half ^ group_ends
        m.d.comb += [
            words.eq((settings.steps + g.steps_per_word - 1) >> shift),
            going.eq((step != 0) | (block != 0) | (self.waiting != 0)),
            self.enable.eq(going & (step < settings.steps)),
            self.first.eq(step == 0),
            self.last.eq(step == settings.steps - 1),
            pass_ends.eq(going & (step == settings.interval - 1)),
            tile_ends.eq(pass_ends & (block == self.blocks[self.half] - 1)),
            self.taken.eq(going & (step == 0) & (block == 0)),
            self.done.eq(tile_ends),
            self.end.eq((block == self.blocks[self.half] - 1) & group_ends & self.final[self.half]),
            self.pixel_address.eq(base + step),
            self.weight_address.eq(row_base + (step >> shift)),
            self.weight_step.eq(step & (g.steps_per_word - 1)),
            self.parameter_address.eq(line),
        ]
        with m.If(going):
            m.d.sync += step.eq(step + 1)
        with m.If(pass_ends):
            m.d.sync += [
                step.eq(0),
                block.eq(block + 1),
                row_base.eq(row_base + words),
                line.eq(line + lines),
            ]
        with m.If(tile_ends):
            m.d.sync += [
                block.eq(0),
                tile.eq(Mux(group_ends, 0, tile + 1)),
                self.half.eq(new_half),
                row_base.eq(Mux(new_half, g.weight_words // 2, 0)),
                line.eq(Mux(new_half, g.channel_slots // ROWS_PER_PARAMETERS // 2, 0)),
                slot.eq(slot + 1),
                base.eq(base + settings.steps),
            ]
            with m.If(slot == settings.slots - 1):
                m.d.sync += [slot.eq(0), base.eq(0)]
        with m.If(self.restart):
            m.d.sync += [slot.eq(0), base.eq(0)]
        return m
