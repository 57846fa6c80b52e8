"""The arithmetic of the activation quantiser, eight values side by side."""

from __future__ import annotations

from amaranth.hdl import Cat, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._dqa.geometry import LANES, SYMBOLS, Geometry
from dlas.hardware.rtl.sizes import BUS_BITS

MAGNITUDE = 16  # bits: 0 .. 32768


def magnitude(value: Value) -> Value:
    """Of a signed 16-bit value."""
    return Mux(value < 0, -value, value)[:MAGNITUDE]


class Quantize(wiring.Component):
    """``clamp(ceil(x * S / peak - 1/2))``: long division, a bit of the quotient per stage, no multiplier.

    Codes come out ``geometry.quantizer_latency`` cycles after their values went in; ``peak`` stands still meanwhile.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "values": In(BUS_BITS),
                "peak": In(MAGNITUDE),
                "codes": Out(data.ArrayLayout(signed(geometry.bits), LANES)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The pipeline of each lane."""
        m = Module()
        bits = self.geometry.bits
        for lane in range(LANES):
            value = self.values.word_select(lane, 16).as_signed()

            def register(shape: object, name: str, lane: int = lane) -> Signal:
                return Signal(shape, name=f"{name}_{lane}", reset_less=True)  # type: ignore[arg-type]

            rest, negative, quotient = register(MAGNITUDE, "magnitude"), register(1, "negative"), None
            m.d.sync += [rest.eq(magnitude(value)), negative.eq(value < 0)]
            for step in range(bits):
                twice = rest if step == 0 else rest << 1
                less = Signal(signed(MAGNITUDE + 2), name=f"less_{step}_{lane}")
                m.d.comb += less.eq(twice - self.peak)
                bit = less >= 0
                later = [register(MAGNITUDE, f"rest_{step}"), register(1, f"negative_{step}")]
                digits = register(step + 1, f"quotient_{step}")
                m.d.sync += [
                    later[0].eq(Mux(bit, less, twice)),
                    later[1].eq(negative),
                    digits.eq(bit if quotient is None else Cat(bit, quotient)),
                ]
                (rest, negative), quotient = later, digits
            assert quotient is not None
            # Halves are rounded down, towards more negative codes.
            twice, rounded = rest << 1, Signal(bits, name=f"rounded_{lane}")
            up = Mux(negative, twice >= self.peak, twice > self.peak)
            m.d.comb += rounded.eq(quotient + up)
            top = rounded[-1]  # S: only where the value is the peak, or rounds to it
            positive = Mux(top, (1 << (bits - 1)) - 1, rounded)
            m.d.sync += self.codes[lane].eq(Mux(negative, -rounded, positive)[:bits].as_signed())
        return m


class Dequantize(wiring.Component):
    """``ceil(peak * q / S - 1/2)``, two cycles after the codes went in; the second one shows it before a register."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "codes": In(data.ArrayLayout(signed(geometry.bits), LANES)),
                "peak": In(MAGNITUDE),
                "values": Out(BUS_BITS),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Product, rounding."""
        m = Module()
        bits, half = self.geometry.bits, 1 << (self.geometry.bits - 2)
        found = []
        for lane in range(LANES):
            code = Signal(signed(bits), name=f"code_{lane}", reset_less=True)
            product = Signal(signed(bits + MAGNITUDE + 1), name=f"product_{lane}", reset_less=True)
            m.d.sync += [code.eq(self.codes[lane]), product.eq(code * self.peak)]
            found.append(((product + (half - 1)) >> (bits - 1))[:16])
        m.d.comb += self.values.eq(Cat(*found))
        return m


class Encode(wiring.Component):
    """Codes of eight residues, joined in order, three cycles later; lanes outside ``mask`` give no bits."""

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "residues": In(LANES * geometry.residual),
                "mask": In(LANES),
                "codes": In(data.ArrayLayout(7, SYMBOLS)),
                "sizes": In(data.ArrayLayout(3, SYMBOLS)),
                "bits": Out(7 * LANES),
                "length": Out(range(7 * LANES + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Look up, join to fours, join to eight."""
        m = Module()
        parts = []
        for lane in range(LANES):
            symbol = self.residues.word_select(lane, self.geometry.residual)
            code, size = (
                Signal(w, name=f"{n}_{lane}", reset_less=True) for n, w in (("code", 7), ("size", 3))
            )
            m.d.sync += [
                code.eq(Mux(self.mask[lane], self.codes[symbol], 0)),
                size.eq(Mux(self.mask[lane], self.sizes[symbol], 0)),
            ]
            parts.append((code, size))
        pairs = [_joined(a, b) for a, b in zip(parts[::2], parts[1::2], strict=True)]
        fours = []
        for i, (bits, size) in enumerate(_joined(a, b) for a, b in zip(pairs[::2], pairs[1::2], strict=True)):
            four, length = (
                Signal(28, name=f"four_{i}", reset_less=True),
                Signal(range(29), name=f"length_{i}"),
            )
            m.d.sync += [four.eq(bits), length.eq(size)]
            fours.append((four, length))
        bits, size = _joined(*fours)
        m.d.sync += [self.bits.eq(bits), self.length.eq(size)]
        return m


def _joined(first: tuple[Value, Value], second: tuple[Value, Value]) -> tuple[Value, Value]:
    return first[0] | (second[0] << first[1]), first[1] + second[1]


class Decode(wiring.Component):
    """Finds one code after another in a window of bits, within one cycle.

    All codes are compared at once; of a prefix code exactly one fits. ``length`` counts the codes inside ``mask`` only.
    """

    def __init__(self, geometry: Geometry) -> None:
        self.geometry = geometry
        super().__init__(
            {
                "window": In(7 * geometry.decoders),
                "mask": In(geometry.decoders),
                "codes": In(data.ArrayLayout(7, SYMBOLS)),
                "sizes": In(data.ArrayLayout(3, SYMBOLS)),
                "used": In(SYMBOLS),
                "residues": Out(geometry.decoders * geometry.residual),
                "length": Out(range(7 * geometry.decoders + 1)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """Comparators, and a shift to the next code."""
        m = Module()
        window, total = self.window, 0
        for place in range(self.geometry.decoders):
            symbol, size = Signal(3, name=f"symbol_{place}"), Signal(3, name=f"size_{place}")
            for s in range(SYMBOLS):
                ones = (1 << self.sizes[s])[:7] - 1
                with m.If(self.used[s] & ((window[:7] & ones[:7]) == self.codes[s])):
                    m.d.comb += [symbol.eq(s), size.eq(self.sizes[s])]
            taken = Mux(self.mask[place], size, 0)
            m.d.comb += self.residues.word_select(place, self.geometry.residual).eq(symbol)
            following = Signal(len(window), name=f"window_{place}")
            m.d.comb += following.eq(window >> taken)
            window, total = following, total + taken
        m.d.comb += self.length.eq(total)
        return m
