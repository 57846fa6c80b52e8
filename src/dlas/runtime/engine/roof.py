"""The limits of this machine as the engine's profiler uses them."""

from __future__ import annotations

from dlas.runtime.engine.work import Roof


def roof_for(threads: int, isa: str = "native") -> Roof | None:
    """What this machine can do with ``threads`` threads, measured once and remembered."""
    return None
