"""Loss that keeps a pruned network near the one it came from (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any

from dlas.compress.losses import cross_entropy, divergence
from dlas.compress.training import Schedule
from dlas.graph.model import Model


class Distilled:
    """Cross-entropy, plus the Kullback-Leibler divergence from the teacher's softened answers, mean over the rows.

    ``CE + KL(softmax(student / T) || softmax(teacher / T))`` in the sense of torch (the teacher is the target); without
    the factor T^2, as ICE-Pruning has it.

    Args:
        teacher: The network before pruning; it is run in eval mode without gradients.
        temperature: T.
    """

    def __init__(self, teacher: Model, temperature: float) -> None:
        from dlas.graph.torch_module import to_torch

        self._teacher = to_torch(teacher)
        self._temperature = temperature
        self._narrow = Schedule(1, 1.0).narrow

    def __call__(self, outputs: Any, labels: Any, inputs: Any) -> Any:
        """Scalar loss of logits or probabilities ``(N, classes)``."""
        import torch

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self._narrow):
            answer = self._teacher(inputs)
        wanted = answer[0] if isinstance(answer, tuple) else answer
        distance = divergence(outputs, wanted, self._temperature) / self._temperature**2
        return cross_entropy(outputs, labels) + distance
