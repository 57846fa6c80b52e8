"""Any function of one byte.

Source: a table of its 256 values.
"""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.quantized._bytes import ByteKernel


@kernels.register("int8-table")
class Int8Table(ByteKernel):
    """Input 1 holds the values."""

    name = "int8-table"
    ops: ClassVar[tuple[str, ...]] = ("QTable",)
    summary = "8-bit function by table"
    steps = 16.0
