"""Rounding that gradients pass: what stands in for a quantised weight while it is trained.

Put on a weight with ``module.on_weight(name, fake)``. After training ``learned`` tells what to store.
"""

from __future__ import annotations

from typing import Any

import numpy as np
import torch
from torch import Tensor, nn


class StraightThrough(nn.Module):
    """Rounds to levels under the largest weight of the moment; the gradient passes as if it did not.

    The rule of QKeras' ``quantized_po2`` (without its fixed scale of 1: no weight ever leaves the largest level, so
    there is nothing to clip) and, with one scale per row, of MSQ (Chang et al. 2021).

    Args:
        magnitudes: ``(n,)``: magnitudes of the levels, ascending, the largest 1.
        boundaries: ``(n - 1,)``: where rounding changes.
        axis: Axis of the scales, None for one.
    """

    def __init__(self, magnitudes: np.ndarray, boundaries: np.ndarray, axis: int | None) -> None:
        super().__init__()
        self.register_buffer("magnitudes", torch.from_numpy(magnitudes.astype(np.float32)))
        self.register_buffer("boundaries", torch.from_numpy(boundaries.astype(np.float32)))
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded weights of the same shape."""
        scale = largest(weight.detach(), self.axis)
        rounded = scale * to_levels(weight.detach() / scale, self.magnitudes, self.boundaries)  # type: ignore[arg-type]
        return weight + (rounded - weight).detach()

    def learned(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to round and the scale to do so with, ``()`` or ``(channels,)`` float32."""
        scale = largest(torch.from_numpy(weight), self.axis).numpy()
        return weight, scale.reshape(() if self.axis is None else (-1,))


class TrainedClip(nn.Module):
    """Rounds normalised weights to levels below a bound that is trained (Li et al. 2020, APoT, section 2.3).

    ``n = (w - mean) / std`` of the whole layer, ``alpha * P(clip(n / alpha, -1, 1))``, times ``std``. The statistics
    are constants to the gradient; the gradient of ``n`` is not clipped, that of alpha is ``sign(n)`` where ``n`` lies
    beyond it and ``(rounded - n) / alpha`` within. Multiplying by ``std`` again changes nothing behind a batch
    normalisation, and spares the others a fold; the mean stays out of the weights for good.

    Args:
        magnitudes: As for :class:`StraightThrough`.
        boundaries: Likewise.
        alpha: Where training starts: one bound, or ``(channels,)`` along ``axis``.
        axis: Axis of the bounds, None for one.
    """

    def __init__(
        self, magnitudes: np.ndarray, boundaries: np.ndarray, alpha: np.ndarray, axis: int | None
    ) -> None:
        super().__init__()
        self.register_buffer("magnitudes", torch.from_numpy(magnitudes.astype(np.float32)))
        self.register_buffer("boundaries", torch.from_numpy(boundaries.astype(np.float32)))
        self.alpha = nn.Parameter(torch.from_numpy(np.array(alpha, np.float32)))
        self.axis = axis

    def forward(self, weight: Tensor) -> Tensor:
        """Rounded weights of the same shape, without their mean."""
        mean, std = statistics(weight)
        normal = (weight - mean) / std
        alpha = spread(self.alpha, weight.dim(), self.axis)
        return std * _Clipped.apply(normal, alpha, self.magnitudes, self.boundaries)  # type: ignore[operator]

    def learned(self, weight: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """What to round and the scale to do so with."""
        tensor = torch.from_numpy(weight)
        mean, std = statistics(tensor)
        alpha = self.alpha.detach().abs().clamp_min(1e-6)
        return (tensor - mean).numpy(), (alpha * std).numpy()


class _Clipped(torch.autograd.Function):
    @staticmethod
    def forward(ctx: Any, x: Tensor, alpha: Tensor, magnitudes: Tensor, boundaries: Tensor) -> Tensor:
        bound = alpha.abs().clamp_min(1e-6)
        rounded = bound * to_levels(x / bound, magnitudes, boundaries)
        ctx.save_for_backward(x, alpha, bound, rounded)
        return rounded

    @staticmethod
    def backward(ctx: Any, *grads: Tensor) -> tuple[Tensor, Tensor, None, None]:
        (grad,) = grads
        x, alpha, bound, rounded = ctx.saved_tensors
        inside = x.abs() <= bound
        slope = torch.where(inside, (rounded - x) / bound, x.sign())
        each = grad * slope * torch.where(alpha < 0, -1.0, 1.0)
        kept = [i for i, n in enumerate(alpha.shape) if n == 1] if alpha.dim() else []
        summed = each.sum(dim=kept, keepdim=True) if alpha.dim() else each.sum()
        return grad, summed.reshape(alpha.shape), None, None


def to_levels(x: Tensor, magnitudes: Tensor, boundaries: Tensor) -> Tensor:
    """Nearest level; a value between two as near takes the one of larger magnitude, 0 the smallest positive one."""
    places = torch.bucketize(x.abs().contiguous(), boundaries, right=True)
    found = magnitudes[places]
    return torch.where(x < 0, -found, found)


def largest(weight: Tensor, axis: int | None) -> Tensor:
    """Largest magnitude of each slice, in a shape that multiplies ``weight``; 1 where all is zero."""
    if axis is None:
        found = weight.abs().amax().reshape([1] * weight.dim())
    else:
        found = weight.abs().amax([a for a in range(weight.dim()) if a != axis], keepdim=True)
    return torch.where(found > 0, found, 1.0)


def statistics(weight: Tensor) -> tuple[Tensor, Tensor]:
    """Mean and standard deviation of a layer, as constants."""
    still = weight.detach()
    return still.mean(), still.std().clamp_min(1e-8)


def spread(alpha: Tensor, rank: int, axis: int | None) -> Tensor:
    """``alpha`` in a shape that multiplies an array of ``rank`` dimensions."""
    if axis is None:
        return alpha.reshape([1] * rank)
    shape = [1] * rank
    shape[axis] = -1
    return alpha.reshape(shape)
