"""One step of size eps along the sign of the gradient (Goodfellow et al. 2015, arXiv:1412.6572)."""

from __future__ import annotations

import numpy as np

from dlas.verify.attack.attack import Attack, Job, attacks
from dlas.verify.attack.attacks._ascent import ascended
from dlas.verify.attack.victim import Victim


@attacks.register("fgsm")
class Fgsm(Attack):
    """The fast gradient sign method: cheap, and too weak to show by itself that a network is robust."""

    name = "fgsm"
    summary = "one step of size eps along the sign of the gradient"
    white_box = True

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """One step; see :meth:`Attack.run`."""
        return ascended(victim.slopes, job, job.samples, steps=1, step=job.eps)
