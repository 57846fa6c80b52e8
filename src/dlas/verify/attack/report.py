"""What became of networks under attack: accuracies with their intervals, and what they may be worth."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.core.figure import Figure
from dlas.core.statistics import mcnemar, proportion
from dlas.verify.attack.attack import Attack

WHITE, BLACK, TRANSFER = "white box", "black box", "transfer"
SIGNIFICANT = 0.05
FLAT_SHARE = 0.1  # of samples without any slope at which a white box says little


@dataclass(frozen=True)
class AttackResult:
    """One attack on one network.

    Attributes:
        attack: The attack with its options; for a transfer, that on the source.
        kind: ``white box``, ``black box`` or ``transfer``.
        robust: Share of all rows that are answered rightly as they are and as the attack changed them; None if the
            attack could not be made.
        reason: Why not.
        queries: Scores that were asked of the deployed network, per attacked row.
        survived: ``(N,) bool``, the rows behind ``robust``.
    """

    attack: str
    kind: str
    robust: Figure | None = None
    reason: str = ""
    queries: float = 0.0
    survived: np.ndarray | None = field(default=None, compare=False, repr=False)

    @property
    def title(self) -> str:
        """What a table calls it."""
        return f"transfer {self.attack}" if self.kind == TRANSFER else self.attack

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "attack": self.attack,
            "kind": self.kind,
            "robust": self.robust.to_dict() if self.robust else None,
            "reason": self.reason,
            "queries_per_row": round(self.queries, 1),
        }


@dataclass(frozen=True)
class ModelResult:
    """One network under all attacks.

    Attributes:
        target: What it is called.
        path: What ran it.
        size_bytes: Of its file.
        clean: Share of the rows that it answers rightly as they are.
        results: One per attack.
        worst: Share of the rows that no attack brings down, those by transfer included.
        warnings: Why the figures may promise too much.
        notes: What else is to be known.
        reason: Why there are no figures.
    """

    target: str
    path: str = ""
    size_bytes: int = 0
    clean: Figure | None = None
    results: tuple[AttackResult, ...] = ()
    worst: Figure | None = None
    warnings: tuple[str, ...] = ()
    notes: tuple[str, ...] = ()
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "target": self.target,
            "path": self.path,
            "bytes": self.size_bytes,
            "clean": self.clean.to_dict() if self.clean else None,
            "attacks": [result.to_dict() for result in self.results],
            "minimum": self.worst.to_dict() if self.worst else None,
            "warnings": list(self.warnings),
            "notes": list(self.notes),
            "reason": self.reason,
        }


@dataclass(frozen=True)
class Example:
    """A row that the first network gets right as it is and wrong as changed.

    Attributes:
        row: Its position in the data set.
        label: Name of its class.
        before: The sample, in 0..1 and the axes of the data set.
        after: As it was changed.
    """

    row: int
    label: str
    before: np.ndarray
    after: np.ndarray


@dataclass(frozen=True)
class AttackReport:
    """All networks under all attacks, on the same rows.

    Attributes:
        data: Name of the data set.
        rows: How many of its rows.
        eps: Largest change of a number of a sample, as a fraction of its range.
        value_range: What 0 and 1 stand for in arrays that are no images.
        attacks: The attacks with their options.
        source: The network whose changed samples the others were tried on; empty if there is none.
        models: One per network, in the order given.
        versions: Of the libraries that took part.
        settings: All options of every attack, seeds included.
        pictured: The attack on the first network that ``examples`` come from.
        examples: A few rows that it brought down.
    """

    data: str
    rows: int
    eps: float
    value_range: tuple[float, float]
    attacks: tuple[str, ...]
    source: str
    models: tuple[ModelResult, ...]
    versions: Mapping[str, str] = field(default_factory=dict)
    settings: Mapping[str, Mapping[str, Any]] = field(default_factory=dict)
    pictured: str = ""
    examples: tuple[Example, ...] = field(default=(), compare=False, repr=False)

    @property
    def titles(self) -> list[str]:
        """Columns of a table, in order: the attacks, and those that were carried over."""
        own = list(self.attacks)
        carried = (r.title for m in self.models for r in m.results if r.kind == TRANSFER)
        return [*own, *dict.fromkeys(carried)]

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; equal for equal networks, rows and options."""
        return {
            "data": self.data,
            "rows": self.rows,
            "eps": self.eps,
            "range": list(self.value_range),
            "attacks": list(self.attacks),
            "settings": {name: dict(options) for name, options in self.settings.items()},
            "transfer_source": self.source,
            "models": [model.to_dict() for model in self.models],
            "versions": dict(self.versions),
        }


def kind_of(attack: Attack) -> str:
    """``white box`` or ``black box``."""
    return WHITE if attack.white_box else BLACK


def worst_case(results: Sequence[AttackResult]) -> Figure | None:
    """Share of the rows that survive every attack; None where there was none."""
    survived = [r.survived for r in results if r.survived is not None]
    if not survived:
        return None
    left = np.logical_and.reduce(survived)
    return proportion(int(left.sum()), len(left))


def warnings_on(results: Sequence[AttackResult], flat: int, right: int) -> list[str]:
    """Signs that gradients are masked rather than gone (Athalye et al. 2018, arXiv:1802.00420).

    Args:
        results: Attacks on one network.
        flat: Rows answered rightly whose gradient is 0 everywhere.
        right: Rows answered rightly.
    """
    found = []
    white = _left(results, WHITE)
    if white is not None:
        for kind, words in ((BLACK, "black box"), (TRANSFER, "transfer")):
            other = _left(results, kind)
            if other is None:
                continue
            more, fewer = int(np.sum(white & ~other)), int(np.sum(~white & other))
            if more > fewer and mcnemar(more, fewer) < SIGNIFICANT:
                found.append(
                    f"gradient masking: {words} brings down {more} rows that no white box does"
                    f" ({fewer} the other way round), so the white box's figure promises too much"
                )
    by_name = {r.attack.partition(":")[0]: r.survived for r in results if r.survived is not None}
    one, many = by_name.get("fgsm"), by_name.get("pgd")
    if one is not None and many is not None:
        more, fewer = int(np.sum(many & ~one)), int(np.sum(~many & one))
        if more > fewer and mcnemar(more, fewer) < SIGNIFICANT:
            found.append(
                f"gradient masking: one step (fgsm) brings down {more} rows that many (pgd) do not,"
                f" {fewer} the other way round"
            )
    if right and flat / right >= FLAT_SHARE:
        found.append(f"gradient masking: {flat} of {right} rows have a gradient that is 0 everywhere")
    return found


def _left(results: Sequence[AttackResult], kind: str) -> np.ndarray | None:
    survived = [r.survived for r in results if r.kind == kind and r.survived is not None]
    return np.logical_and.reduce(survived) if survived else None
