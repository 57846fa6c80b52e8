"""What mutation testing found, as a table, as JSON and as files."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from itertools import combinations
from pathlib import Path
from typing import Any

from dlas.core.figure import Figure
from dlas.core.files import write_atomic
from dlas.core.statistics import proportion
from dlas.verify.differential import NoiseFloor
from dlas.verify.mutate.mutation import mutations
from dlas.verify.mutate.selection import Mutant
from dlas.verify.mutate.verdicts import Fate, PathFate


@dataclass(frozen=True)
class MutantResult:
    """How one mutant fared on all paths.

    Attributes:
        mutant: Which one.
        fates: By label of the path.
        flips: Rows whose label differs between two paths that both ran it, by their labels joined by `` | ``.
        rows: Rows those are counted on; 0 where the outputs are no class scores.
    """

    mutant: Mutant
    fates: Mapping[str, PathFate]
    flips: Mapping[str, int] = field(default_factory=dict)
    rows: int = 0

    def stored(self) -> dict[str, Any]:
        """What a resumed run needs, fit for JSON."""
        return {
            "fates": {path: fate.to_dict() for path, fate in self.fates.items()},
            "flips": dict(self.flips),
            "rows": self.rows,
        }

    @classmethod
    def from_stored(cls, mutant: Mutant, fields: Mapping[str, Any]) -> MutantResult:
        """Inverse of :meth:`stored`."""
        fates = {path: PathFate.from_dict(fate) for path, fate in fields["fates"].items()}
        return cls(mutant, fates, dict(fields["flips"]), int(fields["rows"]))

    def discrepancy(self, first: str, second: str) -> Figure | None:
        """Fraction of rows that get another label on one path than on the other; None where one of them failed."""
        count = self.flips.get(pair(first, second))
        return proportion(count, self.rows) if count is not None and self.rows else None

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        member = mutations.get(self.mutant.mutation.name)
        return {
            "name": self.mutant.name,
            **self.mutant.recipe,
            "level": member.level,
            "category": member.category,
            "fault": member.fault,
            "paths": {path: fate.to_dict() for path, fate in self.fates.items()},
            "discrepancy": {
                key: proportion(count, self.rows).to_dict() for key, count in self.flips.items() if self.rows
            },
        }


@dataclass(frozen=True)
class Coverage:
    """Sites a run has touched, of all that a mutation has."""

    touched: int
    sites: int


@dataclass(frozen=True)
class MutationReport:
    """All mutants of a run.

    Attributes:
        model: Name of the network.
        rows: Rows each mutant was run on.
        random: Whether they are random numbers.
        seed: Seed of the choice of mutants.
        floors: Noise floor of each output.
        paths: Labels of the paths that run the network.
        refused: Labels of paths that do not, with the reason.
        mutants: Results, by mutation and site.
        coverage: By mutation.
        no_effect: Mutations that found no site; they count nowhere.
        baseline: Rows whose label differs between two paths without any fault.
        resumed: Results taken from an earlier run.
    """

    model: str
    rows: int
    random: bool
    seed: int
    floors: tuple[NoiseFloor, ...]
    paths: tuple[str, ...]
    refused: Mapping[str, str]
    mutants: tuple[MutantResult, ...]
    coverage: Mapping[str, Coverage]
    no_effect: tuple[str, ...]
    baseline: Mapping[str, int]
    resumed: int = 0

    def score(self, path: str, mutation: str = "") -> Figure | None:
        """Mutation score of a path: mutants noticed, of those that could be; None where there is none of these.

        Left out of the count are those that compute the same (``equivalent``, ``compiled-away``) and those that
        were not run (``out-of-bounds``, ``unsupported``).

        Args:
            path: Label.
            mutation: Only mutants of this mutation, as written.
        """
        fates = [fate.fate for fate in self._fates(path, mutation) if fate.fate.counts]
        return proportion(sum(fate.noticed for fate in fates), len(fates)) if fates else None

    def counts(self, path: str, mutation: str = "") -> dict[Fate, int]:
        """How many mutants met each fate on a path."""
        found = [fate.fate for fate in self._fates(path, mutation)]
        return {fate: found.count(fate) for fate in Fate if fate in found}

    def discrepancy(self, first: str, second: str, mutation: str = "") -> Figure | None:
        """Fraction of rows, over all mutants that both paths ran, with another label on one than on the other."""
        found = [
            (m.flips[pair(first, second)], m.rows)
            for m in self.mutants
            if pair(first, second) in m.flips and m.rows and mutation in ("", str(m.mutant.mutation))
        ]
        return proportion(sum(f for f, _ in found), sum(n for _, n in found)) if found else None

    def _fates(self, path: str, mutation: str) -> list[PathFate]:
        return [m.fates[path] for m in self.mutants if mutation in ("", str(m.mutant.mutation))]

    @property
    def mutations(self) -> list[str]:
        """Mutations that have a mutant, as written."""
        return list(dict.fromkeys(str(m.mutant.mutation) for m in self.mutants))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        names = self.mutations
        return {
            "model": self.model,
            "rows": self.rows,
            "random": self.random,
            "seed": self.seed,
            "noise_floors": [floor.to_dict() for floor in self.floors],
            "paths": list(self.paths),
            "refused": dict(self.refused),
            "score": {p: _dict(self.score(p)) for p in self.paths},
            "counts": {p: _named(self.counts(p)) for p in self.paths},
            "matrix": {
                name: {
                    p: {"score": _dict(self.score(p, name)), **_named(self.counts(p, name))}
                    for p in self.paths
                }
                for name in names
            },
            "discrepancy": {
                pair(a, b): {
                    "all": _dict(self.discrepancy(a, b)),
                    **{name: _dict(self.discrepancy(a, b, name)) for name in names},
                    "without_fault": self.baseline.get(pair(a, b)),
                }
                for a, b in combinations(self.paths, 2)
            },
            "coverage": {name: {"touched": c.touched, "sites": c.sites} for name, c in self.coverage.items()},
            "no_effect": list(self.no_effect),
            "mutants": [m.to_dict() for m in self.mutants],
        }

    def matrix_csv(self) -> str:
        """One line per mutant: what it is, and fate and labels that differ on every path and between paths."""
        pairs = [pair(a, b) for a, b in combinations(self.paths, 2)]
        columns = ["mutant", "mutation", "level", "category", "fault", "sites"]
        for path in self.paths:
            columns += [f"{path} fate", f"{path} label_diff", f"{path} max_abs"]
        text = io.StringIO()
        writer = csv.writer(text, lineterminator="\n")
        writer.writerow([*columns, *pairs])
        for found in self.mutants:
            member = mutations.get(found.mutant.mutation.name)
            row: list[Any] = [found.mutant.name, str(found.mutant.mutation)]
            row += [member.level, member.category, member.fault, "; ".join(map(str, found.mutant.sites))]
            for path in self.paths:
                fate = found.fates[path]
                row += [
                    str(fate.fate),
                    "" if fate.label_diff is None else fate.label_diff.value,
                    "" if fate.max_abs is None else fate.max_abs,
                ]
            shares = [found.flips[k] / found.rows if k in found.flips and found.rows else "" for k in pairs]
            writer.writerow([*row, *shares])
        return text.getvalue()

    def write(self, folder: Path) -> None:
        """``report.json`` and ``matrix.csv``; raises StorageError where the folder cannot be written."""
        write_atomic(folder / "report.json", json.dumps(self.to_dict(), indent=1) + "\n")
        write_atomic(folder / "matrix.csv", self.matrix_csv())


def pair(first: str, second: str) -> str:
    """Key of two paths."""
    return f"{first} | {second}"


def label_flips(labels: Mapping[str, Any], paths: Sequence[str]) -> dict[str, int]:
    """Rows whose labels differ, for every two paths that have labels, ``(N,)`` each."""
    return {
        pair(a, b): int((labels[a] != labels[b]).sum())
        for a, b in combinations(paths, 2)
        if a in labels and b in labels
    }


def _dict(figure: Figure | None) -> dict[str, Any] | None:
    return None if figure is None else figure.to_dict()


def _named(counts: Mapping[Fate, int]) -> dict[str, int]:
    return {str(fate): count for fate, count in counts.items()}
