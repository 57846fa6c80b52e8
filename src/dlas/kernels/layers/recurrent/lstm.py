"""Long short-term memory. Source: S. Hochreiter and J. Schmidhuber, Neural Computation 9(8), 1997, as in ONNX."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.recurrent._cells import Recurrent


@kernels.register("lstm")
class Lstm(Recurrent):
    """Forward, reverse or both, with initial states, peepholes and sequence lengths."""

    name = "lstm"
    ops: ClassVar[tuple[str, ...]] = ("LSTM",)
    summary = "LSTM, inputs of many steps as one product, then a strip of gates at a time"
