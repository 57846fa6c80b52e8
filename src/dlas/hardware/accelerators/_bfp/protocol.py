"""Words between driver and block floating-point accelerator; fields of a header stand lowest first.

``INPUTS`` is followed by 18 words per super-block of activations: 256 codes and the 16 sums of their sub-blocks.
``WEIGHTS`` is followed, per slot, by the words of one super-block of each row (see
:mod:`dlas.hardware.accelerators._bfp.formats`).
"""

from __future__ import annotations

from enum import IntFlag

from amaranth.hdl import unsigned

from dlas.hardware.rtl.header import Header


class Opcode(IntFlag):
    """First field of a header."""

    INPUTS = 1
    WEIGHTS = 2


INPUTS = Header(
    Opcode.INPUTS,
    {
        "passes": unsigned(16),  # rows of activations
        "blocks": unsigned(16),  # super-blocks in all rows together
    },
)
WEIGHTS = Header(
    Opcode.WEIGHTS,
    {
        "format": unsigned(4),
        "slots": unsigned(32),
        "final": unsigned(1),  # the last result of this section is the last one of the run
    },
)
