"""The comparison unit: a quantiser that searches its scale and its noise, and what it costs.

NoisyQuant (Liu et al. 2023) as the eDQA experiment builds it: the channel is multiplied by weights once as it is; then
a hundred scales (``peak * i / 100``) and a hundred noises (``step * j / 50``, j in -50 .. 49) are tried, each by
quantising the channel, multiplying again, and comparing the sums. The best of each is kept.

There is no RTL of it: its cycles are an estimate. The estimate is kind to it: as many lanes as DQA's unit has,
quantising and comparing hidden behind the product, no weights to be fetched again.
"""

from __future__ import annotations

import math
from collections.abc import Iterable
from dataclasses import dataclass

import numpy as np

from dlas.hardware.accelerators._dqa.geometry import LANES
from dlas.hardware.rtl.sizes import BUS_BYTES

STEPS = 100  # of each search
_PRODUCT_LATENCY = 6  # product, tree of eight, sum, difference, square


@dataclass(frozen=True)
class NoisyUnit:
    """Sizes of the unit.

    Attributes:
        bits: Bits of a quantised value (n).
        outputs: Columns of the weights that the channel, as a square map, is multiplied by.
    """

    bits: int = 3
    outputs: int = 8

    def side(self, count: int) -> int:
        """Columns of the channel as a map, and rows of the weights."""
        return math.isqrt(count - 1) + 1

    def cycles(self, count: int) -> dict[str, int]:
        """Cycles of a channel of ``count`` values, by phase, and in all (``total``)."""
        rows, side = -(-count // LANES), self.side(count)
        weights = -(-side * self.outputs // BUS_BYTES)
        product = rows * self.outputs + _PRODUCT_LATENCY
        step = product + self.bits + 2  # the way through the division comes first
        stored = -(-count * self.bits // (8 * BUS_BYTES)) + 1
        phases = {
            "load": 1 + rows + weights,
            "forward": product,
            "scale_search": STEPS * step,
            "noise_search": STEPS * step,
            "quantize": rows + self.bits + 2 + 1,
            "dequantize": 1 + stored + rows + 2,
        }
        return {**phases, "total": sum(phases.values())}

    def transfer_bytes(self, count: int) -> int:
        """Bytes over the bus: values and weights in, codes out and in again, values out."""
        rows, weights = -(-count // LANES), -(-self.side(count) * self.outputs // BUS_BYTES)
        stored = -(-count * self.bits // (8 * BUS_BYTES)) + 1
        return BUS_BYTES * (2 + 2 * rows + weights + 2 * stored)

    def stored_bits(self, count: int) -> int:
        """Bits of codes, scale and noise (float32 each)."""
        return count * self.bits + 64

    def search(self, values: np.ndarray, weights: np.ndarray) -> NoisyChannel:
        """Scale and noise of a channel ``(V,) int16`` for weights ``(side, outputs)``; values in float64."""
        x = np.zeros(self.side(len(values)) ** 2)
        x[: len(values)] = values
        wanted = self._sums(x, weights)
        peak = max(float(np.abs(x).max()), 1.0)

        def best(candidates: Iterable[tuple[float, float]]) -> tuple[float, float, float]:
            return min(
                (float(np.square(self._sums(self._back(x, *c), weights) - wanted).mean()), *c)
                for c in candidates
            )

        level = 2 ** (self.bits - 1) - 1
        scales = [(peak * i / STEPS / level, 0.0) for i in range(1, STEPS + 1)]
        before, step, _ = best(scales)
        error, _, noise = best((step, step * j / (STEPS // 2)) for j in range(-STEPS // 2, STEPS // 2))
        return NoisyChannel(step, noise, before, error)

    def restored(self, values: np.ndarray, found: NoisyChannel) -> np.ndarray:
        """What comes back of a channel, ``(V,) float64``."""
        return self._back(values.astype(np.float64), found.step, found.noise)

    def _back(self, x: np.ndarray, step: float, noise: float) -> np.ndarray:
        limit = 2 ** (self.bits - 1)
        return np.clip(np.ceil((x + noise) / step - 0.5), -limit, limit - 1) * step - noise

    def _sums(self, x: np.ndarray, weights: np.ndarray) -> np.ndarray:
        return x.reshape(-1, len(weights)) @ weights


@dataclass(frozen=True)
class NoisyChannel:
    """What a search found.

    Attributes:
        step: Of the codes.
        noise: Added before rounding, subtracted after it.
        error_before: Mean squared error of the sums with the best scale alone.
        error: With the best noise as well.
    """

    step: float
    noise: float
    error_before: float
    error: float
