"""The evolutionary search over scales: small random steps from the better ones, block by block, last block first.

As in CPT-V / Evol-Q (Frumkin, Gope and Marculescu, "Jumping through Local Minima: Quantization in the Loss Landscape
of Vision Transformers", ICCV 2023), but the best network is the one of least loss on the calibration rows at any time;
no accuracy is looked at.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

Genome = dict[int, np.ndarray]
"""Scales, ``(channels,) float32``, by the position of the layer."""

Fitness = Callable[[Mapping[int, np.ndarray]], float]
"""Loss of the network with these scales in one unit and the adopted ones everywhere else."""

_LEAST = np.float32(2.0**-60)


@dataclass(frozen=True)
class Settings:
    """How to search.

    Attributes:
        passes: Times that all units are visited.
        cycles: Children per visit.
        population: Genomes kept.
        sample: Genomes drawn, with replacement, for the tournament that chooses a parent.
        radius: Largest change of a scale in one step.
        relative: Whether ``radius`` is a share of the parent's scale or a plain number.
        budget: Children in all, 0 for as many as there would be.
        seed: Decides draws and steps.
    """

    passes: int
    cycles: int
    population: int
    sample: int
    radius: float
    relative: bool
    budget: int
    seed: int

    def evaluations(self, units: int) -> int:
        """Children that a search over that many units makes."""
        every = self.passes * units * self.cycles
        return min(every, self.budget) if self.budget else every


@dataclass
class State:
    """Where a search is: everything it needs to go on.

    Attributes:
        scales: Adopted scales of every layer that is searched.
        loss: Loss with them.
        random: State of the generator.
        visits: Visits of units that are over.
        evaluations: Children tried.
        history: ``(pass, unit, evaluations, loss)`` after each visit, passes and units from 1 and 0.
    """

    scales: Genome
    loss: float
    random: np.random.Generator
    visits: int = 0
    evaluations: int = 0
    history: list[tuple[int, int, int, float]] = field(default_factory=list)

    def to_dict(self) -> dict[str, Any]:
        """Plain values and arrays."""
        return {
            "scales": {str(k): v.tolist() for k, v in self.scales.items()},
            "loss": self.loss,
            "random": self.random.bit_generator.state,
            "visits": self.visits,
            "evaluations": self.evaluations,
            "history": [list(line) for line in self.history],
        }

    @classmethod
    def from_dict(cls, stored: Mapping[str, Any]) -> State:
        """Inverse of :meth:`to_dict`."""
        random = np.random.default_rng()
        random.bit_generator.state = stored["random"]
        scales = {int(k): np.asarray(v, np.float32) for k, v in stored["scales"].items()}
        history = [(int(p), int(u), int(e), float(loss)) for p, u, e, loss in stored["history"]]
        return cls(scales, float(stored["loss"]), random, stored["visits"], stored["evaluations"], history)


def child_of(parent: Genome, settings: Settings, random: np.random.Generator) -> Genome:
    """``|parent + u|`` with u uniform in -radius .. radius, or in that share of each scale; never 0."""
    made = {}
    for layer, scale in parent.items():
        step = random.uniform(-settings.radius, settings.radius, scale.shape)
        moved = scale * (1.0 + step) if settings.relative else scale + step
        made[layer] = np.maximum(np.abs(moved).astype(np.float32), _LEAST)
    return made


def visit(state: State, layers: Sequence[int], fitness: Fitness, settings: Settings, most: int) -> None:
    """Let the scales of one unit evolve for a few cycles, ``most`` children at most; adopts the best."""
    start = {layer: state.scales[layer] for layer in layers}
    population = [(state.loss, start)] * settings.population
    for _ in range(min(settings.cycles, most)):
        drawn = state.random.integers(0, len(population), settings.sample)
        _, parent = population[int(drawn.min())]  # sorted: the first is the best
        child = child_of(parent, settings, state.random)
        population.append((fitness(child), child))
        population.sort(key=lambda one: one[0])  # stable: among equals the older one stays ahead
        population.pop()
        state.evaluations += 1
    state.loss, best = population[0]
    state.scales |= best


def search(
    state: State,
    units: Sequence[Sequence[int]],
    prepare: Callable[[int, State], Fitness],
    settings: Settings,
    each_visit: Callable[[State], None] = lambda state: None,
) -> State:
    """Visit the units, last to first, pass after pass, from where ``state`` is.

    Args:
        state: Changed in place, and returned.
        units: Layers of each unit, in graph order.
        prepare: Gives the fitness for one unit (its position) with the scales adopted so far.
        settings: How to search.
        each_visit: Called after each visit.
    """
    every = settings.evaluations(len(units))
    while state.evaluations < every:
        done, place = divmod(state.visits, len(units))
        unit = len(units) - 1 - place
        visit(state, units[unit], prepare(unit, state), settings, every - state.evaluations)
        state.visits += 1
        state.history.append((done + 1, unit, state.evaluations, state.loss))
        each_visit(state)
    return state
