"""The array of ``vm`` with shifters for multipliers."""

from __future__ import annotations

from amaranth.hdl import Array, Const, Mux, Value

from dlas.hardware.accelerators._vm_shift.levels import METHODS
from dlas.hardware.rtl.arrays import VectorArray


class ShiftArray(VectorArray):
    """A product is a shift of the pixel, or the sum of two, with the sign of the code.

    Args:
        units: As for any array, like the three that follow.
        rows: Output channels of a unit.
        columns: Pixels.
        depth: Products into a sum per cycle.
        method: Levels, one of ``METHODS``.
    """

    def __init__(self, units: int, rows: int, columns: int, depth: int, method: str) -> None:
        self._terms = METHODS[method].terms
        super().__init__(units, rows, columns, depth, 4)

    def product(self, code: Value, pixel: Value) -> Value:
        """The pixel times the level of a code, combinational."""
        low, negative = code[:-1], code[-1]
        size = self._one(low, pixel) if max(map(len, self._terms)) == 1 else self._two(low, pixel)
        return Mux(negative, -size, size)

    def _one(self, low: Value, pixel: Value) -> Value:
        """Codes that are exponents."""
        assert [t[0] for t in self._terms] == list(range(len(self._terms)))
        return (pixel << low).as_signed()

    def _two(self, low: Value, pixel: Value) -> Value:
        """The upper bits choose one shift or none, the lowest bit adds another."""
        first = [_less(self._terms[2 * i], self._terms[2 * i + 1]) for i in range(len(self._terms) // 2)]
        shifted = Array([Const(0) if not f else pixel << f[0] for f in first])[low[1:]]
        (second,) = set(self._terms[1]) - set(self._terms[0]) or set(self._terms[1])
        return shifted + Mux(low[0], pixel << second, 0)


def _less(even: tuple[int, ...], odd: tuple[int, ...]) -> tuple[int, ...]:
    """The shift of an even code; the odd one after it has another besides."""
    assert len(odd) == len(even) + 1
    return even
