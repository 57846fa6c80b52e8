"""Arrays of multiply-accumulators: what multiplies in a matrix-product accelerator.

All of them look alike from outside. Each cycle they take a word of input and a step of weights per unit, with flags for
the first and the last step of a sum; ``latency`` cycles after the last step the sums of row 0 can be read, and those of
row r a further r cycles later, until the next pass takes their place.
"""

from __future__ import annotations

from amaranth.hdl import Array, Module, Mux, Signal, Value, signed
from amaranth.lib import data, wiring
from amaranth.lib.wiring import In, Out

from dlas.hardware.rtl.sizes import BUS_BITS

_FLAGS = ("first", "enable", "last")


class SumArray(wiring.Component):
    """Base of the arrays.

    Args:
        units: Units with weights of their own.
        rows: Output channels of a unit.
        columns: Pixels.
        depth: Products into a sum per cycle.
        weight_bits: Bits of a weight's code.
    """

    def __init__(self, units: int, rows: int, columns: int, depth: int, weight_bits: int = 8) -> None:
        self.units, self.rows, self.columns, self.depth = units, rows, columns, depth
        self.weight_bits = weight_bits
        super().__init__(
            {
                "weights": In(data.ArrayLayout(rows * depth * weight_bits, units)),
                "pixels": In(BUS_BITS),
                "first": In(1),
                "last": In(1),
                "enable": In(1),
                "row": In(range(rows)),
                "sums": Out(data.ArrayLayout(data.ArrayLayout(signed(32), columns), units)),
            }
        )

    @property
    def latency(self) -> int:
        """Cycles from the last step at the input to the sums of row 0."""
        raise NotImplementedError

    def pixel(self, column: int, place: int) -> Value:
        """An input byte."""
        return self.pixels.word_select(column * self.depth + place, 8).as_signed()

    def code(self, unit: int, row: int, place: int) -> Value:
        """A weight as it is stored."""
        return self.weights[unit].word_select(row * self.depth + place, self.weight_bits)


class VectorArray(SumArray):
    """Vector multiply-accumulators (SECDA): a tree adds ``depth`` products, then one adder per sum accumulates."""

    @property
    def latency(self) -> int:
        """A register each for products, tree and sums."""
        return 3

    def product(self, code: Value, pixel: Value) -> Value:
        """The signed product of a weight and a pixel, combinational."""
        return code.as_signed() * pixel

    def elaborate(self, platform: object) -> Module:
        """Products, tree, accumulators, and the registers that hold finished sums."""
        m = Module()
        flags = self.first, self.enable, self.enable & self.last
        first, enable, last = (_delayed(m, flag, 2, name) for flag, name in zip(flags, _FLAGS, strict=True))
        for unit in range(self.units):
            for c in range(self.columns):
                column = []
                for r in range(self.rows):
                    products = []
                    for d in range(self.depth):
                        found = self.product(self.code(unit, r, d), self.pixel(c, d))
                        products.append(_register(m, found, f"product_{unit}_{r}_{c}_{d}"))
                    tree = _register(m, sum(products[1:], products[0]), f"tree_{unit}_{r}_{c}")
                    column.append(_accumulated(m, tree, first, enable, last, f"{unit}_{r}_{c}"))
                m.d.comb += self.sums[unit][c].eq(Array(column)[self.row])
        return m


class SystolicArray(SumArray):
    """Output-stationary systolic array: weights move to the right, pixels down, each element keeps its sum."""

    @property
    def latency(self) -> int:
        """The way to the end of row 0."""
        return self.columns - 1 + 2

    def elaborate(self, platform: object) -> Module:
        """Edges that delay row r by r and column c by c cycles, and the elements between."""
        m = Module()
        flags = [self.first, self.enable, self.enable & self.last]
        diagonals = []  # flags of the elements whose row and column add up to the place in this list
        for i in range(self.rows + self.columns - 1):
            flags = [_register(m, flag, f"{name}_{i}") for flag, name in zip(flags, _FLAGS, strict=True)]
            diagonals.append(flags)
        pixels = [_delayed(m, self.pixel(c, 0), c, f"pixel_{c}") for c in range(self.columns)]
        held = []
        for r in range(self.rows):
            weight = _delayed(m, self.code(0, r, 0), r, f"weight_{r}")
            row = []
            for c in range(self.columns):
                first, enable, last = diagonals[r + c]
                product = _register(m, weight.as_signed() * pixels[c].as_signed(), f"product_{r}_{c}")
                row.append(_accumulated(m, product, first, enable, last, f"{r}_{c}"))
                weight = _register(m, weight, f"right_{r}_{c}")
                pixels[c] = _register(m, pixels[c], f"down_{r}_{c}")
            held.append(row)
        for c in range(self.columns):
            m.d.comb += self.sums[0][c].eq(Array([held[r][c] for r in range(self.rows)])[self.row])
        return m


def _accumulated(m: Module, term: Value, first: Value, enable: Value, last: Value, name: str) -> Signal:
    """The finished sum, which stays until the next one is finished."""
    total = Signal(signed(32), name=f"total_{name}", reset_less=True)
    kept = Signal(signed(32), name=f"kept_{name}", reset_less=True)
    done = Signal(signed(32), name=f"done_{name}")
    m.d.comb += done.eq(Mux(first, 0, total) + term)
    m.d.sync += [total.eq(Mux(enable, done, total)), kept.eq(Mux(last, done, kept))]
    return kept


def _register(m: Module, value: Value, name: str) -> Signal:
    """``value`` one cycle later. What is in it before the first value does not matter: it has no reset."""
    later = Signal(value.shape(), name=name, reset_less=True)
    m.d.sync += later.eq(value)
    return later


def _delayed(m: Module, value: Value, cycles: int, name: str) -> Value:
    for i in range(cycles):
        value = _register(m, value, f"{name}_late_{i}")
    return value
