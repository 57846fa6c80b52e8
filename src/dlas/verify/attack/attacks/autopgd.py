"""AutoPGD by the Adversarial Robustness Toolbox (Croce and Hein 2020, arXiv:2003.01690)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks
from dlas.verify.attack.attacks import _art
from dlas.verify.attack.victim import Victim

_LOSSES = {"cross-entropy": "cross_entropy", "dlr": "difference_logits_ratio"}


@dataclass(frozen=True)
class AutoPgdOptions:
    """Options of ``autopgd``."""

    steps: int = option(50, "steps of every start", low=1, high=10_000)
    restarts: int = option(1, "random starts", low=1, high=1000)
    loss: str = option("cross-entropy", "what is raised", choices=tuple(_LOSSES))
    seed: int = option(0, "seed of the starts", low=0)


@attacks.register("autopgd")
class AutoPgd(Attack):
    """PGD that chooses the size of its steps by itself."""

    name = "autopgd"
    summary = "PGD that sizes its steps by itself, by the Adversarial Robustness Toolbox"
    Options = AutoPgdOptions
    requires = _art.REQUIRES
    white_box = True

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """See :meth:`Attack.run`."""
        options: AutoPgdOptions = self.options
        attack = _art.toolbox("art.attacks.evasion").AutoProjectedGradientDescent(
            estimator=_art.differentiable(victim, _art.classes_of(victim, job)),
            norm=np.inf,
            eps=job.eps,
            eps_step=2 * job.eps,
            max_iter=options.steps,
            nb_random_init=options.restarts,
            batch_size=len(job.samples),
            loss_type=_LOSSES[options.loss],
            verbose=False,
        )
        return _art.found_by(attack, victim, job, options.seed)
