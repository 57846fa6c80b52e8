"""The boundary attack by the Adversarial Robustness Toolbox (Brendel et al. 2018, arXiv:1712.04248)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks
from dlas.verify.attack.attacks import _art
from dlas.verify.attack.victim import Victim


@dataclass(frozen=True)
class BoundaryOptions:
    """Options of ``boundary``."""

    steps: int = option(500, "steps along the boundary", low=1, high=100_000)
    seed: int = option(0, "seed of the walk", low=0)


@attacks.register("boundary")
class Boundary(Attack):
    """Walks along the boundary towards the sample; sees labels only.

    It shortens the Euclidean distance, so that it seldom ends within eps of every pixel; ``hopskipjump`` minds that.
    """

    name = "boundary"
    summary = "walk along the boundary, labels only, by the Adversarial Robustness Toolbox"
    Options = BoundaryOptions
    requires = _art.REQUIRES

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """See :meth:`Attack.run`."""
        options: BoundaryOptions = self.options
        attack = _art.toolbox("art.attacks.evasion").BoundaryAttack(
            estimator=_art.scored(victim, _art.classes_of(victim, job)),
            batch_size=len(job.samples),
            targeted=False,
            max_iter=options.steps,
            verbose=False,
        )
        return _art.walked(attack, victim, job, options.seed)
