"""Words between driver and accelerator of transposed convolutions: what packs them and what decodes them.

Every section starts with one header word of 128 bits, whose fields are those below, lowest first. A run begins with
``CONFIGURE``, ``COLUMNS``, ``ROWS`` and ``SUMS``. ``WEIGHTS`` is followed, per output channel of a group, by the words
of its filter, tap by tap, and by one word with its bias, multiplier and shift. ``INPUTS`` is followed by the words of
each pixel, position by position.
"""

from __future__ import annotations

from enum import IntFlag

from amaranth.hdl import signed, unsigned
from amaranth.lib import data

from dlas.hardware.rtl.header import Header
from dlas.hardware.rtl.sizes import BUS_BITS


class Opcode(IntFlag):
    """First field of a header."""

    WEIGHTS = 1
    INPUTS = 2
    CONFIGURE = 8
    COLUMNS = 16
    ROWS = 32
    SUMS = 64


CONFIGURE = Header(
    Opcode.CONFIGURE,
    {
        "mode": unsigned(2),  # rounding
        "x_zero": signed(8),  # zero point of the input
        "zero_point": signed(8),
        "low": signed(8),
        "high": signed(8),
        "spread": unsigned(3),  # log2 of the pixels of a position
        "words": unsigned(12),  # of a pixel, or of a tap
        "steps": unsigned(14),  # cycles of a product of both
        "slots": unsigned(16),  # positions that the input banks hold
        "filter_words": unsigned(16),
    },
)
COLUMNS = Header(
    Opcode.COLUMNS,
    {
        "kernel": unsigned(5),
        "stride": unsigned(5),
        "hop": unsigned(9),  # stride times spread: columns from position to position
        "begin": unsigned(5),  # columns cropped at the left
        "outputs": unsigned(13),
        "positions": unsigned(13),
        "back": signed(18),  # words from the first tap to the first that reaches the output, position 0
        "back_hop": unsigned(18),  # how many fewer they are at the next position
    },
)
ROWS = Header(
    Opcode.ROWS,
    {
        "kernel": unsigned(5),
        "stride": unsigned(5),
        "begin": unsigned(5),
        "outputs": unsigned(13),
        "inputs": unsigned(13),
        "images": unsigned(12),
        "words": unsigned(17),  # of a row of taps
        "back": unsigned(20),  # as for columns, row 0
    },
)
SUMS = Header(
    Opcode.SUMS,
    {
        "ring_rows": unsigned(8),  # rows of the output that there is room for
        "ring": unsigned(16),  # sums of all of them
        "image": unsigned(16),  # from the first row of an image to that of the next, around the ring
        "back_hop": unsigned(21),  # of the rows of taps
        "reached_rows": unsigned(14),  # rows of the output that a tap reaches
        "reached_columns": signed(
            16
        ),  # end of the columns that a tap of the first pixel of a position reaches
    },
)
WEIGHTS = Header(Opcode.WEIGHTS, {})
INPUTS = Header(Opcode.INPUTS, {"positions": unsigned(32), "final": unsigned(1)})

PARAMETERS = data.StructLayout(
    {"bias": signed(32), "multiplier": signed(32), "shift": signed(8), "unused": unsigned(BUS_BITS - 72)}
)
