"""What an attack is: a search for a small change to a sample that makes a network answer wrongly.

Samples are numbers from 0 to 1 (pixels over 255), whatever a network makes of them, so that one ``eps`` means the
same for every network. No attack changes any number of a sample by more than ``eps``, or leaves 0..1.
"""

from __future__ import annotations

import math
from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any, ClassVar

import numpy as np

from dlas.core.errors import DlasError, OptionError
from dlas.core.options import Choice, Configurable, split_choices
from dlas.core.registry import Registry

if TYPE_CHECKING:
    from dlas.verify.attack.victim import Victim

attacks: Registry[type[Attack]] = Registry("attack", "dlas.verify.attack.attacks")

EPS = 8 / 255
"""The usual bound on the change of a pixel."""

USUAL = "fgsm,pgd,square"
"""Two white boxes and a black one, whose disagreement shows a network that only hides its gradients."""


class NoGradientError(DlasError):
    """No gradient, or none that is a number, reaches the input: such a network can be attacked as a black box only."""


@dataclass(frozen=True)
class Job:
    """What an attack works on.

    Attributes:
        samples: ``(N, ...) float32`` in 0..1, in the network's own axes.
        labels: ``(N,) int64``.
        eps: Largest change of any number of a sample.
        rows: ``(N,)`` positions of the samples in their data set; random numbers are drawn by them, so that what
            becomes of a sample does not depend on which others are attacked with it.
    """

    samples: np.ndarray
    labels: np.ndarray
    eps: float
    rows: np.ndarray

    def generators(self, seed: int) -> list[np.random.Generator]:
        """A source of random numbers for each sample."""
        return [np.random.default_rng([seed, int(row)]) for row in self.rows]

    def take(self, keep: np.ndarray) -> Job:
        """The job on some of its samples."""
        return Job(self.samples[keep], self.labels[keep], self.eps, self.rows[keep])


class Attack(Configurable):
    """Looks for samples that a network gets wrong, near ones that it gets right.

    Class attributes:
        white_box: Whether it reads gradients; others see scores (or labels) only, those of the deployed network.
    """

    white_box: ClassVar[bool] = False

    @abstractmethod
    def run(self, victim: Victim, job: Job) -> np.ndarray:
        """Changed samples, ``(N, ...) float32``; where nothing helps, the last or the best try.

        Raises:
            NoGradientError: A white box without gradients.
            UnsupportedError: The samples are of a kind it cannot change.
        """


def attack_for(choice: Choice | str, **common: Any) -> Attack:
    """The attack of a choice; ``common`` options go to those that have them, unless the choice sets them itself."""
    choice = Choice.parse(choice) if isinstance(choice, str) else choice
    member = attacks.get(choice.name)
    known = set(getattr(member.Options, "__dataclass_fields__", {}))
    given = {name: value for name, value in common.items() if name in known}
    return member(**{**given, **choice.as_dict()})


def parse_attacks(text: str | Sequence[str], **common: Any) -> list[Attack]:
    """Attacks of ``fgsm,pgd:steps=40,restarts=2,square``, each once, in that order; see :func:`attack_for`.

    Raises:
        UnknownNameError: No such attack or option.
        OptionError: A value that is not accepted, or none at all.
    """
    parts = split_choices(text) if isinstance(text, str) else [p for t in text for p in split_choices(t)]
    found = {attack.spelled(): attack for attack in (attack_for(part, **common) for part in parts)}
    if not found:
        raise OptionError("attacks", text, "names of `dlas list attack`, such as " + USUAL)
    return list(found.values())


def parse_eps(text: str | float) -> float:
    """``8/255`` or a number as a fraction of the range of a sample.

    Raises:
        OptionError: It is no number above 0 and at most 1.
    """
    try:
        top, slash, bottom = str(text).partition("/")
        value = float(top) / float(bottom) if slash else float(top)
    except (ValueError, ZeroDivisionError):
        value = math.nan
    if not 0 < value <= 1:
        raise OptionError("eps", text, "a number above 0 and at most 1, such as 8/255")
    return value


def within(changed: np.ndarray, job: Job) -> np.ndarray:
    """``changed`` brought back to at most ``eps`` from the samples, and into 0..1: ``(N, ...) float32``."""
    eps = np.float32(job.eps)
    near = job.samples + np.clip(changed.astype(np.float32) - job.samples, -eps, eps)
    return np.clip(near, np.float32(0), np.float32(1))


def margins(scores: np.ndarray, labels: np.ndarray) -> np.ndarray:
    """Score of the label less the best other one, ``(N,) float64``; a sample is lost at 0 and below.

    A score that is not a number is an answer that is wrong: its margin is minus infinity.
    """
    values = scores.astype(np.float64)
    at = np.arange(len(values))
    own = values[at, labels]
    others = values.copy()
    others[at, labels] = -np.inf
    found = own - others.max(axis=1)
    return np.where(np.isnan(values).any(axis=1), -np.inf, found)
