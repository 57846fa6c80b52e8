"""A network in torch, for what an attack needs to know of its slopes.

Quantised tensors let the gradient through as if nothing was rounded (straight-through estimator), which is how a
quantised network is attacked on its own weights.
"""

from __future__ import annotations

from contextlib import nullcontext
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model
from dlas.graph.torch_module import to_torch
from dlas.verify.attack.attack import NoGradientError
from dlas.verify.attack.pixels import Pixels

if TYPE_CHECKING:
    import torch

LOSSES = ("cross-entropy", "margin")

_NUMBERS = 2**22  # of the samples that are run together
_THROUGH = {"QuantizeLinear", "DequantizeLinear", "Identity", "Cast", "Reshape", "Flatten", "Squeeze"}


class Twin:
    """A network in torch, from samples in 0..1 to scores.

    Where the network ends with a softmax, the scores are those before it: behind it they lose all slope as the
    network grows sure, and a network that only stops saying how sure it is would look robust.

    Args:
        model: The network.
        pixels: How it takes samples.

    Raises:
        UnsupportedError: torch cannot run the network.
    """

    def __init__(self, model: Model, pixels: Pixels) -> None:
        self.module: Any = to_torch(model)
        for parameter in self.module.parameters():
            parameter.requires_grad_(False)
        self.pixels = pixels
        self._softmax = _before_softmax(model)
        first = model.inputs[0].shape[0]
        self._batch = first if isinstance(first, int) else 0

    def logits(self, samples: torch.Tensor) -> torch.Tensor:
        """Scores before any softmax, ``(N, classes) float32``, of samples in 0..1."""
        import torch

        parts = [self._part(part) for part in samples.split(self._step(samples))]
        return parts[0] if len(parts) == 1 else torch.cat(parts)

    def gradient(self, samples: torch.Tensor, labels: torch.Tensor, loss: str = LOSSES[0]) -> torch.Tensor:
        """Gradient of the loss of every sample, ``(N, ...) float32``.

        Args:
            samples: In 0..1.
            labels: Right answers.
            loss: One of ``LOSSES``; the margin is the best other score less that of the label, which keeps its slope
                where the network is so sure that the cross-entropy is flat.

        Raises:
            NoGradientError: None reaches the samples, or it is not a number.
        """
        import torch

        parts = []
        step = self._step(samples)
        for part, known in zip(samples.split(step), labels.split(step), strict=True):
            x = part.detach().clone().requires_grad_()
            raised = _LOSS[loss](self.logits(x), known)
            if not raised.requires_grad:
                raise NoGradientError(
                    "no gradient reaches the input", "black boxes can attack it: square, nes"
                )
            (slope,) = torch.autograd.grad(raised, x, allow_unused=True)
            if slope is None:
                raise NoGradientError(
                    "no gradient reaches the input", "black boxes can attack it: square, nes"
                )
            broken = int((~torch.isfinite(slope)).flatten(1).any(1).sum())
            if broken:
                raise NoGradientError(
                    f"the gradient of {broken} of {len(x)} samples is not a number",
                    "black boxes can attack it: square, nes",
                )
            parts.append(slope)
        return torch.cat(parts)

    def flat(self, samples: np.ndarray, labels: np.ndarray) -> int:
        """How many samples have a gradient that is 0 everywhere; raises NoGradientError."""
        import torch

        slope = self.gradient(torch.from_numpy(samples), torch.from_numpy(labels))
        return int((slope == 0).flatten(1).all(1).sum())

    def _step(self, samples: torch.Tensor) -> int:
        return self._batch or max(1, min(len(samples), _NUMBERS // max(1, samples[0].numel())))

    def _part(self, samples: torch.Tensor) -> torch.Tensor:
        import torch

        count = len(samples)
        fed = self.pixels.fed_tensor(samples)
        if self._batch > count:  # a fixed batch is filled with its last sample
            fed = torch.cat([fed, fed[-1:].expand(self._batch - count, *fed.shape[1:])])
        with self.module.kept([self._softmax]) if self._softmax else nullcontext({}) as kept:
            answer = self.module(fed)
        scores = kept[self._softmax] if self._softmax else answer
        if isinstance(scores, tuple):
            scores = scores[0]
        return scores.reshape(len(fed), -1)[:count].float()


def _cross_entropy(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    import torch

    return torch.nn.functional.cross_entropy(scores, labels, reduction="sum")


def _margin(scores: torch.Tensor, labels: torch.Tensor) -> torch.Tensor:
    own = scores.gather(1, labels[:, None])
    others = scores.scatter(1, labels[:, None], float("-inf"))
    return (others.amax(1) - own[:, 0]).sum()


_LOSS = {"cross-entropy": _cross_entropy, "margin": _margin}


def _before_softmax(model: Model) -> str:
    """Name of what the softmax at the end of the first output reads; empty where there is none."""
    value = model.ir.graph.outputs[0]
    while (node := value.producer()) is not None and node.op_type in _THROUGH:
        read = node.inputs[0]
        if read is None:
            return ""
        value = read
    if node is None or node.op_type != "Softmax" or node.inputs[0] is None:
        return ""
    return str(node.inputs[0].name)


def twin_of(model: Model, pixels: Pixels) -> Twin | str:
    """The network in torch, or why there is none."""
    try:
        return Twin(model, pixels)
    except UnsupportedError as error:
        return error.message
