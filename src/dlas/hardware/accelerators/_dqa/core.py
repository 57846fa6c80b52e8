"""The activation quantiser itself: one command at a time, one phase after the other.

``STORE``: the values are loaded while their peak is found; quantised (the kept bits leave, the residues stay and are
counted); the code table is made; the residues are encoded. ``RESTORE``: the table is made from its lengths; the payload
is decoded to residues; joined with the kept bits they become values.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.memory import Memory, ReadPort, WritePort
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._dqa.bits import Packer, Unpacker
from dlas.hardware.accelerators._dqa.geometry import (
    DEQUANTIZER_LATENCY,
    ENCODER_LATENCY,
    LANES,
    SYMBOLS,
    Geometry,
)
from dlas.hardware.accelerators._dqa.lanes import MAGNITUDE, Decode, Dequantize, Encode, Quantize, magnitude
from dlas.hardware.accelerators._dqa.protocol import RESTORE, STORE, TABLE, Opcode
from dlas.hardware.accelerators._dqa.table import CodeTable
from dlas.hardware.rtl.bus import Bus
from dlas.hardware.rtl.sizes import BUS_BITS

PHASES = ("load", "quantize", "table", "encode", "decode", "dequantize")


class Core(wiring.Component):
    """Everything but the counters. It stands still, as a whole, while a result is not taken.

    Args:
        geometry: Sizes.

    Attributes:
        phase: One bit per name of :data:`PHASES`.
    """

    source: Bus
    sink: Bus
    phase: Signal

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = g = geometry
        super().__init__({"source": In(Bus()), "sink": Out(Bus()), "phase": Out(len(PHASES))})
        depth = g.rows(g.values)
        self._count, self._rows = Signal(16), Signal(range(depth + 1))
        self._step = Signal(range(depth + 32))  # of a phase: its row, and the cycles behind the last row
        self._peak, self._words_left = Signal(MAGNITUDE), Signal(16)
        self._counts = [Signal(g.values.bit_length(), name=f"count_{s}") for s in range(SYMBOLS)]
        # Set in one phase each: rows that go into a pipeline.
        self._quantizing, self._encoding, self._dequantizing = Signal(), Signal(), Signal()
        self._last_row, self._mask = Signal(), Signal(LANES)
        self._values, self._residues = (
            Memory(shape=width, depth=depth, init=[]) for width in (BUS_BITS, LANES * g.residual)
        )
        self._table, self._packer, self._unpacker = CodeTable(g), Packer(), Unpacker()

    def elaborate(self, platform: object) -> Module:
        """Buffers, pipelines, and the phases."""
        m = Module()
        m.submodules.values, m.submodules.residues = self._values, self._residues
        m.submodules.table, m.submodules.packer, m.submodules.unpacker = (
            self._table, self._packer, self._unpacker,
        )  # fmt: skip
        load, read = self._values.write_port(), self._values.read_port()
        keep, fetch = self._residues.write_port(), self._residues.read_port()
        tail = (1 << self._count[:3])[:LANES] - 1
        last = self._step == self._rows - 1
        m.d.comb += [
            self._last_row.eq(last),
            self._mask.eq(Mux(last & (self._count[:3] != 0), tail, ~0)),
            self._table.plain_bits.eq(self._count * self.geometry.residual),
            self._unpacker.data.eq(self.source.data),
            load.addr.eq(self._step), load.data.eq(self.source.data), read.addr.eq(self._step),
            fetch.addr.eq(self._step + self._dequantizing),
        ]  # fmt: skip
        m.d.comb += [self._table.counts[s].eq(count) for s, count in enumerate(self._counts)]
        m.d.sync += self.sink.valid.eq(0)  # nothing moves in a cycle in which the last word stays
        self._quantizer(m, read, keep)
        self._encoder(m, fetch)
        leaving = self._dequantizer(m, fetch)
        with m.FSM():
            with m.State("HEADER"):
                self._header(m)
            with m.State("LOAD"):
                self._load(m, load)
            with m.State("QUANTIZE"):
                self._quantize(m)
            with m.State("TABLE"):
                self._make_table(m)
            with m.State("ENCODE"):
                self._encode(m)
            with m.State("READ_TABLE"):
                self._now(m, "table")
                with m.If(self._table.idle):
                    m.next = "DECODE"
            with m.State("DECODE"):
                self._decode(m, keep)
            with m.State("DEQUANTIZE"):
                self._dequantize(m, leaving)
        return m

    def _now(self, m: Module, phase: str) -> None:
        m.d.comb += self.phase[PHASES.index(phase)].eq(1)

    def _quantizer(self, m: Module, read: ReadPort, keep: WritePort) -> None:
        """Values to codes: kept bits to the packer, residues to their buffer and counted."""
        g = self.geometry
        m.submodules.quantize = part = Quantize(g)
        valid, mask = _delayed(m, (self._quantizing, self._mask), 1 + g.quantizer_latency, "quantized")
        written = Signal(range(g.rows(g.values)))
        low, high = (
            [part.codes[i][: g.residual] for i in range(LANES)],
            [part.codes[i][g.residual :] for i in range(LANES)],
        )
        m.d.comb += [
            part.values.eq(read.data), part.peak.eq(self._peak),
            keep.addr.eq(written), keep.data.eq(Cat(*low)), keep.en.eq(valid),
        ]  # fmt: skip
        with m.If(valid):
            m.d.comb += [self._packer.bits.eq(Cat(*high)), self._packer.length.eq(LANES * g.kept)]
            m.d.sync += written.eq(written + 1)
            for s, count in enumerate(self._counts):
                m.d.sync += count.eq(count + sum(bit & (r == s) for bit, r in zip(mask, low, strict=True)))
        with m.Else():
            m.d.sync += written.eq(0)

    def _encoder(self, m: Module, fetch: ReadPort) -> None:
        """Residues to codes and to the packer; whatever the packer gives goes to the bus."""
        m.submodules.encode = part = Encode(self.geometry)
        valid, mask = _delayed(m, (self._encoding, self._mask), 1, "fetched")
        (joined,) = _delayed(m, (valid,), ENCODER_LATENCY, "joined")
        m.d.comb += [
            part.residues.eq(fetch.data), part.mask.eq(Mux(valid, mask, 0)),
            part.codes.eq(self._table.codes), part.sizes.eq(self._table.sizes),
        ]  # fmt: skip
        with m.If(joined):
            m.d.comb += [self._packer.bits.eq(part.bits), self._packer.length.eq(part.length)]
        with m.If(self._packer.valid):
            m.d.sync += [self.sink.valid.eq(1), self.sink.data.eq(self._packer.word), self.sink.last.eq(0)]

    def _dequantizer(self, m: Module, fetch: ReadPort) -> Value:
        """Kept bits and residues to values; says when the last of them goes to the bus."""
        g = self.geometry
        m.submodules.dequantize = part = Dequantize(g)
        flags = (self._dequantizing, self._dequantizing & self._last_row)
        valid, last = _delayed(m, flags, DEQUANTIZER_LATENCY, "dequantized")
        for i in range(LANES):
            low = fetch.data.word_select(i, g.residual)
            high = self._unpacker.bits.word_select(i, g.kept)
            m.d.comb += part.codes[i].eq(Cat(low, high).as_signed())
        m.d.comb += part.peak.eq(self._peak)
        with m.If(valid):
            m.d.sync += [self.sink.valid.eq(1), self.sink.data.eq(part.values), self.sink.last.eq(last)]
        return last

    def _header(self, m: Module) -> None:
        m.d.comb += self.source.ready.eq(1)
        store, restore = (
            data.View(STORE.layout, self.source.data),
            data.View(RESTORE.layout, self.source.data),
        )
        m.d.comb += self._table.given.eq(restore.lengths)
        m.d.sync += [
            self._step.eq(0),
            self._count.eq(store.count),
            self._rows.eq((store.count + LANES - 1) >> 3),
            self._peak.eq(1),
        ]
        m.d.sync += [count.eq(0) for count in self._counts]
        with m.If(self.source.valid), m.Switch(store.opcode):
            with m.Case(int(Opcode.STORE)):
                m.next = "LOAD"
            with m.Case(int(Opcode.RESTORE)):
                m.d.comb += self._table.from_lengths.eq(1)
                m.d.sync += [self._peak.eq(restore.peak), self._words_left.eq(restore.payload_words)]
                m.next = "READ_TABLE"

    def _load(self, m: Module, load: WritePort) -> None:
        m.d.comb += self.source.ready.eq(1)
        with m.If(self.source.valid):
            self._now(m, "load")
            m.d.comb += load.en.eq(1)
            m.d.sync += [self._peak.eq(self._largest(m)), self._step.eq(self._step + 1)]
            with m.If(self._last_row):
                m.d.sync += self._step.eq(0)
                m.next = "QUANTIZE"

    def _largest(self, m: Module) -> Value:
        """The peak so far and the values on the bus."""
        sizes: list[Value] = []
        for i in range(LANES):
            size = Signal(MAGNITUDE, name=f"size_{i}")
            m.d.comb += size.eq(magnitude(self.source.data.word_select(i, 16).as_signed()))
            sizes.append(size)
        while len(sizes) > 1:
            pairs = zip(sizes[::2], sizes[1::2], strict=True)
            sizes = [_larger(m, a, b, f"larger_{len(sizes)}_{i}") for i, (a, b) in enumerate(pairs)]
        return _larger(m, self._peak, sizes[0], "largest")

    def _quantize(self, m: Module) -> None:
        self._now(m, "quantize")
        m.d.comb += self._quantizing.eq(self._step < self._rows)
        m.d.sync += self._step.eq(self._step + 1)
        with m.If(self._step == self._rows + self.geometry.quantizer_latency + 1):
            m.d.comb += [self._packer.flush.eq(1), self._table.from_counts.eq(1)]
            m.d.sync += self._step.eq(0)
            m.next = "TABLE"

    def _make_table(self, m: Module) -> None:
        self._now(m, "table")
        with m.If(self._table.idle):
            bits = self._table.payload_bits
            word = Signal(TABLE)
            m.d.comb += [
                word.lengths.eq(self._table.lengths), word.peak.eq(self._peak), word.payload_bits.eq(bits),
            ]  # fmt: skip
            m.d.sync += [
                self.sink.valid.eq(1), self.sink.data.eq(word), self.sink.last.eq(bits == 0),
                self._words_left.eq((bits + BUS_BITS - 1) >> (BUS_BITS - 1).bit_length()),
            ]  # fmt: skip
            m.next = "ENCODE"
            with m.If(bits == 0):
                m.next = "HEADER"

    def _encode(self, m: Module) -> None:
        self._now(m, "encode")
        m.d.comb += self._encoding.eq(self._step < self._rows)
        m.d.sync += self._step.eq(self._step + 1)
        with m.If(self._packer.valid):
            m.d.sync += [self._words_left.eq(self._words_left - 1), self.sink.last.eq(self._words_left == 1)]
        with m.If(self._step == self._rows + ENCODER_LATENCY + 1):
            m.d.comb += self._packer.flush.eq(1)
            m.next = "HEADER"

    def _unpack(self, m: Module) -> None:
        """Take a word from the bus where there is room."""
        there = self._words_left != 0
        m.d.comb += [
            self._unpacker.valid.eq(self.source.valid & there),
            self.source.ready.eq(self._unpacker.ready & there),
        ]
        with m.If(self._unpacker.valid & self._unpacker.ready):
            m.d.sync += self._words_left.eq(self._words_left - 1)

    def _decode(self, m: Module, keep: WritePort) -> None:
        g = self.geometry
        self._now(m, "decode")
        self._unpack(m)
        m.submodules.decode = part = Decode(g)
        place = Signal(range(max(LANES // g.decoders, 2)))
        held = Signal((LANES - g.decoders) * g.residual)
        going = (self._unpacker.fill >= len(part.window)) | (self._words_left == 0)
        row = Cat(held, part.residues)
        m.d.comb += [
            part.window.eq(self._unpacker.bits), part.mask.eq(self._mask.word_select(place, g.decoders)),
            part.codes.eq(self._table.codes), part.sizes.eq(self._table.sizes), part.used.eq(self._table.used),
        ]  # fmt: skip
        with m.If(going):
            m.d.comb += self._unpacker.take.eq(part.length)
            m.d.sync += [held.eq(row[len(part.residues) :]), place.eq(place + 1)]
            with m.If(place == LANES // g.decoders - 1):
                m.d.comb += [keep.en.eq(1), keep.addr.eq(self._step), keep.data.eq(row)]
                m.d.sync += [place.eq(0), self._step.eq(self._step + 1)]
                with m.If(self._last_row):
                    m.d.comb += self._unpacker.clear.eq(1)
                    # Kept bits fill words without gaps.
                    per_word = (BUS_BITS // LANES).bit_length() - 1
                    words = (self._rows * g.kept + BUS_BITS // LANES - 1) >> per_word
                    m.d.sync += [self._step.eq(0), self._words_left.eq(words)]
                    m.next = "DEQUANTIZE"

    def _dequantize(self, m: Module, leaving: Value) -> None:
        bits = LANES * self.geometry.kept
        self._now(m, "dequantize")
        self._unpack(m)
        there = (self._unpacker.fill >= bits) | (self._words_left == 0)
        m.d.comb += self._dequantizing.eq(there & (self._step < self._rows))
        with m.If(self._dequantizing):
            m.d.comb += self._unpacker.take.eq(bits)
            m.d.sync += self._step.eq(self._step + 1)
        with m.If(leaving):
            m.d.comb += self._unpacker.clear.eq(1)
            m.next = "HEADER"


def _larger(m: Module, a: Value, b: Value, name: str) -> Signal:
    found = Signal(MAGNITUDE, name=name)
    m.d.comb += found.eq(Mux(a > b, a, b))
    return found


def _delayed(m: Module, values: tuple[Value, ...], cycles: int, name: str) -> tuple[Signal, ...]:
    """The same ``cycles`` later."""
    for i in range(cycles):
        later = tuple(Signal(v.shape(), name=f"{name}_{place}_{i}") for place, v in enumerate(values))
        m.d.sync += [after.eq(before) for before, after in zip(values, later, strict=True)]
        values = later
    return values  # type: ignore[return-value]
