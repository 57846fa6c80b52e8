"""Takes the words of the bus apart: activations into the input buffer, super-blocks of weights into free slots."""

from __future__ import annotations

from collections.abc import Callable

from amaranth.hdl import Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._bfp.formats import INPUT_WORDS, SUB_BLOCK, WireFormat
from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.accelerators._bfp.protocol import INPUTS, WEIGHTS, Opcode
from dlas.hardware.rtl.bus import Bus


class Loader(wiring.Component):
    """The side of the accelerator that the host writes to.

    A section starts when no slot is in use, so that all slots hold one format and the activations can be replaced.
    Ports besides the bus: what is written where, the headers, how many whole slots wait, and the sequencer's progress.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        super().__init__(
            {
                "source": In(Bus()),
                "inputs": Out(INPUTS.layout),
                "weights": Out(WEIGHTS.layout),
                "block": Out(range(g.input_blocks)),
                "slot": Out(range(g.slots)),
                "word": Out(5),
                "code_write": Out(1),
                "sum_write": Out(1),
                "low_write": Out(g.rows),
                "high_write": Out(g.rows),
                "scale_write": Out(g.rows),
                "waiting": Out(range(g.slots + 1)),
                "taken": In(1),
                "done": In(1),
                "took_inputs": Out(1),
                "took_weights": Out(1),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """A state per section."""
        m = Module()
        g, source = self.geometry, self.source
        header = {h.opcode: data.View(h.layout, source.data) for h in (INPUTS, WEIGHTS)}
        blocks, left, row = Signal(16), Signal(32), Signal(range(max(g.rows, 2)))
        occupied, started, whole = Signal(range(g.slots + 1)), Signal(), Signal()
        word, accepted = Signal(5), Signal()
        m.d.comb += accepted.eq(source.valid & source.ready)
        with m.FSM():
            with m.State("HEADER"):
                m.d.comb += source.ready.eq(occupied == 0)
                with m.If(accepted):
                    m.d.sync += [word.eq(0), row.eq(0), self.slot.eq(0), self.block.eq(0)]
                    with m.If(header[Opcode.INPUTS].opcode == int(Opcode.INPUTS)):
                        m.d.sync += [
                            self.inputs.eq(header[Opcode.INPUTS]),
                            blocks.eq(header[Opcode.INPUTS].blocks),
                        ]
                        m.next = "INPUTS"
                    with m.Else():
                        m.d.sync += [
                            self.weights.eq(header[Opcode.WEIGHTS]),
                            left.eq(header[Opcode.WEIGHTS].slots),
                        ]
                        m.next = "WEIGHTS"
            with m.State("INPUTS"):
                m.d.comb += source.ready.eq(1)
                with m.If(accepted):
                    m.d.comb += [
                        self.took_inputs.eq(1),
                        self.code_write.eq(word < SUB_BLOCK), self.sum_write.eq(word >= SUB_BLOCK),
                    ]  # fmt: skip
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == INPUT_WORDS - 1):
                        m.d.sync += [word.eq(0), self.block.eq(self.block + 1), blocks.eq(blocks - 1)]
                        with m.If(blocks == 1):
                            m.next = "HEADER"
            with m.State("WEIGHTS"):
                m.d.comb += source.ready.eq((word != 0) | (row != 0) | (occupied < g.slots))
                with m.If(accepted):
                    m.d.comb += [self.took_weights.eq(1), started.eq((word == 0) & (row == 0))]
                    m.d.sync += word.eq(word + 1)
                    with m.If(word == self._words(m, "words", lambda w: w.words - 1)):
                        m.d.sync += [word.eq(0), row.eq(row + 1)]
                        with m.If(row == g.rows - 1):
                            m.d.comb += whole.eq(1)
                            m.d.sync += [row.eq(0), left.eq(left - 1), self.slot.eq(self.slot + 1)]
                            with m.If(left == 1):
                                m.next = "HEADER"
        self._planes(m, word, row)
        m.d.sync += [
            occupied.eq(occupied + started - self.done),
            self.waiting.eq(self.waiting + whole - self.taken),
        ]
        return m

    def _planes(self, m: Module, word: Signal, row: Signal) -> None:
        """Low bits come first, then high bits, then the scales."""
        low = self._words(m, "low", lambda w: w.low[1])
        both = self._words(m, "both", lambda w: w.low[1] + w.high[1])
        strobe = Signal(self.geometry.rows)
        m.d.comb += [
            strobe.eq(Mux(self.took_weights, 1 << row, 0)),
            self.low_write.eq(Mux(word < low, strobe, 0)),
            self.high_write.eq(Mux((word >= low) & (word < both), strobe, 0)),
            self.scale_write.eq(Mux(word >= both, strobe, 0)),
            # Within its plane; activations go by the word as it comes.
            self.word.eq(Mux(self.took_inputs | (word < low), word, word - low)),
        ]

    def _words(self, m: Module, name: str, count: Callable[[WireFormat], int]) -> Value:
        """A property of the format of this section."""
        found = Signal(5, name=name)
        with m.Switch(self.weights.format):
            for wire in self.geometry.wires:
                with m.Case(wire.number):
                    m.d.comb += found.eq(count(wire))
        return found
