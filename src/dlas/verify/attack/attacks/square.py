"""Random search with squares (Andriushchenko et al. 2020, arXiv:1912.00049), for the largest change of a pixel."""

from __future__ import annotations

import math
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.options import option
from dlas.verify.attack.attack import Attack, Job, attacks, margins
from dlas.verify.attack.victim import Victim

_HALVINGS = (10, 50, 200, 500, 1000, 2000, 4000, 6000, 8000)  # of 10,000 queries
_DRAWS = 10  # of colours for a square that would change nothing


@dataclass(frozen=True)
class SquareOptions:
    """Options of ``square``."""

    queries: int = option(1000, "scores asked for per sample at most", low=1, high=1_000_000)
    share: float = option(0.8, "share of the pixels that the first squares cover", low=1e-6, high=1)
    seed: int = option(0, "seed of the squares", low=0)


@attacks.register("square")
class Square(Attack):
    """Puts squares of plus or minus eps where they lower the margin; there is no gradient to mislead it."""

    name = "square"
    summary = "random squares that lower the margin; scores only"
    Options = SquareOptions

    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """Search until every sample is lost or its queries are spent; see :meth:`Attack.run`."""
        options: SquareOptions = self.options
        channels = victim.pixels.channels
        if channels is None or job.samples.ndim != 4:
            raise UnsupportedError(f"square needs images; the samples are {list(job.samples.shape[1:])}")
        draws = job.generators(options.seed)
        clean = np.moveaxis(job.samples, channels + 1, 1)
        best = np.stack([_striped(x, job.eps, draw) for x, draw in zip(clean, draws, strict=True)])

        def asked(images: np.ndarray, labels: np.ndarray) -> np.ndarray:
            own = np.ascontiguousarray(np.moveaxis(images, 1, channels + 1))
            return margins(victim.scores(own), labels)

        lowest = asked(best, job.labels)
        for query in range(1, options.queries):
            left = np.flatnonzero(lowest > 0)
            if len(left) == 0:
                break
            side = _side(query, options, clean.shape[2:])
            tried = np.stack([_tried(clean[i], best[i], side, job.eps, draws[i]) for i in left])
            margin = asked(tried, job.labels[left])
            better = margin < lowest[left]
            best[left[better]], lowest[left[better]] = tried[better], margin[better]
        return np.ascontiguousarray(np.moveaxis(best, 1, channels + 1))


def _striped(image: np.ndarray, eps: float, draw: np.random.Generator) -> np.ndarray:
    """The start: each column of each channel moved by plus or minus eps."""
    signs = draw.choice((-1, 1), (image.shape[0], 1, image.shape[2])).astype(np.float32)
    return _clipped(image + np.float32(eps) * signs)


def _tried(
    image: np.ndarray, best: np.ndarray, side: int, eps: float, draw: np.random.Generator
) -> np.ndarray:
    """``best`` with one square moved to plus or minus eps from the image, a sign per channel."""
    height, width = image.shape[1:]
    top, left = draw.integers(0, height - side + 1), draw.integers(0, width - side + 1)
    window = (slice(None), slice(top, top + side), slice(left, left + side))
    found = best.copy()
    for _ in range(_DRAWS):
        signs = draw.choice((-1, 1), (len(image), 1, 1)).astype(np.float32)
        found[window] = _clipped(image[window] + np.float32(eps) * signs)
        if not np.allclose(found[window], best[window], rtol=0, atol=1e-7):
            break
    return found


def _side(query: int, options: SquareOptions, sides: tuple[int, ...]) -> int:
    """Side of the square: it halves its area on a schedule that is stretched over the queries."""
    at = query / options.queries * 10_000
    share = options.share / 2 ** sum(at > bound for bound in _HALVINGS)
    return max(1, min(round(math.sqrt(share * math.prod(sides))), min(sides) - 1))


def _clipped(values: np.ndarray) -> np.ndarray:
    return np.clip(values, np.float32(0), np.float32(1))
