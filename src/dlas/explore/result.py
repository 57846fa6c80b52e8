"""What a study found: its points with their records, and what a reader needs to judge and repeat them."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from typing import Any

from dlas.core.errors import OptionError
from dlas.core.figure import Record


@dataclass(frozen=True)
class Objective:
    """A figure to be optimised, and in which direction."""

    figure: str
    minimise: bool = True

    @classmethod
    def parse(cls, text: str) -> Objective:
        """Read ``min:latency_ms``, ``max:top1`` or a bare figure name (smaller is better, ``top1`` excepted).

        Raises:
            OptionError: It is of another form, or no text.
        """
        sign, colon, name = str(text).partition(":")
        if not isinstance(text, str) or not (name if colon else sign):
            raise OptionError("objective", text, "min:FIGURE or max:FIGURE")
        if not colon:
            return cls(sign, sign not in ("top1", "agreement", "sqnr_db", "speedup"))
        if sign not in ("min", "max"):
            raise OptionError("objective", text, "min:FIGURE or max:FIGURE")
        return cls(name, sign == "min")

    def __str__(self) -> str:
        return f"{'min' if self.minimise else 'max'}:{self.figure}"


@dataclass(frozen=True)
class Point:
    """One stack that was tried.

    Attributes:
        key: Content key of the point (inputs, options, versions, machine).
        choices: Layer or axis name (``compress``, ``backend``, ``threads``, ``target``) to the choice as written.
        record: Outcome, reason, figures and facts.
        baseline: Whether it is the point the others are compared with.
        seconds: Wall time it took to obtain, 0 when it came from the store.
    """

    key: str
    choices: Mapping[str, str]
    record: Record
    baseline: bool = False
    seconds: float = 0.0

    @property
    def label(self) -> str:
        """Short name for charts: ``int8 · onnxruntime · 1 thread``, with the target where it is another."""
        threads, target = self.choices.get("threads", "1"), self.choices.get("target", "host")
        return " · ".join(
            [
                self.choices.get("compress", "none"),
                self.choices.get("backend", "?"),
                f"{threads} thread" + ("s" if threads != "1" else ""),
                *([] if target == "host" else [target]),
            ]
        )


@dataclass(frozen=True)
class StudyResult:
    """A finished or interrupted study.

    Attributes:
        name: Study name.
        points: All points, invalid combinations included (outcome ``unsupported`` with the reason).
        objectives: What is optimised; the first two are the axes of the Pareto chart.
        pareto: Keys of the points no other point beats.
        hypervolume: Volume the Pareto set dominates, with its reference point (empty when it cannot be formed).
        changes: For each compression variant, rows ``{layer, op, before, after}`` of what it changed.
        facts: Model, data and baseline in words and numbers (``model``, ``dataset``, ``rows``, ``baseline_top1``).
        environment: Fingerprint of machine and libraries.
        command: The exact command that made it.
        stack: Text of the stack file, or an empty string.
        pending: Points not tried yet (the study was interrupted).
    """

    name: str
    points: tuple[Point, ...]
    objectives: tuple[Objective, ...]
    pareto: tuple[str, ...] = ()
    hypervolume: Mapping[str, Any] = field(default_factory=dict)
    changes: Mapping[str, list[dict[str, Any]]] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    command: str = ""
    stack: str = ""
    pending: int = 0

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "name": self.name,
            "points": [
                {
                    "key": p.key,
                    "choices": dict(p.choices),
                    "record": p.record.to_dict(),
                    "baseline": p.baseline,
                    "pareto": p.key in self.pareto,
                    "seconds": p.seconds,
                }
                for p in self.points
            ],
            "objectives": [str(o) for o in self.objectives],
            "pareto": list(self.pareto),
            "hypervolume": dict(self.hypervolume),
            "changes": {k: list(v) for k, v in self.changes.items()},
            "facts": dict(self.facts),
            "environment": dict(self.environment),
            "command": self.command,
            "stack": self.stack,
            "pending": self.pending,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> StudyResult:
        """Inverse of :meth:`to_dict`."""
        points = tuple(
            Point(p["key"], p["choices"], Record.from_dict(p["record"]), p["baseline"], p.get("seconds", 0.0))
            for p in fields["points"]
        )
        kept = {k: v for k, v in fields.items() if k not in ("points", "objectives", "pareto")}
        return cls(
            points=points,
            objectives=tuple(Objective.parse(o) for o in fields["objectives"]),
            pareto=tuple(fields["pareto"]),
            **kept,
        )
