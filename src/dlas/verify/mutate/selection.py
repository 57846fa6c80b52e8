"""Which mutants are made: operators in turn, their sites by lot, so that a small budget sees every kind of fault."""

from __future__ import annotations

import zlib
from collections.abc import Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np

from dlas.core.errors import OptionError
from dlas.core.options import Choice, split_choices
from dlas.verify.mutate.mutation import LEVELS, AnyMutation, Site, mutation_for, mutations

# The operators of MutateNN's released configuration, each at all of its sites in one mutant.
MUTATENN = (
    *(f"transpose-input:where={w},start=1" for w in ("conv", "dense", "layers", "weights", "batch-norm")),
    *(
        f"insert-function:where={w},start=1"
        for w in ("exp-before-layers", "exp-after-layers", "exp-before-norms", "round-before-norms")
    ),
    "add-to-sub:start=1",
    "relu-to-sigmoid:start=1",
    *(f"store-type:dtype={t},start=1" for t in ("float16", "int32", "int16", "int8")),
    "store-value:change=subtract,start=1",
    "store-value:change=scale,start=1",
    "shift-threshold:start=1",
    *(
        f"replace-condition:change={c},start=1"
        for c in ("less-to-less-equal", "less-to-greater", "greater-to-less", "greater-to-greater-equal")
    ),
)


@dataclass(frozen=True)
class Mutant:
    """One mutant: a mutation and where it is applied.

    Attributes:
        name: Short name, unique within a run: mutation and number.
        mutation: The mutation as written, with its options.
        sites: Where it is applied.
    """

    name: str
    mutation: Choice
    sites: tuple[Site, ...]

    @property
    def operator(self) -> AnyMutation:
        """The mutation itself."""
        return mutation_for(self.mutation)

    @property
    def recipe(self) -> dict[str, Any]:
        """What makes it this mutant and no other."""
        return {"mutation": str(self.mutation), "sites": [[s.node, s.detail] for s in self.sites]}


def chosen_operators(text: str | Sequence[str]) -> list[Choice]:
    """Mutations a user asked for: ``all``, ``graph``, ``program``, ``mutatenn`` or names with options.

    Raises:
        UnknownNameError: No such mutation, or no such option of it.
        OptionError: An option with a value it does not take, or no mutation at all.
    """
    parts = split_choices(text) if isinstance(text, str) else [p for t in text for p in split_choices(t)]
    found: dict[Choice, None] = {}
    for part in parts:
        if part == "mutatenn":
            names = list(MUTATENN)
        elif part == "all" or part in LEVELS:
            names = [n for n, member in mutations.members() if part in ("all", member.level)]
        else:
            names = [part]
        for name in names:
            choice = Choice.parse(name)
            mutation_for(choice)
            found.setdefault(choice)
    if not found:
        raise OptionError(
            "operators", text, "all, graph, program, mutatenn, or names that `dlas list mutation` shows"
        )
    return list(found)


def choose(sites: Mapping[Choice, Sequence[Site]], most: int, seed: int) -> list[Mutant]:
    """Mutants of a budget: one of each mutation in turn, sites drawn without replacement.

    Args:
        sites: All sites of each mutation, in graph order.
        most: Largest number of mutants; 0 for all there are.
        seed: Same seed, same mutants.
    """
    groups = {choice: mutation_for(choice).groups(found) for choice, found in sites.items()}
    # A draw of its own for each, so that what is asked for beside it changes nothing.
    draws = {choice: np.random.default_rng([seed, zlib.crc32(str(choice).encode())]) for choice in groups}
    orders = {choice: list(draws[choice].permutation(len(found))) for choice, found in groups.items()}
    most = most or sum(map(len, groups.values()))
    taken: dict[Choice, list[int]] = {choice: [] for choice in groups}
    while sum(map(len, taken.values())) < most and any(orders.values()):
        for choice, order in orders.items():
            if order and sum(map(len, taken.values())) < most:
                taken[choice].append(int(order.pop(0)))
    # The name says which site it is, so that it is the same mutant under any budget.
    return [
        Mutant(f"{_file_name(choice)}-{index + 1:03d}", choice, groups[choice][index])
        for choice, indices in taken.items()
        for index in sorted(indices)
    ]


def _file_name(choice: Choice) -> str:
    return str(choice).replace(":", "-").replace(",", "-").replace("=", "-")
