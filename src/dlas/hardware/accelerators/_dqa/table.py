"""Makes the code table of a channel: Huffman code lengths from counts, canonical codes from lengths."""

from __future__ import annotations

from collections.abc import Sequence

from amaranth.hdl import Array, Cat, Const, Module, Mux, Signal, Value
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._dqa.geometry import SYMBOLS, Geometry

_WIDEST = 7
_LENGTHS = data.ArrayLayout(3, SYMBOLS)


class CodeLengths(wiring.Component):
    """Joins the lightest two subtrees, one join in two cycles, until one is left; ``done`` in the last cycle.

    The lighter is the one with the smaller count, then with the smaller first symbol, as in
    :func:`dlas.kernels.formats.huffman.code_lengths`. Where a code is too long it begins again with halved counts.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        self.width = geometry.values.bit_length()
        super().__init__(
            {
                "start": In(1),
                "counts": In(data.ArrayLayout(self.width, SYMBOLS)),
                "done": Out(1),
                "lengths": Out(_LENGTHS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Subtrees live in the place of their smallest symbol."""
        m = Module()
        weights, work = (
            [Signal(self.width, name=f"{name}_{s}") for s in range(SYMBOLS)] for name in ("weight", "work")
        )
        members = [Signal(SYMBOLS, name=f"members_{s}") for s in range(SYMBOLS)]
        depths = [Signal(3, name=f"depth_{s}") for s in range(SYMBOLS)]
        roots, first, first_count = Signal(SYMBOLS), Signal(3), Signal(self.width)
        there, count, lightest = _lightest(m, [(roots[s], work[s], Const(s, 3)) for s in range(SYMBOLS)])
        used, alone, both = Signal(SYMBOLS), Signal(), Signal(SYMBOLS)
        m.d.comb += [
            used.eq(Cat(weight != 0 for weight in weights)),
            alone.eq((used & (used - 1)) == 0),
            both.eq(Array(members)[first] | Array(members)[lightest]),
        ]
        # A symbol that is alone is never joined: a length of 1 says which one it is.
        m.d.comb += [
            self.lengths[s].eq(Mux(alone, used[s], depth).as_unsigned()) for s, depth in enumerate(depths)
        ]

        def begin(counts: Sequence[Value]) -> list:
            found = [roots.eq(Cat(count != 0 for count in counts))]
            for s, given in enumerate(counts):
                found += [weights[s].eq(given), work[s].eq(given), members[s].eq(1 << s), depths[s].eq(0)]
            return found

        with m.FSM():
            with m.State("IDLE"), m.If(self.start):
                m.d.sync += begin([self.counts[s] for s in range(SYMBOLS)])
                m.next = "PICK"
            with m.State("PICK"):
                m.d.sync += [first.eq(lightest), first_count.eq(count), roots.bit_select(lightest, 1).eq(0)]
                m.next = "JOIN"
            with m.State("JOIN"):
                low = Mux(first < lightest, first, lightest)
                with m.If(there):
                    m.d.sync += [
                        Array(work)[low].eq(first_count + count),
                        Array(members)[low].eq(both),
                        roots.eq((roots & ~(Const(1, SYMBOLS) << lightest)) | (1 << low)),
                    ]
                    m.d.sync += [depth.eq(depth + both[s]) for s, depth in enumerate(depths)]
                    m.next = "PICK"
                with m.Else():
                    m.next = "CHECK"
            with m.State("CHECK"):
                with m.If(Cat(depth > self.geometry.longest for depth in depths).any()):
                    m.d.sync += begin([(weight + 1) >> 1 for weight in weights])
                    m.next = "PICK"
                with m.Else():
                    m.d.comb += self.done.eq(1)
                    m.next = "IDLE"
        return m


class CodeTable(wiring.Component):
    """The table that is stored, and the codes that are sent, first bit lowest; ``idle`` when they are valid.

    ``from_counts`` starts with ``counts``, ``from_lengths`` with ``given``. ``plain_bits`` is what the residues take
    without a code: where a code is not shorter, ``lengths`` is all 0 and the codes are the residues themselves.
    ``sizes`` are the bits that are sent: 0 for a symbol that is alone.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        width = geometry.values.bit_length()
        super().__init__(
            {
                "from_counts": In(1),
                "counts": In(data.ArrayLayout(width, SYMBOLS)),
                "plain_bits": In(width + 2),
                "from_lengths": In(1),
                "given": In(_LENGTHS),
                "idle": Out(1),
                "lengths": Out(_LENGTHS),
                "codes": Out(data.ArrayLayout(_WIDEST, SYMBOLS)),
                "sizes": Out(_LENGTHS),
                "used": Out(SYMBOLS),
                "payload_bits": Out(width + 3),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Lengths, then the codes of one length per cycle."""
        m = Module()
        m.submodules.code_lengths = tree = CodeLengths(self.geometry)
        m.d.comb += tree.counts.eq(self.counts)
        counted, length, code = Signal(), Signal(range(_WIDEST + 1)), Signal(_WIDEST + 1)
        with m.FSM():
            with m.State("IDLE"):
                m.d.comb += [self.idle.eq(1), tree.start.eq(self.from_counts)]
                m.d.sync += [length.eq(1), code.eq(0), counted.eq(self.from_counts)]
                with m.If(self.from_counts):
                    m.next = "COUNTS"
                with m.If(self.from_lengths):
                    m.d.sync += self.lengths.eq(self.given)
                    m.next = "NUMBER"
                with m.If(self.from_counts | self.from_lengths):
                    m.d.sync += self.payload_bits.eq(0)
            with m.State("COUNTS"):
                m.d.sync += self.lengths.eq(tree.lengths)
                with m.If(tree.done):
                    m.next = "NUMBER"
            with m.State("NUMBER"):
                self._number(m, length, code)
                m.d.sync += length.eq(length + 1)
                with m.If(length == self.geometry.longest):
                    m.next = "DECIDE"
            with m.State("DECIDE"):
                self._decide(m, counted)
                m.next = "IDLE"
        return m

    def _number(self, m: Module, length: Signal, code: Signal) -> None:
        """The codes of one length, in the order of symbols."""
        following: Value = code
        bits: Value = self.payload_bits
        for s in range(SYMBOLS):
            now, fits = Signal(_WIDEST + 1, name=f"now_{s}"), self.lengths[s] == length
            m.d.comb += now.eq(following)
            with m.If(fits):
                turned = Cat(*(now[i] for i in reversed(range(_WIDEST))))
                m.d.sync += [self.codes[s].eq(turned >> (_WIDEST - length)[:3]), self.sizes[s].eq(length)]
            following = now + fits
            # A code of some length counts its symbol once for every length up to its own.
            bits = bits + Mux(self.lengths[s] >= length, self.counts[s], 0)
        m.d.sync += [code.eq(following << 1), self.payload_bits.eq(bits)]

    def _decide(self, m: Module, counted: Signal) -> None:
        """No bits for a symbol that is alone, no code where it would not be shorter."""
        residual = self.geometry.residual
        present, alone = Signal(SYMBOLS), Signal()
        m.d.comb += [
            present.eq(Cat(self.lengths[s] != 0 for s in range(SYMBOLS))),
            alone.eq(present.any() & ((present & (present - 1)) == 0)),
        ]
        plain = Mux(counted, ~alone & (self.payload_bits >= self.plain_bits), ~present.any())
        m.d.sync += self.used.eq(present)
        with m.If(alone):
            m.d.sync += self.payload_bits.eq(0)
            m.d.sync += [port[s].eq(0) for port in (self.codes, self.sizes) for s in range(SYMBOLS)]
        with m.If(plain):
            m.d.sync += [self.payload_bits.eq(self.plain_bits), self.used.eq((1 << (1 << residual)) - 1)]
            for s in range(SYMBOLS):
                turned = int(f"{s:0{residual}b}"[::-1], 2) if s < 1 << residual else 0
                m.d.sync += [self.codes[s].eq(turned), self.sizes[s].eq(residual), self.lengths[s].eq(0)]


def _lightest(m: Module, trees: list[tuple[Value, Value, Value]]) -> tuple[Value, Value, Value]:
    """The lightest of subtrees, each ``(exists, count, first symbol)``, in the order of symbols."""
    while len(trees) > 1:
        better = []
        for i, (a, b) in enumerate(zip(trees[::2], trees[1::2], strict=True)):
            count, symbol = (
                Signal.like(v, name=f"lightest_{len(trees)}_{i}_{j}") for j, v in enumerate(a[1:])
            )
            keep = a[0] & (~b[0] | (a[1] <= b[1]))
            m.d.comb += [count.eq(Mux(keep, a[1], b[1])), symbol.eq(Mux(keep, a[2], b[2]))]
            better.append((a[0] | b[0], count, symbol))
        trees = better
    return trees[0]
