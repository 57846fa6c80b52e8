"""Area of a design: LUTs, flip-flops, carry chains, DSP blocks and block RAM, as Yosys maps it.

A LUT is counted as one whatever its number of inputs, as the cell that Yosys chose: two small ones may share one place
of the device, and a vendor's tool may do better. So figures of designs compare; they are no promise about a device.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from dlas.core.figure import Figure, Source
from dlas.core.lazy import distribution_version
from dlas.hardware.synthesis.yosys import YOSYS, Cells, cells_of, flow

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator
    from dlas.hardware.rtl.arrays import SumArray

# LUTs that a cell of small memory occupies.
_XC7_MEMORY = {
    "RAM32X1S": 1, "RAM32X1D": 2, "RAM64X1S": 1, "RAM64X1D": 2, "RAM128X1S": 2, "RAM128X1D": 4, "RAM256X1S": 4,
    "RAM32M": 4, "RAM64M": 4, "SRL16E": 1, "SRLC16E": 1, "SRLC32E": 1,
}  # fmt: skip
_ECP5_MEMORY = {"TRELLIS_DPR16X4": 4}
_NAMES = {
    "xc7": {
        "luts": "LUT",
        "flip_flops": "FF",
        "carries": "CARRY4",
        "dsps": "DSP48E1",
        "bram_tiles": "BRAM36",
    },
    "ecp5": {
        "luts": "LUT4",
        "flip_flops": "FF",
        "carries": "CCU2C",
        "dsps": "MULT18X18D",
        "bram_tiles": "DP16KD",
    },
}


@dataclass(frozen=True)
class Area:
    """What a design takes in a family of FPGAs.

    Attributes:
        family: ``xc7`` or ``ecp5``.
        nodsp: Whether multipliers were built from LUTs.
        luts: Look-up tables of any size; on ECP5 with the two of each carry cell.
        memory_luts: LUTs used as small memories and shift registers, in addition.
        logic_cells: Yosys's estimate; xc7 only.
        flip_flops: Flip-flops outside of other blocks.
        carries: Carry cells: four bits each on xc7 (``CARRY4``), two on ECP5 (``CCU2C``).
        dsps: Multiplier blocks: ``DSP48E1`` or ``MULT18X18D``.
        bram_tiles: Block RAM: ``RAMB36E1`` and half of ``RAMB18E1``, or ``DP16KD``.
        cells: Everything by type of cell.
        flow: Commands and version of the tool.
    """

    family: str
    nodsp: bool
    luts: int
    memory_luts: int
    logic_cells: int
    flip_flops: int
    carries: int
    dsps: int
    bram_tiles: float
    cells: Mapping[str, int]
    flow: str

    @classmethod
    def of(cls, cells: Cells, family: str, *, nodsp: bool) -> Area:
        """Sum up what Yosys counted."""
        c = cells.counts

        def number(*starts: str) -> int:
            return sum(n for name, n in c.items() if name.startswith(starts))

        if family == "xc7":
            luts, small, carries = number("LUT"), _XC7_MEMORY, number("CARRY4")
            flip_flops, dsps, brams = number("FD"), number("DSP48"), number("RAMB36") + number("RAMB18") / 2
        else:
            luts, small, carries = number("LUT4") + 2 * number("CCU2C"), _ECP5_MEMORY, number("CCU2C")
            flip_flops, dsps, brams = number("TRELLIS_FF"), number("MULT18X18"), number("DP16KD", "PDPW16KD")
        memory = sum(n * small.get(name, 0) for name, n in c.items())
        steps = f"Yosys {distribution_version(YOSYS)}: {flow(family, nodsp=nodsp)}"
        lcs = cells.logic_cells
        return cls(family, nodsp, luts, memory, lcs, flip_flops, carries, dsps, float(brams), dict(c), steps)

    @property
    def figures(self) -> dict[str, Figure]:
        """Every count as a figure."""
        names = _NAMES[self.family]
        kind = "multipliers in LUTs" if self.nodsp else "multipliers in DSP blocks"
        found = {
            name: Figure(
                getattr(self, name), "count", Source.ESTIMATED, note=f"{what}, {self.family}, Yosys, {kind}"
            )
            for name, what in names.items()
        }
        note = f"of small memories, {self.family}, Yosys"
        found["memory_luts"] = Figure(self.memory_luts, "count", Source.ESTIMATED, note=note)
        if self.logic_cells:
            note = "Yosys's own estimate of logic cells, not LUTs"
            found["logic_cells"] = Figure(self.logic_cells, "count", Source.ESTIMATED, note=note)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "family": self.family,
            "nodsp": self.nodsp,
            "flow": self.flow,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "cells": dict(self.cells),
        }


def area(accelerator: Accelerator, *, family: str = "xc7", nodsp: bool = False) -> Area:
    """Area of a whole accelerator, its buffers included.

    Args:
        accelerator: With its options.
        family: ``xc7`` or ``ecp5``.
        nodsp: Build multipliers from LUTs, to compare with designs that have none.

    Raises:
        MissingDependencyError: The tools are not installed.
        OptionError: There is no such family.
        DlasError: Yosys failed.
    """
    from dlas.hardware.simulation.verilog import verilog

    return area_of(verilog(accelerator.design()), family=family, nodsp=nodsp)


def array_area(array: SumArray, *, family: str = "xc7", nodsp: bool = True) -> Area:
    """Area of an array of processing elements alone: no buffers, no requantisation. Arguments as :func:`area`."""
    from dlas.hardware.simulation.verilog import verilog

    return area_of(verilog(array), family=family, nodsp=nodsp)


def area_of(source: str, *, family: str = "xc7", nodsp: bool = False) -> Area:
    """Area of Verilog whose top module is ``top``; arguments as :func:`area`."""
    return Area.of(cells_of(source, family, nodsp=nodsp), family, nodsp=nodsp)
