"""Loss that keeps a pruned network near the one it came from (Hinton et al. 2015, arXiv:1503.02531)."""

from __future__ import annotations

from typing import Any

from dlas.compress.training import Schedule, cross_entropy
from dlas.graph.model import Model


class Distilled:
    """Cross-entropy, plus the Kullback-Leibler divergence from the teacher's softened answers, mean over the rows.

    ``CE + KL(softmax(student / T) || softmax(teacher / T))`` in the sense of torch (the teacher is the target); without
    the factor T^2, as ICE-Pruning has it.

    Args:
        teacher: The network before pruning; it is run in eval mode without gradients.
        temperature: T.
        threads: Threads of torch.
    """

    def __init__(self, teacher: Model, temperature: float, threads: int) -> None:
        from dlas.graph.torch_module import to_torch

        self._teacher = to_torch(teacher)
        self._temperature = temperature
        self._narrow = Schedule(1, 1.0, threads=threads).narrow

    def __call__(self, outputs: Any, labels: Any, inputs: Any) -> Any:
        """Scalar loss of logits or probabilities ``(N, classes)``."""
        import torch
        from torch.nn import functional as F  # noqa: N812

        with torch.no_grad(), torch.autocast("cpu", torch.bfloat16, enabled=self._narrow):
            answer = self._teacher(inputs)
        wanted = answer[0] if isinstance(answer, tuple) else answer
        soft, target = (F.log_softmax(_logits(o) / self._temperature, 1) for o in (outputs, wanted))
        distance = F.kl_div(soft, target, reduction="batchmean", log_target=True)
        return cross_entropy(outputs, labels) + distance


def _logits(outputs: Any) -> Any:
    """Logarithms of probabilities where the network ends in a softmax; logits as they are."""
    rows = outputs.flatten(1).float()
    seen = rows.detach()
    probable = bool((seen >= 0).all()) and bool(((seen.sum(1) - 1).abs() < 1e-3).all())
    return rows.clamp_min(1e-12).log() if probable else rows
