"""Compiles the delegate on first use, has it proved on this LiteRT, and keeps it by content."""

from __future__ import annotations

import shutil
from collections.abc import Sequence
from pathlib import Path

from dlas.core.cache import Cache, key_of
from dlas.core.errors import UnsupportedError
from dlas.core.lazy import distribution_version, optional_import
from dlas.core.worker import WorkerFailure, run_in_worker
from dlas.hardware.simulation.tools import run_tool

_HERE = Path(__file__).parent
_SOURCES = ("delegate.cpp", "guard.py", "bridge.py")
_FLAGS = ("-std=c++17", "-O2", "-fPIC", "-shared")
_FILE = "delegate.so"
_COMPILE_LIMIT_S, _CHECK_LIMIT_S = 300.0, 120.0


def library(flags: Sequence[str] = ()) -> Path:
    """The compiled delegate, from the cache where it is there.

    Args:
        flags: More for the compiler, for tests.

    Raises:
        MissingDependencyError: LiteRT is not installed.
        UnsupportedError: There is no C++ compiler, or LiteRT's structures are not those that the delegate reads.
        DlasError: It does not compile.
    """
    optional_import("ai_edge_litert.interpreter", extra="tflite", needed_for="the LiteRT delegate")
    version = distribution_version("ai-edge-litert")
    sources = [(_HERE / name).read_text() for name in _SOURCES]
    key = key_of("litert delegate", version, sources, _FLAGS, list(flags))

    def make(folder: Path) -> None:
        gcc = shutil.which("g++")
        if gcc is None:
            raise UnsupportedError(
                "the LiteRT delegate is compiled on first use, and there is no g++", "install g++"
            )
        command: list[str | Path] = [gcc, *_FLAGS, *flags, _HERE / "delegate.cpp", "-o", _FILE]
        run_tool("the C++ compiler", command, folder, _COMPILE_LIMIT_S)
        _prove(folder / _FILE, version)

    return Cache().folder(key, make) / _FILE


def _prove(path: Path, version: str) -> None:
    """Whatever a wrong layout does, it does it to another process."""
    try:
        run_in_worker("dlas.runtime.delegate.guard:check", str(path), timeout_s=_CHECK_LIMIT_S, threads=1)
    except WorkerFailure as failure:
        raise UnsupportedError(
            f"the delegate does not fit ai-edge-litert {version}, and is not used: {failure.reason}",
            "ai-edge-litert 2.3 is known to work",
        ) from failure
