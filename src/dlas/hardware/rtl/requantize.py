"""From 32-bit sums to bytes, a row of lanes per cycle: the arithmetic of TensorFlow Lite in a pipeline.

The twin in NumPy is :mod:`dlas.kernels.reference.requantize`; its docstring says what the roundings are.
"""

from __future__ import annotations

from itertools import pairwise

from amaranth.hdl import Cat, Const, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.rtl.sizes import MODES, REQUANTIZE_LATENCY

_KEPT = 10  # bits of a scaled sum: what needs more is beyond the bounds of a byte, whatever the zero point


class Requantize(wiring.Component):
    """``clamp(round((sum + bias) * multiplier * 2**(shift - 31)) + zero_point, low, high)`` for each lane.

    All lanes belong to one output channel. A result comes out :attr:`latency` cycles after its sum went in; nothing
    is said about validity, which whoever feeds it keeps beside it.

    Args:
        lanes: Sums per cycle.
        modes: Roundings that are built, of ``MODES``.

    Attributes:
        latency: Cycles.
    """

    latency = REQUANTIZE_LATENCY

    def __init__(self, lanes: int, modes: tuple[str, ...]) -> None:
        self.lanes, self.modes = lanes, modes
        super().__init__(
            {
                "sums": In(data.ArrayLayout(signed(32), lanes)),
                "bias": In(signed(32)),
                "multiplier": In(signed(32)),
                "shift": In(signed(8)),
                "mode": In(2),
                "zero_point": In(signed(8)),
                "low": In(signed(8)),
                "high": In(signed(8)),
                "bytes": Out(data.ArrayLayout(signed(8), lanes)),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The pipeline."""
        m = Module()
        # 1: what comes out of buffers, late in the cycle; 2: the bias; 3: the left shift of `double`; 4: products of
        # halves, a block multiplier each; 5: their sum
        multiplier, shift = (
            [Signal(signed(32), name=f"multiplier_{i}") for i in range(3)],
            [Signal(signed(8), name=f"shift_{i}") for i in range(4)],
        )
        bias = Signal(signed(32), reset_less=True)
        m.d.sync += [bias.eq(self.bias), multiplier[0].eq(self.multiplier), shift[0].eq(self.shift)]
        m.d.sync += [late.eq(soon) for soon, late in pairwise(multiplier)]
        m.d.sync += [late.eq(soon) for soon, late in pairwise(shift)]
        twice = self._is("double")
        by, half, rest, above = self._masks(m, shift[3], twice)
        for lane in range(self.lanes):
            given, total, left = (
                Signal(signed(32), name=n, reset_less=True) for n in ("given", "total", "left")
            )
            product, value = (Signal(signed(w), reset_less=True) for w in (64, self._width))
            m.d.sync += [given.eq(self.sums[lane]), total.eq(given + bias)]
            if "double" in self.modes:
                to_left = Mux(twice & (shift[1] > 0), shift[1], 0).as_unsigned()[:5]
                m.d.sync += left.eq((total << to_left)[:32].as_signed())
            else:
                m.d.sync += left.eq(total)
            m.d.sync += product.eq(_product(m, left, multiplier[2]))
            # 6: the nudge of `double` and its division that truncates towards zero, which together round halves up
            high = (product + 2**30) >> 31 if "double" in self.modes else product
            m.d.sync += value.eq(Mux(twice, high, product))
            m.d.sync += self._rounded(m, value, by, half, rest, above, lane)
        return m

    @property
    def _width(self) -> int:
        return 34 if self.modes == ("double",) else 64

    def _is(self, mode: str) -> Value:
        if mode not in self.modes:
            return Const(0, 1)
        return Const(1, 1) if len(self.modes) == 1 else self.mode == MODES.index(mode)

    def _masks(self, m: Module, shift: Signal, twice: Value) -> tuple[Signal, ...]:
        """5 and 6, for all lanes: by how much to shift; the highest bit that falls off, those below, those beyond."""
        by, (half, rest, above) = Signal(6), (Signal(self._width, name=n) for n in ("half", "rest", "above"))
        amount, bit = Signal(6), Signal(self._width)
        once, left_over = (31 - shift).as_unsigned()[:6], Mux(shift < 0, -shift, 0).as_unsigned()[:6]
        ones = Const(-1, signed(self._width))
        m.d.comb += bit.eq(Const(1, 1) << amount)
        m.d.sync += [
            amount.eq(Mux(twice, left_over, once)),
            by.eq(amount), half.eq(bit >> 1), rest.eq((bit >> 1) - 1), above.eq((ones << amount) << (_KEPT - 1)),
        ]  # fmt: skip
        return by, half, rest, above

    def _rounded(
        self, m: Module, value: Signal, by: Signal, half: Signal, rest: Signal, above: Signal, lane: int
    ) -> list:
        """7: the shift with its rounding; 8: zero point and bounds."""
        kept, coarse = Signal(signed(_KEPT), reset_less=True), Signal(_KEPT + 7)
        more, beyond, negative = (Signal(name=n, reset_less=True) for n in ("more", "beyond", "negative"))
        m.d.comb += coarse.eq(value >> Cat(Const(0, 3), by[3:]))
        tie = (value & half).any()
        up = Mux(self._is("single"), tie, tie & ((value & rest).any() | ~value[-1]))
        m.d.sync += [
            kept.eq(coarse >> by[:3]), more.eq(up), negative.eq(value[-1]),
            beyond.eq(((value ^ value[-1].replicate(len(value))) & above).any()),
        ]  # fmt: skip
        result = Signal(signed(_KEPT + 1))
        m.d.comb += result.eq(kept + more + self.zero_point)
        too_low, too_high = (result < self.low) & ~beyond, (result > self.high) & ~beyond
        bounded = Mux(too_low | (beyond & negative), self.low, Mux(too_high | beyond, self.high, result))
        return [self.bytes[lane].eq(bounded)]


def _product(m: Module, a: Signal, b: Signal) -> Value:
    """The product of two signed numbers of 32 bits, a cycle after they are there."""
    halves = [(x[:16], x[16:].as_signed()) for x in (a, b)]
    parts = {
        (i, j): Signal(signed(34), name=f"part_{i}{j}", reset_less=True) for i in range(2) for j in range(2)
    }
    m.d.sync += [part.eq(halves[0][i] * halves[1][j]) for (i, j), part in parts.items()]
    return parts[0, 0] + ((parts[0, 1] + parts[1, 0]) << 16) + (parts[1, 1] << 32)
