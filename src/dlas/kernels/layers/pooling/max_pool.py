"""Largest value of each window."""

from __future__ import annotations

from typing import ClassVar

from dlas.kernels.kernel import kernels
from dlas.kernels.layers.pooling._checks import WindowPool


@kernels.register("max-pool")
class MaxPool(WindowPool):
    """What lies outside the map does not count. Whether a NaN wins depends on where it stands in its window."""

    name = "max-pool"
    ops: ClassVar[tuple[str, ...]] = ("MaxPool",)
    summary = "largest value of each window"
