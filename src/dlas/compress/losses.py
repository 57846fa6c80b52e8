"""Losses of classifiers: of logits, or of probabilities where the network ends in a softmax."""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlas.core.errors import DataError

if TYPE_CHECKING:
    import torch


def cross_entropy(outputs: torch.Tensor, labels: torch.Tensor, _: torch.Tensor | None = None) -> torch.Tensor:
    """Mean cross-entropy of logits ``(N, classes)``; of probabilities where the network ends in a softmax.

    Raises:
        DataError: A label ``(N,) int64`` is beyond the network's classes.
    """
    from torch.nn import functional as F  # noqa: N812

    outputs = outputs.flatten(1).float()
    if int(labels.max()) >= outputs.shape[1] or int(labels.min()) < 0:
        raise DataError(
            f"a label is {int(labels.max())}, the network has {outputs.shape[1]} outputs",
            "the data set does not belong to this network",
        )
    if _probable(outputs):
        return F.nll_loss(outputs.clamp_min(1e-12).log(), labels)
    return F.cross_entropy(outputs, labels)


def divergence(student: torch.Tensor, teacher: torch.Tensor, temperature: float) -> torch.Tensor:
    """``T^2 KL(softmax(teacher / T) || softmax(student / T))``, summed over classes, mean over samples.

    Hinton et al. 2015 (arXiv:1503.02531); public codes that average over classes too differ from it by a factor.

    Args:
        student: ``(N, classes)`` logits or probabilities; gradients flow into these.
        teacher: ``(N, classes)`` logits or probabilities.
        temperature: T; the factor keeps the size of the gradient.
    """
    from torch.nn import functional as F  # noqa: N812

    near, far = (F.log_softmax(_logits(o) / temperature, 1) for o in (student, teacher.detach()))
    return F.kl_div(near, far, reduction="batchmean", log_target=True) * temperature**2


def _logits(outputs: torch.Tensor) -> torch.Tensor:
    rows = outputs.flatten(1).float()
    return rows.clamp_min(1e-12).log() if _probable(rows) else rows


def _probable(rows: torch.Tensor) -> bool:
    seen = rows.detach()
    return bool((seen >= 0).all()) and bool(((seen.sum(1) - 1).abs() < 1e-3).all())
