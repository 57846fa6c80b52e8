"""Long short-term memory with unstructured sparse recurrent weights."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.recurrent._cells import Recurrent


@kernels.register("lstm-csr")
class LstmCsr(Recurrent):
    """The zeros of R are left out when it is prepared; the state stays in registers and each weight picks from it."""

    name = "lstm-csr"
    ops: ClassVar[tuple[str, ...]] = ("LSTM",)
    summary = "LSTM without the zeros of its recurrent weights"
    sparse = True
