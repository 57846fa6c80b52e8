"""Words between driver and activation quantiser: one description that packs them and that decodes them.

``STORE`` is followed by the values of a channel, int16, eight per word, the last word filled up with zeros. The unit
answers with the kept bits, the ``TABLE`` word, and the payload: the residues' codes without gaps. ``RESTORE`` is
followed by the payload, then by the kept bits; the unit answers with the values. Bit strings start at the lowest bit of
their first word. Codes are sent reversed, so that their first (most significant) bit comes first there.
"""

from __future__ import annotations

from enum import IntFlag

from amaranth.hdl import unsigned
from amaranth.lib import data

from dlas.hardware.rtl.header import Header
from dlas.hardware.rtl.sizes import BUS_BITS


class Opcode(IntFlag):
    """First field of a header."""

    STORE = 1
    RESTORE = 2


STORE = Header(Opcode.STORE, {"count": unsigned(16)})
RESTORE = Header(
    Opcode.RESTORE,
    {
        "count": unsigned(16),  # values
        "peak": unsigned(16),  # largest magnitude
        "payload_words": unsigned(16),
        "lengths": unsigned(24),  # code table: 3 bits per residue, the first lowest
    },
)
TABLE = data.StructLayout(
    {
        "lengths": unsigned(24),
        "peak": unsigned(16),
        "payload_bits": unsigned(32),
        "unused": unsigned(BUS_BITS - 72),
    }
)
