"""Gradient steps with a gradient that is estimated from scores (Ilyas et al. 2018, arXiv:1804.08598)."""

from __future__ import annotations

from dataclasses import dataclass

import numpy as np

from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks, margins, within
from dlas.verify.attack.victim import Victim

_NUMBERS = 2**22  # of samples that are asked for together


@dataclass(frozen=True)
class NesOptions:
    """Options of ``nes``."""

    queries: int = option(1000, "scores asked for per sample at most", low=3, high=1_000_000)
    samples: int = option(40, "scores behind one estimate of the gradient, in pairs", low=2, high=10_000)
    sigma: float = option(0.01, "spread of the points it is estimated from", low=1e-6, high=1)
    step: float = option(0.25, "size of a step, as a share of eps", low=1e-6, high=2)
    seed: int = option(0, "seed of the points", low=0)


@attacks.register("nes")
class Nes(Attack):
    """Natural evolution strategies: a white box's steps where only scores can be seen.

    ``sigma`` stands above the step of 8-bit pixels (0.004), since smaller changes vanish in integer inputs.
    """

    name = "nes"
    summary = "gradient steps with a gradient estimated from scores only"
    Options = NesOptions

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """Step until every sample is lost or its queries are spent; see :meth:`Attack.run`."""
        options: NesOptions = self.options
        draws = job.generators(options.seed)
        pairs = options.samples // 2
        found = job.samples.copy()
        left = np.arange(len(found))
        for _ in range(max(1, options.queries // (2 * pairs + 1))):
            size = max(1, _NUMBERS // (2 * pairs * job.samples[0].size))
            for start in range(0, len(left), size):
                rows = left[start : start + size]
                slope = estimated(
                    victim, found[rows], job.labels[rows], [draws[i] for i in rows], pairs, options.sigma
                )
                stepped = found[rows] - np.float32(options.step * job.eps) * np.sign(slope)
                found[rows] = within(stepped, job.take(rows))
            left = left[margins(victim.scores(found[left]), job.labels[left]) > 0]
            if len(left) == 0:
                break
        return found


def estimated(
    victim: Victim,
    samples: np.ndarray,
    labels: np.ndarray,
    draws: list[np.random.Generator],
    pairs: int,
    sigma: float,
) -> np.ndarray:
    """Gradient of the margin, ``(N, ...) float32``, from antithetic Gaussian pairs.

    The mean of ``(m(x + sigma d) - m(x - sigma d)) d / (2 sigma)`` over normal ``d`` is the gradient of ``m`` smoothed
    by a Gaussian of that spread; for a linear ``m`` it is the gradient itself.
    """
    noise = np.stack([draw.standard_normal((pairs, *samples.shape[1:]), np.float32) for draw in draws])
    sides = np.concatenate([noise, -noise], 1) * np.float32(sigma) + samples[:, None]
    shown = np.clip(sides, np.float32(0), np.float32(1)).reshape(-1, *samples.shape[1:])
    found = margins(victim.scores(shown), np.repeat(labels, 2 * pairs)).reshape(len(samples), 2, pairs)
    differences = np.nan_to_num(found[:, 0] - found[:, 1]) / (2 * sigma * pairs)
    return np.einsum("np,np...->n...", differences, noise).astype(np.float32)
