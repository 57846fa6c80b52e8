"""Energy as a ratio between designs: activity times a table of energies per operation, and leakage times time.

No board is measured, and the table's numbers are assumptions of the right order for 28 nm devices. They do not say how
many joules a design takes, so that none are shown; which of two designs takes more, and why, is what they are good for.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.hardware.accelerator import Cycles
from dlas.hardware.rtl.sizes import BUS_BYTES

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator


@dataclass(frozen=True)
class EnergyTable:
    """Energies per operation; replace what you know better.

    Attributes:
        dsp_mac_pj: An int8 product and sum in a DSP block.
        lut_mac_pj: The same in LUTs.
        shift_pj: A shift and a sum.
        bram_word_pj: A read or write of 32 bits of block RAM.
        dram_byte_pj: A byte to or from the board's memory.
        static_w: Leakage of the device.
    """

    dsp_mac_pj: float = 1.0
    lut_mac_pj: float = 1.6
    shift_pj: float = 0.5
    bram_word_pj: float = 5.0
    dram_byte_pj: float = 160.0
    static_w: float = 0.2

    def product_pj(self, product: str) -> float:
        """Of a product built as ``dsp``, ``lut`` or ``shift``.

        Raises:
            OptionError: Another word.
        """
        values = {"dsp": self.dsp_mac_pj, "lut": self.lut_mac_pj, "shift": self.shift_pj}
        if product not in values:
            raise OptionError("product", product, "one of " + ", ".join(values))
        return values[product]


@dataclass(frozen=True)
class Energy:
    """Where the energy of a run goes.

    Attributes:
        parts: Part to energy in units of the table, which mean something only beside another design's.
    """

    parts: Mapping[str, float]

    @property
    def shares(self) -> dict[str, Figure]:
        """Part to its share of the whole."""
        whole = sum(self.parts.values())
        return {
            name: Figure(
                part / whole if whole else 0.0, "fraction", Source.ESTIMATED, note="assumed energies"
            )
            for name, part in self.parts.items()
        }

    def relative_to(self, other: Energy) -> Figure:
        """This energy over another design's.

        Raises:
            OptionError: The other takes none.
        """
        whole = sum(other.parts.values())
        if not whole:
            raise OptionError("other", whole, "a run that takes energy")
        return Figure(
            sum(self.parts.values()) / whole, "ratio", Source.ESTIMATED, note="assumed energies per operation"
        )

    def to_dict(self) -> dict[str, Any]:
        """For JSON: shares only."""
        return {"shares": {name: figure.to_dict() for name, figure in self.shares.items()}}


def energy(
    accelerator: Accelerator,
    cycles: Cycles,
    *,
    clock_mhz: float,
    product: str = "",
    nodsp: bool = False,
    table: EnergyTable | None = None,
) -> Energy:
    """Energy of a run. Products with the zeros of padding switch nothing and are not counted.

    Args:
        accelerator: What ran.
        cycles: Of everything that ran on it.
        clock_mhz: Its clock, for the leakage.
        product: ``dsp``, ``lut`` or ``shift``; by itself ``shift`` for codes of 4 bits, else what ``nodsp`` says.
        nodsp: Multipliers are built from LUTs.
        table: Energies per operation.

    Raises:
        OptionError: The clock is no frequency, or there is no such product.
    """
    if not clock_mhz > 0:
        raise OptionError("clock_mhz", clock_mhz, "a number over 0")
    table = table or EnergyTable()
    geometry = getattr(accelerator, "geometry", None)
    codes = getattr(geometry, "weight_bits", 8)
    moved = cycles.bytes_in + cycles.bytes_out
    stored = cycles.bytes_in / 4  # words written to buffers, once each
    return Energy(
        {
            "products": cycles.macs
            * table.product_pj(product or ("shift" if codes == 4 else "lut" if nodsp else "dsp")),
            "buffers": (stored + read_words(accelerator, cycles)) * table.bram_word_pj,
            "memory": moved * table.dram_byte_pj,
            "leakage": cycles.total / clock_mhz * table.static_w * 1e6,  # us * W in pJ
        }
    )


def read_words(accelerator: Accelerator, cycles: Cycles) -> float:
    """Words of 32 bits read from buffers: in each computing cycle one of pixels for all, and weights for every unit."""
    steps = cycles.counters.get("compute", cycles.total)
    geometry = getattr(accelerator, "geometry", None)
    if geometry is None:  # another kind of array: a word of the bus for each operand
        return steps * 2 * BUS_BYTES / 4
    weights = geometry.units * geometry.rows * geometry.depth * geometry.weight_bits / 8
    return steps * (BUS_BYTES + weights) / 4
