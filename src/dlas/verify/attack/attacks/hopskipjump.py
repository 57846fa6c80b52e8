"""HopSkipJump by the Adversarial Robustness Toolbox (Chen et al. 2020, arXiv:1904.02144)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks
from dlas.verify.attack.attacks import _art
from dlas.verify.attack.victim import Victim


@dataclass(frozen=True)
class HopSkipJumpOptions:
    """Options of ``hopskipjump``."""

    steps: int = option(10, "steps along the boundary", low=1, high=10_000)
    evaluations: int = option(1000, "labels asked for per step at most", low=10, high=1_000_000)
    seed: int = option(0, "seed of the walk", low=0)


@attacks.register("hopskipjump")
class HopSkipJump(Attack):
    """A boundary attack that estimates where the boundary faces; sees labels only."""

    name = "hopskipjump"
    summary = "boundary attack for the largest change, labels only, by the Adversarial Robustness Toolbox"
    Options = HopSkipJumpOptions
    requires = _art.REQUIRES

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """See :meth:`Attack.run`."""
        options: HopSkipJumpOptions = self.options
        attack = _art.toolbox("art.attacks.evasion").HopSkipJump(
            classifier=_art.scored(victim, _art.classes_of(victim, job)),
            norm=np.inf,
            targeted=False,
            max_iter=options.steps,
            max_eval=options.evaluations,
            init_eval=min(100, options.evaluations),
            verbose=False,
        )
        return _art.walked(attack, victim, job, options.seed)
