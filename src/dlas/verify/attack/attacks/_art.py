"""The Adversarial Robustness Toolbox, asked for attacks that dlas does not have itself."""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from typing import Any

import numpy as np

from dlas.core.errors import MissingDependencyError, UnsupportedError
from dlas.core.lazy import optional_import
from dlas.verify.attack.attack import Job, within
from dlas.verify.attack.victim import Victim

REQUIRES = {"art": "attack"}
_FAULTS = (
    ValueError,
    TypeError,
    RuntimeError,
    IndexError,
    AssertionError,
    ZeroDivisionError,
    FloatingPointError,
)
_TRIES = 50  # of noise with another label than a sample
_FOR = "this attack (adversarial-robustness-toolbox)"


def toolbox(module: str) -> Any:
    """A module of the toolbox.

    Raises:
        MissingDependencyError: It is not installed, or another package has its name.
    """
    try:
        return optional_import(module, extra="attack", needed_for=_FOR)
    except ModuleNotFoundError as error:
        raise MissingDependencyError("adversarial-robustness-toolbox", "attack", _FOR) from error


def differentiable(victim: Victim, classes: int) -> Any:
    """A classifier of the toolbox with gradients."""
    import torch

    twin = victim.slopes

    class Network(torch.nn.Module):
        def forward(self, x: torch.Tensor) -> torch.Tensor:
            return twin.logits(x)

    return toolbox("art.estimators.classification").PyTorchClassifier(
        model=Network(),
        loss=torch.nn.CrossEntropyLoss(),
        input_shape=victim.pixels.shape,
        nb_classes=classes,
        clip_values=(0.0, 1.0),
        device_type="cpu",
    )


def scored(victim: Victim, classes: int) -> Any:
    """A classifier of the toolbox that gives the scores of the deployed network."""
    return toolbox("art.estimators.classification").BlackBoxClassifierNeuralNetwork(
        lambda x: victim.scores(np.asarray(x, np.float32)),
        victim.pixels.shape,
        classes,
        clip_values=(0.0, 1.0),
        channels_first=victim.pixels.channels != 2,
    )


def classes_of(victim: Victim, job: Job) -> int:
    """How many scores the network gives."""
    return victim.scores(job.samples[:1]).shape[1]


def found_by(attack: Any, victim: Victim, job: Job, seed: int, **given: Any) -> np.ndarray:
    """What an attack of the toolbox finds, kept within eps; one that needs a larger change finds nothing."""
    labels = np.eye(classes_of(victim, job), dtype=np.float32)[job.labels]
    try:
        with seeded(seed):
            found = attack.generate(x=job.samples, y=labels, **given)
    except _FAULTS as error:
        words = " ".join(str(error).split())[:200]
        raise UnsupportedError(f"the Adversarial Robustness Toolbox fails: {words}") from error
    return within(np.asarray(found, np.float32), job)


def walked(attack: Any, victim: Victim, job: Job, seed: int) -> np.ndarray:
    """What a walk of the toolbox along the boundary finds from starts of ours; its own cannot be repeated."""
    starts, known = _starts(victim, job, seed)
    changed = job.samples.copy()
    if known.any():
        part = job.take(known)
        changed[known] = found_by(attack, victim, part, seed, x_adv_init=starts[known])
    return changed


def _starts(victim: Victim, job: Job, seed: int) -> tuple[np.ndarray, np.ndarray]:
    """Noise that gets another label than each sample, and which samples none was found for."""
    draws = job.generators(seed)
    starts = job.samples.copy()
    known = np.zeros(len(starts), bool)
    for _ in range(_TRIES):
        left = np.flatnonzero(~known)
        if len(left) == 0:
            break
        noise = np.stack([draws[i].uniform(0, 1, starts.shape[1:]) for i in left]).astype(np.float32)
        lost = victim.scores(noise).argmax(1) != job.labels[left]
        starts[left[lost]], known[left[lost]] = noise[lost], True
    return starts, known


@contextmanager
def seeded(seed: int) -> Iterator[None]:
    """While the toolbox works, which draws from the generators that everybody shares."""
    import torch

    before = np.random.get_state()  # noqa: NPY002 - it is that generator which has to be put back
    with torch.random.fork_rng(devices=[]):
        torch.manual_seed(seed)
        np.random.seed(seed)  # noqa: NPY002
        try:
            yield
        finally:
            np.random.set_state(before)  # noqa: NPY002
