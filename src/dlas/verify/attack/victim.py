"""A network under attack: the scores of what is deployed, and its slopes where torch can tell them."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import ShapeError, UnsupportedError
from dlas.verify.attack.attack import NoGradientError
from dlas.verify.attack.pixels import Pixels
from dlas.verify.attack.twin import Twin

_ROWS = 100  # per call of a runtime, so that slow is told from hanging


@dataclass(eq=False)
class Victim:
    """A network as an attack sees it.

    Attributes:
        name: For messages.
        pixels: How it takes samples.
        ask: Real scores ``(N, ...)`` of what the network is fed, by whatever runs the deployed network.
        twin: The network in torch, or why there is none.
        queries: Samples that scores were asked for so far.
        asked: Told that number each time.
    """

    name: str
    pixels: Pixels
    ask: Callable[[np.ndarray], np.ndarray]
    twin: Twin | str
    queries: int = 0
    asked: Callable[[int], None] = lambda queries: None

    def scores(self, samples: np.ndarray) -> np.ndarray:
        """Scores of the deployed network, ``(N, classes) float32``, for samples in 0..1.

        Raises:
            ShapeError: The answers are not a score per class and sample.
        """
        self.queries += len(samples)
        self.asked(self.queries)
        parts = [
            self.ask(self.pixels.fed(samples[start : start + _ROWS]))
            for start in range(0, len(samples), _ROWS)
        ]
        found = np.concatenate(parts)
        if found.ndim == 0 or len(found) != len(samples):
            raise ShapeError(f"{self.name} answers with {list(found.shape)} to {len(samples)} samples")
        scores = found.reshape(len(samples), -1).astype(np.float32)
        if found.size != len(samples) * max(found.shape[1:], default=1) or scores.shape[1] < 2:
            raise UnsupportedError(
                f"{self.name} answers with {list(found.shape[1:])} per sample: only classifiers can be attacked"
            )
        return scores

    @property
    def slopes(self) -> Twin:
        """The network in torch; raises NoGradientError where there is none."""
        if isinstance(self.twin, str):
            raise NoGradientError(self.twin, "black boxes can attack it: square, nes")
        return self.twin
