"""Per-channel uniform grids with a zero point for weights of few bits, and the range search that sets them.

``w ~ (q - zero_point) * scale`` with unsigned codes ``q`` of 0 .. 2^bits - 1. The range of a channel is the one whose
codes give the least squared error among its full range and 89 shrunk ones (OMSE: Choukroun et al. 2019, "Low-bit
quantization of neural networks for efficient inference").
"""

from __future__ import annotations

from dataclasses import dataclass, replace

import numpy as np

from dlas.core.errors import ModelError

SHRINKS = 90
_TINY = 2.0**-60  # a scale below it would be a denormal once multiplied by that of an activation


@dataclass(frozen=True)
class UniformGrid:
    """The grid of one weight.

    Attributes:
        scale: ``(channels,) float32``, positive.
        zero_point: ``(channels,) uint8``.
        bits: 2 to 8.
        axis: Channel axis of the weight.
    """

    scale: np.ndarray
    zero_point: np.ndarray
    bits: int
    axis: int

    def quantize(self, weight: np.ndarray) -> np.ndarray:
        """Codes, uint8 in the weight's shape; halves are rounded to even, as QuantizeLinear does."""
        scale, zero = self._spread(weight.ndim)
        codes = np.rint(weight.astype(np.float32) / scale) + zero
        return np.clip(codes, 0, 2**self.bits - 1).astype(np.uint8)

    def dequantize(self, codes: np.ndarray) -> np.ndarray:
        """What codes stand for, float32."""
        scale, zero = self._spread(codes.ndim)
        return (codes.astype(np.float32) - zero) * scale

    def rounded(self, weight: np.ndarray) -> np.ndarray:
        """The weight as it will be, float32."""
        return self.dequantize(self.quantize(weight))

    def scaled(self, scale: np.ndarray) -> UniformGrid:
        """The same zero points with other scales, ``(channels,) float32``."""
        return replace(self, scale=scale)

    def _spread(self, rank: int) -> tuple[np.ndarray, np.ndarray]:
        shape = [1] * rank
        shape[self.axis] = -1
        return self.scale.reshape(shape), self.zero_point.astype(np.float32).reshape(shape)


def omse_grid(weight: np.ndarray, axis: int, bits: int, *, name: str = "weight") -> UniformGrid:
    """The grid of least squared error, channel by channel; 0 always has a code of its own.

    A channel whose weights are all zero takes the largest scale of the others.

    Args:
        weight: Any shape, float32.
        axis: Channel axis.
        bits: 2 to 8.
        name: Tensor named in errors.

    Raises:
        ModelError: A weight is not finite.
    """
    if not np.isfinite(weight).all():
        raise ModelError(f"{name} holds NaN or infinity", "mend or retrain the network before quantising it")
    rows = np.moveaxis(np.asarray(weight, np.float64), axis, 0).reshape(weight.shape[axis], -1)
    low = np.minimum(rows.min(1, initial=0.0), 0.0)
    high = np.maximum(rows.max(1, initial=0.0), 0.0)
    top = 2**bits - 1
    full = (high - low) / top
    dead = full < _TINY
    full[dead] = full.max(initial=0.0) if (~dead).any() else 1.0 / top
    # Both ends shrink by the same factor, so that the share of the range below 0, and with it the code of 0, stays.
    zero = np.clip(np.rint(-low / full), 0, top).astype(np.uint8)
    best = np.full(len(rows), np.inf)
    scale = np.zeros(len(rows), np.float32)
    for step in range(SHRINKS):
        trial = np.maximum(full * (1.0 - step / 100.0), _TINY).astype(np.float32)
        grid = UniformGrid(trial, zero, bits, 0)
        error = ((grid.rounded(rows).astype(np.float64) - rows) ** 2).sum(1)
        better = error < best
        best[better], scale[better] = error[better], trial[better]
    return UniformGrid(scale, zero, bits, axis)
