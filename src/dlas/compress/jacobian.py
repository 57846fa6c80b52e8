"""Jacobian regularisation: a loss that also asks the scores to change little where the input, or a layer's, does.

Hoffman et al. 2019, "Robust learning with Jacobian regularization" (arXiv:1908.02729): the squared Frobenius norm of
the Jacobian is estimated with one random direction ``v`` on the unit sphere per sample, as
``C * || d(v . z) / dx ||^2`` for ``C`` scores; its mean over directions is the norm itself. One backward pass gives the
estimate for any number of inputs: those of the network, and those of its layers.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field

import torch
from torch import Tensor
from torch.nn import functional as F  # noqa: N812


def squared_norms(scores: Tensor, inputs: Sequence[Tensor]) -> list[Tensor]:
    """Estimates of the mean over the batch of ``|| d scores / d input ||_F^2``, one for each of ``inputs``.

    Args:
        scores: ``(N, C)``, computed from ``inputs`` with a graph that can be differentiated twice.
        inputs: Tensors with the batch first; a row of scores depends on that row only. One that the scores do not
            depend on, as in front of another output, has a norm of 0.
    """
    directions = F.normalize(torch.randn_like(scores), dim=1)
    slopes = torch.autograd.grad(
        (directions * scores).sum(), list(inputs), create_graph=True, materialize_grads=True
    )
    return [scores.shape[1] * slope.flatten(1).square().sum(1).mean() for slope in slopes]


@dataclass
class JacobianLoss:
    """``cross-entropy + strength / 2 * (weight * ||dz/dx||^2 + layer_weight * sum_l ||dz/dh_l||^2)``.

    A :data:`~dlas.compress.training.LossHook`; training must ask for ``input_gradients``.

    Attributes:
        weight: Weight of the input's Jacobian.
        layer_weight: Weight of the Jacobian of each layer's input.
        kept: Values of the latest run by name, as ``GraphModule.kept`` fills it.
        scores: Name of the scores among them, where the network ends in a softmax; else its output is taken.
        layers: Names of the layers' inputs among them.
        strength: 0 (nothing but cross-entropy) to 1; set while training goes on.
    """

    weight: float
    layer_weight: float = 0.0
    kept: Mapping[str, Tensor] = field(default_factory=dict)
    scores: str = ""
    layers: tuple[str, ...] = ()
    strength: float = 1.0

    def __call__(self, outputs: Tensor, labels: Tensor, inputs: Tensor) -> Tensor:
        """The loss of a batch."""
        scores = (self.kept[self.scores] if self.scores else outputs).flatten(1).float()
        loss = F.cross_entropy(scores, labels)
        if self.strength == 0:
            return loss
        hidden = [self.kept[name] for name in self.layers] if self.layer_weight else []
        norms = squared_norms(scores, [inputs, *hidden])
        penalty = self.weight * norms[0] + self.layer_weight * sum(norms[1:])
        return loss + self.strength / 2 * penalty
