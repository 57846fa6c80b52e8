"""Gated recurrent unit. Source: K. Cho et al., arXiv:1406.1078, as in ONNX."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.recurrent._cells import Recurrent


@kernels.register("gru")
class Gru(Recurrent):
    """Forward, reverse or both, with initial states and sequence lengths; both places of the reset gate."""

    name = "gru"
    ops: ClassVar[tuple[str, ...]] = ("GRU",)
    summary = "GRU, inputs of many steps as one product, then a strip of gates at a time"
