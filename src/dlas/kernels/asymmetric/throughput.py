"""How many instructions and cycles a product takes with the symmetric and with the asymmetric matrix instruction.

Per 128 bits: symmetric A 2x8 int8, B 8x2 int8, C 2x2 int32, 32 products; asymmetric A 2x8 int8, B 8x4 int4, C 2x4
int16, 64 products. Wider vectors hold several column tiles, A repeated for each. Three kinds of issue slot work side
by side: matrix instructions, loads, and the rest (adding 16-bit tiles into 32 bits, stores). The busiest sets the
time. No cache is modelled: operands are assumed to come as fast as loads issue.
"""

from __future__ import annotations

from dataclasses import dataclass

from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.core.options import option
from dlas.kernels.asymmetric.emulate import DEPTH

INSTRUCTIONS = ("symmetric", "asymmetric")
_ROWS = 2  # of A and C in a tile
_COLUMNS = {"symmetric": 2, "asymmetric": 4}
_NOTE = "instruction-level model, no such processor was timed"


@dataclass(frozen=True)
class IssueOptions:
    """What the modelled processor issues.

    Attributes:
        mmla_per_cycle: Matrix instructions per cycle.
        loads_per_cycle: Vector loads per cycle.
        others_per_cycle: Widening additions and stores per cycle.
        mmla_latency: Cycles until the result of a matrix instruction can be used; the pipeline fills once.
        vector_bits: Width of a vector register.
        tile_rows: Row tiles that share a load of B, bounded by the registers; 0 for all, each vector loaded once.
        tile_columns: Column tiles that share a load of A; 0 for all.
        spill: k after which 16-bit accumulators are added into 32 bits.
    """

    mmla_per_cycle: int = option(2, "matrix instructions per cycle", low=1, high=16)
    loads_per_cycle: int = option(2, "vector loads per cycle", low=1, high=16)
    others_per_cycle: int = option(2, "widening additions and stores per cycle", low=1, high=16)
    mmla_latency: int = option(4, "cycles of latency of a matrix instruction", low=1, high=64)
    vector_bits: int = option(128, "width of a vector", choices=(128, 256, 512))
    tile_rows: int = option(0, "row tiles that share a load of B (0: all)", low=0, high=32)
    tile_columns: int = option(0, "column tiles that share a load of A (0: all)", low=0, high=32)
    spill: int = option(256, "k between two additions into 32 bits", low=DEPTH)

    def __post_init__(self) -> None:
        for name in ("mmla_per_cycle", "loads_per_cycle", "others_per_cycle", "mmla_latency"):
            if getattr(self, name) < 1:
                raise OptionError(name, getattr(self, name), "a number >= 1")
        for name in ("tile_rows", "tile_columns"):
            if getattr(self, name) < 0:
                raise OptionError(name, getattr(self, name), "a number >= 0")
        if self.vector_bits not in (128, 256, 512):
            raise OptionError("vector_bits", self.vector_bits, "128, 256 or 512")
        if self.spill < DEPTH or self.spill % DEPTH:
            raise OptionError("spill", self.spill, f"a multiple of {DEPTH}")


def instructions(
    m: int, n: int, k: int, instruction: str, options: IssueOptions | None = None
) -> dict[str, Figure]:
    """Instructions and cycles of a product of ``(M, K)`` by ``(K, N)``.

    Args:
        m: Rows of A.
        n: Columns of B.
        k: Depth.
        instruction: ``symmetric`` or ``asymmetric``.
        options: What the processor issues; None for the defaults.

    Returns:
        ``mmla``, ``loads``, ``widens``, ``stores`` (counts), ``cycles`` and ``macs_per_cycle``, all estimated.

    Raises:
        OptionError: A size is under 1, or there is no such instruction.
    """
    for name, value in (("m", m), ("n", n), ("k", k)):
        if isinstance(value, bool) or not isinstance(value, int) or value < 1:
            raise OptionError(name, value, "a whole number >= 1")
    if instruction not in INSTRUCTIONS:
        raise OptionError("instruction", instruction, "one of " + ", ".join(INSTRUCTIONS))
    machine = options or IssueOptions()
    row_tiles = -(-m // _ROWS)
    column_tiles = -(-n // (_COLUMNS[instruction] * machine.vector_bits // 128))
    depth = -(-k // DEPTH)
    tiles = row_tiles * column_tiles
    mmla = tiles * depth
    loads_of_a = row_tiles * -(-column_tiles // (machine.tile_columns or column_tiles))
    loads_of_b = column_tiles * -(-row_tiles // (machine.tile_rows or row_tiles))
    loads = depth * (loads_of_a + loads_of_b)
    # An asymmetric tile of 16 bits becomes two vectors of 32 bits.
    widens = 2 * tiles * -(-k // machine.spill) if instruction == "asymmetric" else 0
    stores = tiles * (2 if instruction == "asymmetric" else 1)
    cycles = machine.mmla_latency + max(
        -(-mmla // machine.mmla_per_cycle),
        -(-loads // machine.loads_per_cycle),
        -(-(widens + stores) // machine.others_per_cycle),
    )
    counts = {"mmla": mmla, "loads": loads, "widens": widens, "stores": stores}
    return {
        **{name: _estimated(value, "count") for name, value in counts.items()},
        "cycles": _estimated(cycles, "cycles"),
        "macs_per_cycle": _estimated(m * n * k / cycles, "MAC/cycle"),
    }


def speedup(m: int, n: int, k: int, options: IssueOptions | None = None) -> Figure:
    """Cycles with the symmetric instruction over those with the asymmetric one.

    Tends to 2.0 for large K where N is a multiple of 4 (per 128 bits). Less for small K, whose results have to be
    widened all the same; for N under 4; and where M and N are both so small that loads of A, which do not become fewer,
    set the time.

    Raises:
        OptionError: A size is under 1.
    """
    before, after = (instructions(m, n, k, name, options)["cycles"].value for name in INSTRUCTIONS)
    return _estimated(before / after, "x")


def _estimated(value: float, unit: str) -> Figure:
    return Figure(float(value), unit, Source.ESTIMATED, note=_NOTE)
