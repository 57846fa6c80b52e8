"""Projected gradient descent from a random start (Madry et al. 2018, arXiv:1706.06083)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks, within
from dlas.verify.attack.attacks._ascent import ascended
from dlas.verify.attack.twin import LOSSES
from dlas.verify.attack.victim import Victim


@dataclass(frozen=True)
class PgdOptions:
    """Options of ``pgd``."""

    steps: int = option(20, "steps of every start", low=1, high=10_000)
    step: float = option(0.25, "size of a step, as a share of eps", low=1e-6, high=2)
    random_start: bool = option(True, "start anywhere within eps instead of at the sample")
    restarts: int = option(1, "starts; the first one that fools the network counts", low=1, high=1000)
    loss: str = option("cross-entropy", "what is raised", choices=LOSSES)
    seed: int = option(0, "seed of the starts", low=0)


@attacks.register("pgd")
class Pgd(Attack):
    """Many small steps along the sign of the gradient: the usual measure of a white box."""

    name = "pgd"
    summary = "many small steps along the sign of the gradient, from a random start"
    Options = PgdOptions
    white_box = True

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """All starts, further ones only for samples that are still answered rightly; see :meth:`Attack.run`."""
        options: PgdOptions = self.options
        draws = job.generators(options.seed)
        found = np.empty_like(job.samples)
        left = np.arange(len(job.samples))
        for start in range(options.restarts):
            part = job.take(left)
            begin = _begin(part, [draws[i] for i in left]) if options.random_start else part.samples
            found[left] = ascended(
                victim.slopes,
                part,
                begin,
                steps=options.steps,
                step=options.step * job.eps,
                loss=options.loss,
            )
            if start + 1 < options.restarts:
                left = left[victim.scores(found[left]).argmax(1) == job.labels[left]]
            if len(left) == 0 or not options.random_start:
                break
        return found


def _begin(job: Job, draws: list[np.random.Generator]) -> np.ndarray:
    noise = [draw.uniform(-job.eps, job.eps, job.samples.shape[1:]) for draw in draws]
    return within(job.samples + np.stack(noise).astype(np.float32), job)
