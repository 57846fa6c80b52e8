"""What stands in for weights and activations while a network learns to be ternary; gradients pass straight through."""

from __future__ import annotations

import math
from dataclasses import dataclass
from typing import Literal

import torch
from torch import Tensor, nn

from dlas.kernels.formats.ternary import ITERATIONS

Mode = Literal["float", "stochastic", "ternary"]

SHARPNESS = 8.0
"""Of the sigmoids that a stochastic code is drawn by."""

_TINY = 1e-12


@dataclass
class Phase:
    """Where training is: float weights, codes drawn by lot, or the nearest codes."""

    mode: Mode = "float"


def least_squares(w: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """Scale (shape that multiplies ``w``) and codes; see :func:`dlas.kernels.formats.ternary.ternarize`."""
    others = [a for a in range(w.dim()) if a != axis]
    size = w.abs()
    scale = 2 / 3 * size.amax(others, keepdim=True)
    chosen = torch.zeros_like(w)
    for _ in range(ITERATIONS):
        chosen = ((size >= scale / 2) & (size > 0)).to(w.dtype)
        scale = (size * chosen).sum(others, keepdim=True) / chosen.sum(others, keepdim=True).clamp_min(1)
    return scale, w.sign() * chosen


def chances(w: Tensor, scale: Tensor, axis: int) -> tuple[Tensor, Tensor]:
    """The two chances that a stochastic code comes from: +1 has ``p0 * p1``, -1 has ``(1 - p0) * (1 - p1)``."""
    others = [a for a in range(w.dim()) if a != axis]
    sigma = w.std(others, keepdim=True, correction=0).clamp_min(_TINY)
    x, threshold = w / sigma, scale / (2 * sigma)
    return torch.sigmoid(SHARPNESS * (x - threshold)), torch.sigmoid(SHARPNESS * (x + threshold))


def drawn(w: Tensor, scale: Tensor, axis: int) -> Tensor:
    """Codes of -1, 0 and 1 by lot: the mean of two signs, each +1 by one of the :func:`chances`."""
    first, second = (torch.where(p >= torch.rand_like(p), 1.0, -1.0) for p in chances(w, scale, axis))
    return ((first + second) / 2).to(w.dtype)


def straight_through(w: Tensor, rounded: Tensor) -> Tensor:
    """``rounded`` to the bit, with the gradient of ``w``."""
    return rounded + (w - w.detach())


class _Weight(nn.Module):
    """A weight as a scale per slice of ``axis`` times codes, but for the float phase."""

    def __init__(self, axis: int, phase: Phase) -> None:
        super().__init__()
        self.axis, self.phase = axis, phase

    def forward(self, w: Tensor) -> Tensor:
        """The weight that is used."""
        if self.phase.mode == "float":
            return w
        with torch.no_grad():
            scale, codes = self._found(w)
        return straight_through(w, scale * codes)

    def _found(self, w: Tensor) -> tuple[Tensor, Tensor]:
        """Scale, in a shape that multiplies ``w``, and codes."""
        raise NotImplementedError


class Ternary(_Weight):
    """A weight as scale times -1, 0 or 1, per slice of ``axis``."""

    def _found(self, w: Tensor) -> tuple[Tensor, Tensor]:
        scale, codes = least_squares(w, self.axis)
        if self.phase.mode == "stochastic" and self.training:
            codes = drawn(w, scale, self.axis)
        return scale, codes


class Rounded(_Weight):
    """A weight in 8 bits: ``scale = max |w| / 127`` per slice of ``axis``, halves away from zero."""

    def _found(self, w: Tensor) -> tuple[Tensor, Tensor]:
        others = [a for a in range(w.dim()) if a != self.axis]
        scale = (w.abs().amax(others, keepdim=True) / 127).clamp_min(_TINY)
        return scale, w.sign() * torch.floor(w.abs() / scale + 0.5).clamp_max(127)


class RoundedActivation(nn.Module):
    """Non-negative values in ``bits`` bits: steps of ``top / 2**bits``, where ``top`` is a power of two.

    ``top`` follows the largest values while the network is float and stays from then on.
    """

    peak: Tensor

    def __init__(self, bits: int, largest: float, phase: Phase) -> None:
        super().__init__()
        self.bits, self.phase = bits, phase
        self.register_buffer("peak", torch.tensor(float(max(largest, _TINY))))

    @property
    def step(self) -> float:
        """Distance of two levels."""
        return 2.0 ** (math.ceil(math.log2(float(self.peak)) - 1e-6) - self.bits)

    def forward(self, x: Tensor) -> Tensor:
        """The values that are handed on."""
        if self.phase.mode == "float":
            if self.training:
                with torch.no_grad():
                    self.peak.mul_(0.95).add_(0.05 * x.max().clamp_min(_TINY))
            return x
        inside = x.clamp(0, (2**self.bits - 1) * self.step)
        return straight_through(inside, torch.round(inside.detach() / self.step) * self.step)


class Normalised(nn.Module):
    """Batch normalisation of a layer's output, folded into the layer at the end.

    Args:
        mean: ``(channels,)`` mean of the output before training.
        variance: ``(channels,)`` its variance.
        weight: ``(channels,)`` factor of what is normalised; by default what makes it begin as no change at all.
        bias: ``(channels,)`` added to it; likewise.
    """

    mean: Tensor
    variance: Tensor

    def __init__(
        self,
        mean: Tensor,
        variance: Tensor,
        weight: Tensor | None = None,
        bias: Tensor | None = None,
        *,
        momentum: float = 0.1,
        eps: float = 1e-5,
    ) -> None:
        super().__init__()
        self.momentum, self.eps = momentum, eps
        self.weight = nn.Parameter(torch.sqrt(variance + eps) if weight is None else weight.clone())
        self.bias = nn.Parameter((mean if bias is None else bias).clone())
        self.register_buffer("mean", mean.clone())
        self.register_buffer("variance", variance.clone())
        self._seen = -1

    def forward(self, x: Tensor) -> Tensor:
        """The values that are handed on."""
        batch = self.training and x.numel() > x.shape[1]
        momentum = self.momentum
        if batch and self._seen >= 0:  # averaging over whole passes
            self._seen += 1
            momentum = 1 / self._seen
        return nn.functional.batch_norm(
            x, self.mean, self.variance, self.weight, self.bias, batch, momentum, self.eps
        )

    def count_anew(self) -> None:
        """Make the statistics the plain mean over the batches that follow in training mode."""
        self._seen = 0

    def factor_and_shift(self) -> tuple[Tensor, Tensor]:
        """``(channels,)`` each: ``x * factor + shift`` is what it does to x in eval mode."""
        factor = self.weight.detach() / torch.sqrt(self.variance + self.eps)
        return factor, self.bias.detach() - self.mean * factor
