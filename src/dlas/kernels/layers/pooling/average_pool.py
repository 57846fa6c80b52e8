"""Mean of each window."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.pooling._checks import WindowPool


@kernels.register("average-pool")
class AveragePool(WindowPool):
    """With ``ceil_mode`` and ``count_include_pad`` as in ONNX opset 19: what lies beyond the padding never counts."""

    name = "average-pool"
    ops: ClassVar[tuple[str, ...]] = ("AveragePool",)
    summary = "mean of each window"
