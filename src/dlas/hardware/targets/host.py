"""The machine dlas runs on: everything about it is measured."""

from __future__ import annotations

import platform
from collections.abc import Iterable
from dataclasses import dataclass
from pathlib import Path

from dlas.core.environment import cpu_flags, memory_bytes, x86_level
from dlas.core.options import option
from dlas.hardware.target import EnergyReader, Target, targets

_LEVELS = ("x86-64", "x86-64-v2", "x86-64-v3", "x86-64-v4")
# What sets Sapphire Rapids apart from the level below it, as /proc/cpuinfo spells it.
_SAPPHIRE_RAPIDS = ("amx_tile", "amx_int8", "amx_bf16", "avx512_fp16", "avx512_bf16", "avx512_vnni")
_POWERCAP = Path("/sys/class/powercap")


@dataclass(frozen=True)
class HostOptions:
    """Options of the host."""

    isa: str = option(
        "native",
        "instruction set code is generated for, where the back end can choose",
        choices=("native", *_LEVELS[1:], "sapphirerapids"),
    )


@targets.register("host")
class Host(Target):
    """This machine, at its own or a lower instruction-set level."""

    name = "host"
    summary = "this machine: latency, memory and (where readable) energy are measured"
    Options = HostOptions
    options: HostOptions

    @property
    def memory_bytes(self) -> int:
        """Physical memory, or what a container leaves of it."""
        return memory_bytes()

    @property
    def isa(self) -> str:
        """As asked for; ``native`` is all this processor has."""
        return self.options.isa

    def unusable(self) -> str:
        """Says when this processor lacks the instruction set."""
        wanted = self.options.isa
        if wanted == "native":
            return ""
        level = x86_level()
        if level not in _LEVELS:
            return f"isa={wanted} needs an x86-64 processor, this is {platform.machine()}"
        if wanted == "sapphirerapids":
            lacking = [flag for flag in _SAPPHIRE_RAPIDS if flag not in cpu_flags()]
            if lacking:
                return f"this processor lacks {', '.join(lacking)}, which isa=sapphirerapids needs"
            wanted = "x86-64-v4"
        if _LEVELS.index(wanted) > _LEVELS.index(level):
            return f"this processor is {level}, isa={self.options.isa} needs more"
        return ""

    def energy_reader(self) -> EnergyReader | None:
        """RAPL package counters, or None where there are none or they may not be read."""
        return RaplReader.find()


class RaplReader(EnergyReader):
    """Sum over the processor packages of Intel's and AMD's running average power limit counters.

    The counters are in microjoules and start again from 0 at ``max_energy_range_uj``; the reader must be asked more
    often than they wrap round (every few minutes at full power). Interface: Linux ``powercap`` documentation.
    """

    def __init__(self, zones: Iterable[Path]) -> None:
        self._zones = [
            (zone / "energy_uj", int((zone / "max_energy_range_uj").read_text())) for zone in zones
        ]
        self._last = [_microjoules(counter) for counter, _ in self._zones]
        self._total = 0

    @classmethod
    def find(cls, root: Path = _POWERCAP) -> RaplReader | None:
        """Reader of the packages below ``root``; None unless at least one is there and all can be read."""
        # intel-rapl-mmio shows the same packages a second time; sub-zones (cores, memory) are parts of their package
        # and psys is a whole around it: all of these would count twice.
        zones = sorted(
            zone for zone in root.glob("intel-rapl:*") if zone.name.count(":") == 1 and _is_package(zone)
        )
        try:
            return cls(zones) if zones else None
        except (OSError, ValueError):
            return None

    def read_joules(self) -> float:
        """Joules since this reader was made."""
        for i, (counter, span) in enumerate(self._zones):
            now = _microjoules(counter)
            passed = now - self._last[i]
            self._total += passed if passed >= 0 else passed + span
            self._last[i] = now
        return self._total / 1e6


def _is_package(zone: Path) -> bool:
    try:
        return (zone / "name").read_text().startswith("package")
    except OSError:
        return False


def _microjoules(counter: Path) -> int:
    return int(counter.read_text())
