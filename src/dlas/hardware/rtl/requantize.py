"""From 32-bit sums to bytes, a row of lanes per cycle: the arithmetic of TensorFlow Lite in a pipeline.

The twin in NumPy is :mod:`dlas.kernels.reference.requantize`; its docstring says what the roundings are.
"""

from __future__ import annotations

from amaranth.hdl import Cat, Const, Module, Mux, Signal, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.rtl.sizes import MODES, REQUANTIZE_LATENCY


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
        # 1: the bias; 2: the left shift of `double`; 3: the product
        multiplier, shift = (
            [Signal(signed(32), name=f"multiplier_{i}") for i in range(2)],
            [Signal(signed(8), name=f"shift_{i}") for i in range(4)],
        )
        m.d.sync += [
            multiplier[0].eq(self.multiplier),
            multiplier[1].eq(multiplier[0]),
            shift[0].eq(self.shift),
        ]
        m.d.sync += [late.eq(soon) for soon, late in zip(shift, shift[1:])]
        twice = self._is("double")
        for lane in range(self.lanes):
            total, left = (Signal(signed(32), name=n, reset_less=True) for n in ("total", "left"))
            product = Signal(signed(64), reset_less=True)
            m.d.sync += total.eq(self.sums[lane] + self.bias)
            if "double" in self.modes:
                by = Mux(twice & (shift[0] > 0), shift[0], 0).as_unsigned()[:5]
                m.d.sync += left.eq((total << by)[:32].as_signed())
            else:
                m.d.sync += left.eq(total)
            m.d.sync += product.eq(left * multiplier[1])
            value, by = self._value(m, product, shift[2], twice)
            m.d.sync += self._rounded(m, value, by, lane)
        return m

    def _is(self, mode: str) -> object:
        if mode not in self.modes:
            return Const(0, 1)
        return Const(1, 1) if len(self.modes) == 1 else self.mode == MODES.index(mode)

    def _value(self, m: Module, product: Signal, shift: Signal, twice: object) -> tuple[Signal, Signal]:
        """4: what is shifted, and by how much."""
        width = 32 if self.modes == ("double",) else 64
        value, by = Signal(signed(width), reset_less=True), Signal(6, reset_less=True)
        whole, once = product, (31 - shift).as_unsigned()[:6]
        if "double" in self.modes:
            nudged = Signal(signed(65))
            m.d.comb += nudged.eq(product + Mux(product < 0, 1 - 2**30, 2**30))
            # A division that truncates towards zero: a shift rounds down.
            high = Signal(signed(34))
            m.d.comb += high.eq((nudged + Mux(nudged < 0, 2**31 - 1, 0)) >> 31)
            saturated = Mux(high > 2**31 - 1, 2**31 - 1, high)
            left_over = Mux(shift < 0, -shift, 0).as_unsigned()[:6]
            whole, once = Mux(twice, saturated, whole), Mux(twice, left_over, once)
        m.d.sync += [value.eq(whole), by.eq(once)]
        return value, by

    def _rounded(self, m: Module, value: Signal, by: Signal, lane: int) -> list:
        """5: the shift with its rounding; 6: zero point and bounds."""
        shifted, more = Signal(value.shape(), reset_less=True), Signal(reset_less=True)
        below = Signal(len(value))  # what falls off, its highest bit at the top
        m.d.comb += below.eq((Cat(Const(0, len(value)), value) >> by)[: len(value)])
        half, rest = below[-1], below[:-1].any()
        up = Mux(self._is("single"), half, half & (rest | (value >= 0)))
        m.d.sync += [shifted.eq(value >> by), more.eq(up)]
        result = Signal(signed(len(value) + 2))
        m.d.comb += result.eq(shifted + more.as_unsigned() + self.zero_point)
        bounded = Mux(result < self.low, self.low, Mux(result > self.high, self.high, result))
        return [self.bytes[lane].eq(bounded)]
