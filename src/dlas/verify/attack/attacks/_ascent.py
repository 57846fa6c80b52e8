"""Steps along the sign of the gradient, kept near the samples."""

from __future__ import annotations

import numpy as np

from dlas.verify.attack.attack import Job
from dlas.verify.attack.twin import LOSSES, Twin


def ascended(
    twin: Twin, job: Job, start: np.ndarray, *, steps: int, step: float, loss: str = LOSSES[0]
) -> np.ndarray:
    """``steps`` steps of size ``step`` that raise the loss, from ``start``: ``(N, ...) float32``.

    Each number moves by ``step`` in the direction of the sign of its slope, and is brought back to ``eps`` from the
    sample and into 0..1, in this order, which makes the result that of other libraries to the last bit.
    """
    import torch

    samples, labels = torch.from_numpy(job.samples), torch.from_numpy(job.labels)
    x = torch.from_numpy(start)
    for _ in range(steps):
        x = x + step * twin.gradient(x, labels, loss).sign()
        x = samples + torch.clamp(x - samples, -job.eps, job.eps)
        x = torch.clamp(x, 0.0, 1.0)
    return x.numpy()
