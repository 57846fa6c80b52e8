"""The hardware: loader, buffers, sequencer, datapath, results and the bus.

Super-blocks of weights arrive in slots of one per row; the sequencer passes each whole slot by all activations while
the next ones arrive. A host that does not take a result stops everything behind the buffers.
"""

from __future__ import annotations

from amaranth.hdl import EnableInserter, Module, Signal, Value
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import connect, flipped

from dlas.hardware.accelerators._bfp.datapath import Datapath
from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.accelerators._bfp.loader import Loader
from dlas.hardware.accelerators._bfp.results import Results
from dlas.hardware.accelerators._bfp.sequencer import Sequencer
from dlas.hardware.accelerators._bfp.unpack import UNPACKERS
from dlas.hardware.rtl.bus import Design
from dlas.hardware.rtl.sizes import BUS_BITS

COUNTERS = ("total", "load_weights", "load_inputs", "load_wait", "compute", "store")


class BfpDesign(Design):
    """The block floating-point accelerator.

    Args:
        geometry: Sizes.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(COUNTERS)

    def elaborate(self, platform: object) -> Module:
        """Put the parts together."""
        m = Module()
        g = self.geometry
        advance = Signal()
        m.submodules.loader = loader = Loader(g)
        sequencer, datapath, results = Sequencer(g), Datapath(g), Results(g)
        for name, part in (("sequencer", sequencer), ("datapath", datapath), ("results", results)):
            m.submodules[name] = EnableInserter(advance)(part)
        connect(m, flipped(self.source), loader.source)
        m.d.comb += [
            advance.eq(~(self.sink.valid & ~self.sink.ready)),
            self.sink.data.eq(results.data), self.sink.valid.eq(results.valid), self.sink.last.eq(results.last),
            loader.taken.eq(sequencer.taken & advance), loader.done.eq(sequencer.done & advance),
            sequencer.inputs.eq(loader.inputs), sequencer.weights.eq(loader.weights),
            sequencer.waiting.eq(loader.waiting),
            results.step.eq(datapath.done), results.sums.eq(datapath.sums), results.minima.eq(datapath.minima),
        ]  # fmt: skip
        sub = Signal(4)
        m.d.comb += sub.eq(sequencer.step * g.groups)
        self._activations(m, advance, loader, sequencer, datapath, sub)
        self._weights(m, advance, loader, sequencer, datapath, sub)
        step = datapath.step
        with m.If(advance):
            m.d.sync += [
                step.format.eq(loader.weights.format), step.sub.eq(sub), step.enable.eq(sequencer.enable),
                step.first.eq(sequencer.first), step.last.eq(sequencer.last), step.end.eq(sequencer.end),
            ]  # fmt: skip
        events = {
            "load_weights": loader.took_weights,
            "load_inputs": loader.took_inputs,
            "compute": sequencer.enable & advance,
        }
        self.count(m, Signal(name="running"), events)
        return m

    def _activations(
        self,
        m: Module,
        advance: Signal,
        loader: Loader,
        sequencer: Sequencer,
        datapath: Datapath,
        sub: Signal,
    ) -> None:
        g = self.geometry
        for group in range(g.groups):
            self._memory(
                m, f"codes_{group}", g.input_blocks * g.steps, advance,
                sequencer.block * g.steps + sequencer.step, datapath.codes[group],
                loader.block * g.steps + (loader.word >> (g.groups - 1)),
                loader.code_write & (loader.word & (g.groups - 1) == group),
            )  # fmt: skip
        self._memory(
            m, "code_sums", g.input_blocks * 2, advance, sequencer.block * 2 + sub[3], datapath.code_sums,
            loader.block * 2 + loader.word[0], loader.sum_write,
        )  # fmt: skip

    def _weights(
        self,
        m: Module,
        advance: Signal,
        loader: Loader,
        sequencer: Sequencer,
        datapath: Datapath,
        sub: Signal,
    ) -> None:
        g = self.geometry
        low_read, high_read = Signal(4), Signal(2)
        with m.Switch(loader.weights.format):
            for wire in g.wires:
                with m.Case(wire.number):
                    m.d.comb += [
                        low_read.eq(UNPACKERS[wire.name].low_address(sub)),
                        high_read.eq(UNPACKERS[wire.name].high_address(sub)),
                    ]
        for row in range(g.rows):
            for group in range(g.groups):
                mine = loader.word & (g.groups - 1) == group
                for name, size, read, target, strobe in (
                    ("low", g.low_words, low_read, datapath.low, loader.low_write),
                    ("high", g.high_words, high_read, datapath.high, loader.high_write),
                ):
                    words = size // g.groups
                    if words:
                        shift = g.groups - 1
                        self._memory(
                            m, f"{name}_{row}_{group}", g.slots * words, advance,
                            sequencer.slot * words + (read >> shift), target[row][group],
                            loader.slot * words + (loader.word >> shift), strobe[row] & mine,
                        )  # fmt: skip
            if g.has_scales:
                self._memory(
                    m, f"scales_{row}", g.slots, advance, sequencer.slot, datapath.scales[row],
                    loader.slot, loader.scale_write[row],
                )  # fmt: skip

    def _memory(
        self,
        m: Module,
        name: str,
        depth: int,
        advance: Signal,
        read_from: Value,
        target: Value,
        write_to: Value,
        strobe: Value,
    ) -> None:
        """A buffer of words of the bus: what is read arrives a cycle later, and stays while nothing advances."""
        m.submodules[name] = memory = Memory(shape=BUS_BITS, depth=depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [
            read.en.eq(advance), read.addr.eq(read_from), target.eq(read.data),
            write.en.eq(strobe), write.addr.eq(write_to), write.data.eq(self.source.data),
        ]  # fmt: skip
