"""Numbers that know where they come from, and the outcome of one point of the stack."""

from __future__ import annotations

import math
from collections.abc import Mapping
from dataclasses import asdict, dataclass, field
from enum import StrEnum
from typing import Any


class Source(StrEnum):
    """How a figure was obtained."""

    MEASURED = "measured"  # a clock, a counter, a file size, an evaluation on data
    SIMULATED = "simulated"  # a cycle model or RTL
    ESTIMATED = "estimated"  # an analytic formula or tool
    PREDICTED = "predicted"  # a learned model


@dataclass(frozen=True)
class Figure:
    """A number with unit, spread and source.

    Attributes:
        value: The number; for repeated measurements the median.
        unit: Unit symbol (``ms``, ``bytes``, ``fraction``, ``count``, ``dB``).
        source: How it was obtained.
        low: Lower end of the 95 % interval, if one is known.
        high: Upper end of the 95 % interval.
        n: Number of samples behind the value.
        note: What a reader must know to use the number, such as a ``noisy`` flag.
    """

    value: float
    unit: str
    source: Source
    low: float | None = None
    high: float | None = None
    n: int | None = None
    note: str = ""

    def __post_init__(self) -> None:
        if not math.isfinite(self.value):
            raise ValueError(f"a figure must be finite, got {self.value}; leave it out instead")
        object.__setattr__(self, "source", Source(self.source))

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary without the empty fields."""
        return {k: v for k, v in asdict(self).items() if v is not None and v != ""}

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Figure:
        """Inverse of :meth:`to_dict`."""
        return cls(**fields)


class Outcome(StrEnum):
    """What became of one point."""

    OK = "ok"
    WRONG = "wrong"  # it runs, but its answers are not those of the model it was made from
    CRASH = "crash"
    TIMEOUT = "timeout"
    UNSUPPORTED = "unsupported"


@dataclass(frozen=True)
class Record:
    """All figures of one point, its environment and its outcome.

    Attributes:
        outcome: What became of the point.
        reason: Why, in one line; empty for ``ok``.
        figures: Name with unit (``latency_ms``) to figure.
        facts: Anything else worth a column: verdict, notes, per-layer rows.
        environment: Fingerprint of the machine and the libraries (see ``core.environment``).
        stderr_tail: Last lines a dead worker wrote.
    """

    outcome: Outcome
    reason: str = ""
    figures: Mapping[str, Figure] = field(default_factory=dict)
    facts: Mapping[str, Any] = field(default_factory=dict)
    environment: Mapping[str, Any] = field(default_factory=dict)
    stderr_tail: str = ""

    def __post_init__(self) -> None:
        object.__setattr__(self, "outcome", Outcome(self.outcome))
        if self.outcome is not Outcome.OK and not self.reason:
            raise ValueError(f"a record with outcome {self.outcome} needs a reason")

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "outcome": str(self.outcome),
            "reason": self.reason,
            "figures": {name: figure.to_dict() for name, figure in self.figures.items()},
            "facts": dict(self.facts),
            "environment": dict(self.environment),
            "stderr_tail": self.stderr_tail,
        }

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Record:
        """Inverse of :meth:`to_dict`."""
        figures = {name: Figure.from_dict(f) for name, f in fields.get("figures", {}).items()}
        return cls(**{**fields, "figures": figures})
