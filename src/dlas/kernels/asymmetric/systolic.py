"""A weight-stationary systolic array whose processing elements split their multiplier in two.

An element with an 8x8 multiplier holds one 8-bit weight. Split into two 8x4 multipliers that share the activation,
it holds two 4-bit weights in the same register and carries two 16-bit partial sums on the 32 wires of one: two
output columns per element and cycle.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.core.options import option

ELEMENTS = {"symmetric": 1, "asymmetric": 2}
"""Output columns per processing element."""
_NOTE = "closed formula, no array was simulated"


@dataclass(frozen=True)
class ArrayOptions:
    """Size of the array.

    Attributes:
        rows: Elements along K.
        columns: Elements along N.
    """

    rows: int = option(16, "elements along the depth", low=1, high=4096)
    columns: int = option(16, "elements along the output columns", low=1, high=4096)

    def __post_init__(self) -> None:
        for name in ("rows", "columns"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "a number >= 1")


def cycles(m: int, n: int, k: int, element: str, options: ArrayOptions | None = None) -> dict[str, Figure]:
    """Cycles of a product of ``(M, K)`` by ``(K, N)``: ``ceil(K/R) * ceil(N/(C*p)) * (M + R + C - 2)``.

    Args:
        m: Rows of the activations, which stream through.
        n: Columns of the weights, which stay.
        k: Depth.
        element: ``symmetric`` (p = 1) or ``asymmetric`` (p = 2).
        options: Size of the array; None for the defaults.

    Returns:
        ``cycles``, ``macs_per_cycle`` and ``utilisation`` (of all multipliers), all estimated.

    Raises:
        OptionError: A size is under 1, or there is no such element.
    """
    for name, value in (("m", m), ("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(name, value, "a whole number >= 1")
    if element not in ELEMENTS:
        raise OptionError("element", element, "one of " + ", ".join(ELEMENTS))
    array = options or ArrayOptions()
    per_element = ELEMENTS[element]
    passes = -(-k // array.rows) * -(-n // (array.columns * per_element))
    total = passes * (m + array.rows + array.columns - 2)
    rate = m * n * k / total
    return {
        "cycles": Figure(float(total), "cycles", Source.ESTIMATED, note=_NOTE),
        "macs_per_cycle": Figure(rate, "MAC/cycle", Source.ESTIMATED, note=_NOTE),
        "utilisation": Figure(
            rate / (array.rows * array.columns * per_element), "fraction", Source.ESTIMATED, note=_NOTE
        ),
    }


def speedup(m: int, n: int, k: int, options: ArrayOptions | None = None) -> Figure:
    """Cycles of the symmetric array over those of the asymmetric one; 2.0 where N is a multiple of ``2 * columns``.

    Raises:
        OptionError: A size is under 1.
    """
    before, after = (cycles(m, n, k, name, options)["cycles"].value for name in ELEMENTS)
    return Figure(before / after, "x", Source.ESTIMATED, note=_NOTE)
