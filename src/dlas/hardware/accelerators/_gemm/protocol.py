"""Words between driver and matrix-product accelerator: one description that packs them and that decodes them.

Every section starts with one header word of 128 bits, whose fields are those below, lowest first. ``WEIGHTS`` is
followed, per block of output channels and unit, by the steps of its weights, then by three words per four channels:
biases, multipliers, shifts. ``INPUTS`` is followed by the steps of each tile of pixels.
"""

from __future__ import annotations

from enum import IntFlag

from amaranth.hdl import signed, unsigned

from dlas.hardware.rtl.header import Header


class Opcode(IntFlag):
    """First field of a header."""

    WEIGHTS = 1
    INPUTS = 2
    CONFIGURE = 8


CONFIGURE = Header(
    Opcode.CONFIGURE,
    {
        "steps": unsigned(16),  # of a sum
        "interval": unsigned(16),  # cycles from pass to pass
        "slots": unsigned(16),  # tiles that the input buffer holds
        "mode": unsigned(2),  # rounding
        "zero_point": signed(8),
        "low": signed(8),
        "high": signed(8),
    },
)
WEIGHTS = Header(Opcode.WEIGHTS, {"blocks": unsigned(16)})
INPUTS = Header(Opcode.INPUTS, {"tiles": unsigned(32), "final": unsigned(1)})
