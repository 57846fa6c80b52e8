"""The hardware around an array: loader, buffers, sequencer, the way back to bytes, and the bus.

The loader takes words as they come. Weights go into the half of the weight buffers that no tile of pixels needs any
more, input into a ring of tiles; so the next weights and tiles arrive while the array works. The sequencer takes a tile
as soon as it is whole and passes it by every resident block of weights, one pass every ``interval`` cycles. Results
leave in the order of tiles, blocks, units. A host that does not take a result stops everything behind the buffers.
"""

from __future__ import annotations

from amaranth.hdl import Cat, EnableInserter, Module, Mux, Signal
from amaranth.lib.memory import Memory
from amaranth.lib.wiring import connect, flipped

from dlas.hardware.accelerators._gemm.geometry import READ_LATENCY, ROWS_PER_PARAMETERS, Geometry
from dlas.hardware.accelerators._gemm.loader import Loader
from dlas.hardware.accelerators._gemm.results import Results
from dlas.hardware.accelerators._gemm.sequencer import Sequencer
from dlas.hardware.rtl.arrays import SumArray
from dlas.hardware.rtl.bus import Design
from dlas.hardware.rtl.sizes import BUS_BITS

COUNTERS = ("total", "load_weights", "load_inputs", "load_wait", "compute", "post", "store")


class GemmDesign(Design):
    """A matrix-product accelerator.

    Args:
        geometry: Sizes.
        array: What multiplies, of the same sizes.
        modes: Roundings that are built.
    """

    def __init__(self, geometry: Geometry, array: SumArray, modes: tuple[str, ...]) -> None:
        self.geometry, self.array, self.modes = geometry, array, modes
        super().__init__(COUNTERS)

    def elaborate(self, platform: object) -> Module:
        """Put the parts together."""
        m = Module()
        g = self.geometry
        advance, running = Signal(), Signal()
        m.submodules.loader = loader = Loader(g)
        sequencer, results, array = Sequencer(g), Results(g, self.modes), self.array
        for name, part in (("sequencer", sequencer), ("array", array), ("results", results)):
            m.submodules[name] = EnableInserter(advance)(part)
        connect(m, flipped(self.source), loader.source)
        m.d.comb += [
            advance.eq(~(self.sink.valid & ~self.sink.ready)),
            self.sink.data.eq(results.data), self.sink.valid.eq(results.valid), self.sink.last.eq(results.last),
            loader.running.eq(running),
            loader.taken.eq(sequencer.taken & advance), loader.done.eq(sequencer.done & advance),
            sequencer.settings.eq(loader.settings), results.settings.eq(loader.settings),
            sequencer.blocks.eq(loader.blocks), sequencer.tiles.eq(loader.tiles),
            sequencer.final.eq(loader.final), sequencer.waiting.eq(loader.waiting),
            sequencer.restart.eq(loader.restart),
        ]  # fmt: skip
        self._buffers(m, advance, loader, sequencer, results)
        self._follow(m, advance, loader, sequencer, results)
        self._count(m, advance, running, loader, sequencer, results)
        return m

    def _buffers(
        self, m: Module, advance: Signal, loader: Loader, sequencer: Sequencer, results: Results
    ) -> None:
        g = self.geometry
        word = self.source.data
        pixels = self._memory(m, "pixels", BUS_BITS, g.input_words, advance, loader.pixel_address)
        m.d.comb += [
            pixels[0].addr.eq(sequencer.pixel_address), pixels[1].en.eq(loader.pixel_write), pixels[1].data.eq(word),
        ]  # fmt: skip
        operands = [(self.array.pixels, pixels[0].data)]
        chosen = Signal.like(sequencer.weight_step)
        with m.If(advance):
            m.d.sync += chosen.eq(sequencer.weight_step)
        step_bits, several = BUS_BITS // g.steps_per_word, g.steps_per_word > 1
        lines = g.channel_slots // ROWS_PER_PARAMETERS
        for unit in range(g.units):
            read, write = self._memory(
                m, f"weights_{unit}", BUS_BITS, g.weight_words, advance, loader.weight_address
            )
            m.d.comb += [
                read.addr.eq(sequencer.weight_address), write.en.eq(loader.weight_write[unit]), write.data.eq(word),
            ]  # fmt: skip
            operands.append(
                (self.array.weights[unit], read.data.word_select(chosen, step_bits) if several else read.data)
            )
            for name, width, strobe, target in (
                ("biases", BUS_BITS, loader.bias_write, results.biases),
                ("multipliers", BUS_BITS, loader.multiplier_write, results.multipliers),
                ("shifts", 8 * ROWS_PER_PARAMETERS, loader.shift_write, results.shifts),
            ):
                read, write = self._memory(
                    m, f"{name}_{unit}", width, lines, advance, loader.parameter_address
                )
                m.d.comb += [
                    read.addr.eq(results.parameter_address), target[unit].eq(read.data),
                    write.en.eq(strobe[unit]), write.data.eq(word[:width]),
                ]  # fmt: skip

        # A register before the array: a buffer gives its word late in the cycle.
        with m.If(advance):
            for place, (port, value) in enumerate(operands):
                held = Signal(len(value), name=f"operand_{place}", reset_less=True)
                m.d.sync += held.eq(value)
                m.d.comb += port.eq(held)

    def _memory(
        self, m: Module, name: str, width: int, depth: int, advance: Signal, write_to: Signal
    ) -> tuple:
        m.submodules[name] = memory = Memory(shape=width, depth=depth, init=[])
        read, write = memory.read_port(), memory.write_port()
        m.d.comb += [read.en.eq(advance), write.addr.eq(write_to)]
        return read, write

    def _follow(
        self, m: Module, advance: Signal, loader: Loader, sequencer: Sequencer, results: Results
    ) -> None:
        """Flags beside the data: as far behind the addresses into the array as they, and past it to the results."""
        array = self.array
        flags = Cat(sequencer.enable & sequencer.last, sequencer.end, sequencer.parameter_address)
        # Parameters are read until the last row of a tile is on its way back to bytes.
        left = Cat(sequencer.done & ~sequencer.half, sequencer.done & sequencer.half)
        with m.If(advance):
            for i in range(self.geometry.leaving):
                later = Signal(2, name=f"left_{i}")
                m.d.sync += later.eq(left)
                left = later
            inward = Cat(sequencer.first, sequencer.last, sequencer.enable)
            for i in range(READ_LATENCY):
                later = Signal(3, name=f"inward_{i}")
                m.d.sync += later.eq(inward)
                inward = later
            for i in range(READ_LATENCY - 1 + array.latency):
                later = Signal(len(flags), name=f"flags_{i}")
                m.d.sync += later.eq(flags)
                flags = later
        m.d.comb += [
            Cat(array.first, array.last, array.enable).eq(inward),
            loader.left.eq(Mux(advance, left, 0)),
            results.start.eq(flags[0]), results.end.eq(flags[1]), results.address.eq(flags[2:]),
            array.row.eq(results.row), results.sums.eq(array.sums),
        ]  # fmt: skip

    def _count(
        self,
        m: Module,
        advance: Signal,
        running: Signal,
        loader: Loader,
        sequencer: Sequencer,
        results: Results,
    ) -> None:
        events = {
            "load_weights": loader.took_weights,
            "load_inputs": loader.took_inputs,
            "compute": sequencer.enable & advance,
            "post": results.busy & advance,
        }
        self.count(m, running, events)
