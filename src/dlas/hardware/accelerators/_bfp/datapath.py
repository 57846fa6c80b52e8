"""The datapath behind the unpackers: codes by activations, sub-blocks by their scales, sums of super-blocks.

A pipeline of six stages: unpack, multiply, two levels of adders, scales and minima, accumulate. The format of a step
travels with it, so that the next section may have another one.
"""

from __future__ import annotations

from amaranth.hdl import Const, Module, Mux, Shape, Signal, Value, signed, unsigned
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.accelerators._bfp.formats import SUB_BLOCK
from dlas.hardware.accelerators._bfp.geometry import Geometry
from dlas.hardware.accelerators._bfp.unpack import UNPACKERS, lane
from dlas.hardware.rtl.sizes import BUS_BITS

DEPTH = 5  # cycles from the words of a step at the datapath to its sums at the results

STEP = data.StructLayout(
    {"format": 4, "sub": 4, "enable": 1, "first": 1, "last": 1, "end": 1}  # what goes along with the data
)


class Datapath(wiring.Component):
    """All rows of weights, and the activations that they share.

    Args:
        geometry: Sizes.
    """

    def __init__(self, geometry: Geometry) -> None:
        g = self.geometry = geometry
        words = data.ArrayLayout(BUS_BITS, g.groups)
        super().__init__(
            {
                "step": In(STEP),
                "codes": In(words),
                "code_sums": In(BUS_BITS),
                "low": In(data.ArrayLayout(words, g.rows)),
                "high": In(data.ArrayLayout(words, g.rows)),
                "scales": In(data.ArrayLayout(BUS_BITS, g.rows)),
                "sums": Out(data.ArrayLayout(signed(32), g.rows)),
                "minima": Out(data.ArrayLayout(signed(32), g.rows)),
                "done": Out(STEP),
            }
        )

    def elaborate(self, platform: object) -> Module:
        """The pipeline."""
        m = Module()
        g = self.geometry
        steps = [self.step]
        for i in range(DEPTH):
            steps.append(_register(m, steps[-1], STEP, f"step_{i}"))
        m.d.comb += self.done.eq(steps[-1])
        activations = [
            [
                _register(m, lane(self.codes[group], i), signed(8), f"activation_{group}_{i}")
                for i in range(SUB_BLOCK)
            ]
            for group in range(g.groups)
        ]
        low_half = self.step.sub[:3]  # of the 16 sums of activations
        code_sums = [
            _register(m, self.code_sums.word_select(low_half | group, 16), signed(16), f"code_sum_{group}")
            for group in range(g.groups)
        ]
        accumulate = steps[-1]
        for row in range(g.rows):
            terms, minima = [], []
            for group in range(g.groups):
                codes, scale, minimum = self._unpacked(m, row, group)
                name = f"{row}_{group}"
                total = self._sum(m, codes, activations[group], name)
                terms.append(self._scaled(m, total, scale, name))
                minima.append(self._minimum(m, code_sums[group], minimum, name))
            m.d.comb += [
                self.sums[row].eq(_accumulated(m, terms, accumulate, f"sum_{row}")),
                self.minima[row].eq(
                    _accumulated(m, minima, accumulate, f"minimum_{row}") if g.has_minima else 0
                ),
            ]
        return m

    def _unpacked(self, m: Module, row: int, group: int) -> tuple[list[Signal], Signal, Signal]:
        """1: codes, scale and minimum of a sub-block, by the format."""
        g = self.geometry
        sub = Signal(4, name=f"sub_{row}_{group}")
        m.d.comb += sub.eq(self.step.sub | group)
        codes = [
            Signal(signed(g.code_bits), name=f"code_{row}_{group}_{i}", reset_less=True)
            for i in range(SUB_BLOCK)
        ]
        scale = Signal(signed(8), name=f"scale_{row}_{group}", reset_less=True)
        minimum = Signal(unsigned(6), name=f"minimum_{row}_{group}", reset_less=True)
        low, high, scales = self.low[row][group], self.high[row][group], self.scales[row]
        with m.Switch(self.step.format):
            for wire in g.wires:
                unpacker = UNPACKERS[wire.name]
                with m.Case(wire.number):
                    m.d.sync += [
                        code.eq(unpacker.code(lane(low, i), lane(high, i), sub))
                        for i, code in enumerate(codes)
                    ]
                    m.d.sync += [
                        scale.eq(unpacker.scale(scales, sub)), minimum.eq(unpacker.minimum(scales, sub)),
                    ]  # fmt: skip
        return codes, scale, minimum

    def _sum(self, m: Module, codes: list[Signal], activations: list[Value], name: str) -> Signal:
        """2: products; 3: sums of four; 4: the sum of a sub-block."""
        products = []
        for i, (code, activation) in enumerate(zip(codes, activations, strict=True)):
            product = code * activation
            products.append(_register(m, product, product.shape(), f"product_{name}_{i}"))
        fours = []
        for i in range(0, SUB_BLOCK, 4):
            four = sum(products[i + 1 : i + 4], products[i])
            fours.append(_register(m, four, Value.cast(four).shape(), f"four_{name}_{i}"))
        total = sum(fours[1:], fours[0])
        return _register(m, total, Value.cast(total).shape(), f"total_{name}")

    def _scaled(self, m: Module, total: Signal, scale: Signal, name: str) -> Value:
        """5: the sum of a sub-block times its scale."""
        if not self.geometry.has_scales:
            return _register(m, total, total.shape(), f"term_{name}")
        for i in range(3):
            scale = _register(m, scale, scale.shape(), f"scale_{name}_late_{i}")
        product = total * scale
        return _register(m, product, product.shape(), f"term_{name}")

    def _minimum(self, m: Module, code_sum: Signal, minimum: Signal, name: str) -> Value:
        """2 to 5: the minimum times the sum of the activations."""
        if not self.geometry.has_minima:
            return Const(0, 1)
        product = code_sum * minimum
        for i in range(4):
            product = _register(m, product, product.shape(), f"below_{name}_{i}")
        return product


def _accumulated(m: Module, terms: list[Value], step: data.View, name: str) -> Signal:
    """6: the sum so far, the terms of this step included."""
    total = Signal(signed(32), name=f"{name}_so_far", reset_less=True)
    done = Signal(signed(32), name=f"{name}_done")
    m.d.comb += done.eq(Mux(step.first, 0, total) + sum(terms[1:], terms[0]))
    with m.If(step.enable):
        m.d.sync += total.eq(done)
    return done


def _register(m: Module, value: Value | data.View, shape: Shape | data.Layout, name: str) -> Signal:
    """``value`` one cycle later."""
    later = Signal(shape, name=name, reset_less=not isinstance(shape, data.Layout))
    m.d.sync += later.eq(value)
    return later
