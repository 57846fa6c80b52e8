"""The limits of this processor, and what a computation can reach under them.

Source: Williams, Waterman and Patterson, "Roofline: an insightful visual performance model", CACM 2009, with one
bandwidth for each level of cache: data that fit a cache do not come from memory.
"""

from __future__ import annotations

import json
import math
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path

from dlas.core.cache import Cache, key_of
from dlas.core.environment import machine_key
from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.kernels.extension import choose_isa, need_native

LEVELS = ("l1", "l2", "l3", "dram")
_VERSION = 2  # of the loops: raised when they measure something else
_SECONDS, _MOST_SECONDS = 0.1, 10.0
_MOST_THREADS = 4096


@dataclass(frozen=True)
class Roofline:
    """Measured limits of this processor for one instruction set and number of threads.

    Attributes:
        isa: Instruction set.
        threads: Threads that worked together.
        peaks: Operations per second in GFLOP/s or GOP/s, by kind: ``fp32`` (fused multiply-add), ``int8`` (products
            of bytes, exact 32-bit sums), ``int8_acc16`` (16-bit sums), and where there are tiles ``amx_int8``,
            ``amx_bf16``. A multiply-add counts as two operations.
        bandwidths: Reads in GB/s by level: ``l1``, ``l2``, ``l3``, ``dram``; all threads together.
        capacities: Bytes of working set up to which each level but the last holds it, for one thread.
    """

    isa: str
    threads: int
    peaks: Mapping[str, Figure]
    bandwidths: Mapping[str, Figure]
    capacities: Mapping[str, int]

    def level(self, working_set: float) -> str:
        """The smallest cache that holds ``working_set`` bytes for each of the threads, or ``dram``."""
        return next((v for v in LEVELS[:-1] if working_set <= self.capacities.get(v, 0)), LEVELS[-1])

    def attainable(
        self, flops: float, nbytes: float, *, working_set: float | None = None, kind: str = "fp32"
    ) -> float:
        """GFLOP/s (or GOP/s) that a computation can reach: its peak, or what its bytes allow.

        Args:
            flops: Operations.
            nbytes: Bytes that are moved.
            working_set: Bytes that must stay near; ``nbytes`` unless given. Shared by the threads.
            kind: One of :attr:`peaks`.

        Raises:
            OptionError: A number is negative or not finite, or ``kind`` was not measured.
        """
        if kind not in self.peaks:
            raise OptionError("kind", kind, f"one of {', '.join(self.peaks)}")
        held = nbytes if working_set is None else working_set
        for name, value in (("flops", flops), ("nbytes", nbytes), ("working_set", held)):
            if not (math.isfinite(value) and value >= 0):
                raise OptionError(name, value, "a finite number that is not negative")
        peak = self.peaks[kind].value
        if not nbytes:
            return peak
        level = self.level(held / self.threads)
        return min(peak, flops / nbytes * self.bandwidths[level].value)

    def seconds(
        self, flops: float, nbytes: float, *, working_set: float | None = None, kind: str = "fp32"
    ) -> float:
        """The least time that ``flops`` operations on ``nbytes`` bytes can take; arguments as in :meth:`attainable`."""
        self.attainable(flops, nbytes, working_set=working_set, kind=kind)  # checks
        level = self.level((nbytes if working_set is None else working_set) / self.threads)
        return max(flops / self.peaks[kind].value, nbytes / self.bandwidths[level].value) / 1e9

    def to_dict(self) -> dict:
        """Plain values, fit for JSON."""
        return {
            "isa": self.isa,
            "threads": self.threads,
            "peaks": {k: v.to_dict() for k, v in self.peaks.items()},
            "bandwidths": {k: v.to_dict() for k, v in self.bandwidths.items()},
            "capacities": dict(self.capacities),
        }

    @classmethod
    def from_dict(cls, fields: Mapping) -> Roofline:
        """Inverse of :meth:`to_dict`."""
        figures = {
            part: {k: Figure.from_dict(v) for k, v in fields[part].items()}
            for part in ("peaks", "bandwidths")
        }
        capacities = {k: int(v) for k, v in fields["capacities"].items()}
        return cls(fields["isa"], int(fields["threads"]), capacities=capacities, **figures)


def roofline(
    threads: int = 1, isa: str = "native", *, fresh: bool = False, seconds: float = _SECONDS
) -> Roofline:
    """The limits of this processor, measured once for each model of processor and then remembered.

    Args:
        threads: Threads that work together.
        isa: ``native`` or one of ``isa_levels()``.
        fresh: Measure again; what is remembered is left as it is.
        seconds: Spent on each of about eight figures; the best of many short blocks counts, so that what else the
            machine does matters little.

    Raises:
        UnsupportedError: The native kernels were not built.
        OptionError: An argument is out of range.
    """
    level = choose_isa(isa) if need_native() else isa
    if isinstance(threads, bool) or not isinstance(threads, int) or not 1 <= threads <= _MOST_THREADS:
        raise OptionError("threads", threads, f"a whole number within 1 .. {_MOST_THREADS}")
    if not 0 < seconds <= _MOST_SECONDS:
        raise OptionError("seconds", seconds, f"a number over 0, at most {_MOST_SECONDS:g}")
    if fresh:
        return _measure(level, threads, seconds)

    def make(folder: Path) -> None:
        found = _measure(level, threads, seconds)
        (folder / "roofline.json").write_text(json.dumps(found.to_dict()))

    folder = Cache().folder(key_of("roofline", _VERSION, machine_key(), level, threads), make)
    return Roofline.from_dict(json.loads((folder / "roofline.json").read_text()))


def _measure(isa: str, threads: int, seconds: float) -> Roofline:
    found = need_native().roofline(isa, threads, seconds)
    peaks, bandwidths, capacities = {}, {}, {}
    for name, value in found.items():
        part, _, level = name.partition("_")
        if part == "read":
            bandwidths[level] = Figure(value, "GB/s", Source.MEASURED, note="best of blocks")
        elif part == "bytes" and level != LEVELS[-1]:
            capacities[level] = 2 * int(value)  # half of it was read
        elif part != "bytes":
            unit = "GFLOP/s" if name in ("fp32", "amx_bf16") else "GOP/s"
            peaks[name] = Figure(value, unit, Source.MEASURED, note="best of blocks")
    return Roofline(isa, threads, peaks, bandwidths, capacities)
