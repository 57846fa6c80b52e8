"""Header words of a bus: one description that packs them and that decodes them."""

from __future__ import annotations

from collections.abc import Mapping
from enum import IntFlag

import numpy as np
from amaranth.hdl import Shape, unsigned
from amaranth.lib import data

from dlas.hardware.rtl.sizes import BUS_BITS


class Header:
    """Fields of a header: name to shape.

    Args:
        opcode: Which section.
        fields: Fields after the opcode.
    """

    def __init__(self, opcode: IntFlag, fields: Mapping[str, Shape]) -> None:
        self.opcode = opcode
        self._fields = dict(fields)
        used = sum(shape.width for shape in fields.values())
        self.layout = data.StructLayout(
            {"opcode": unsigned(32), **fields, "unused": unsigned(BUS_BITS - 32 - used)}
        )

    def word(self, **values: int) -> np.ndarray:
        """The header as a word, ``(2,) uint64``; raises ValueError for a value that does not fit its field."""
        total, place = int(self.opcode), 32
        for name, shape in self._fields.items():
            value = int(values.pop(name))
            low, high = (
                (-(1 << (shape.width - 1)), 1 << (shape.width - 1)) if shape.signed else (0, 1 << shape.width)
            )
            if not low <= value < high:
                raise ValueError(f"{name} is {value}, its field holds {low} .. {high - 1}")
            total |= (value & ((1 << shape.width) - 1)) << place
            place += shape.width
        if values:
            raise ValueError(f"no fields {', '.join(values)}")
        return np.array([total & (2**64 - 1), total >> 64], np.uint64)
