"""Which pass of an optimiser breaks a network?

Follows DiTOX (differential testing of the ONNX optimiser, Louloudakis et al.), with interactions added. The whole
bundle is tried first. Where it crashes, or gives a network that is invalid or answers otherwise, each of its passes
is tried alone. If the bundle is still broken without those that fail alone, its prefixes are bisected for passes that
do harm only together. Every attempt runs in a worker process, and its answers are judged as ``dlas compare`` judges
them, against the noise floor of the network itself.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, replace
from enum import StrEnum
from types import TracebackType
from typing import Any

import numpy as np

from dlas.core.bisection import smallest_subset
from dlas.core.errors import MissingDependencyError
from dlas.core.figure import Outcome
from dlas.core.lazy import distribution_version, installed
from dlas.core.worker import Worker, WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.guess import with_guessed_preprocessing
from dlas.graph.model import Model
from dlas.graph.signature import to_real
from dlas.verify.differential import Comparison, NoiseFloor, Verdict, compare_outputs, floor_between
from dlas.verify.passes.tool import PassTool, pass_tools
from dlas.verify.running import source_rows

__all__ = ["Blame", "PassOutcome", "PassReport", "PassResult", "blame", "pass_tools"]

_MEMORY = 8 * 2**30  # bytes that an optimiser and the network may take together
_WORK = "dlas.verify.passes._attempts"
_MOST_INTERACTIONS = 5
_FLOORS = ("onnxruntime, all optimisations against none", "onnxruntime, many rows at a time against one")

Report = Callable[[str], None]


class PassOutcome(StrEnum):
    """What became of a network that a pass has worked on."""

    FINE = "fine"
    RENAMES_IO = "renames-io"  # the same answers under other names: by design
    DIFFERENT = "different"  # clearly other answers than the network's own
    INVALID = "invalid"  # refused by the ONNX checker or by ONNX Runtime
    CRASH = "crash"
    TIMEOUT = "timeout"

    @property
    def broken(self) -> bool:
        """Whether the network can no longer be relied on."""
        return self not in (PassOutcome.FINE, PassOutcome.RENAMES_IO)


@dataclass(frozen=True)
class PassResult:
    """One attempt.

    Attributes:
        name: The pass, several joined by ``+``, or the level of a whole bundle.
        outcome: What became of it.
        reason: Why, where it is not fine; the new names, where it renames.
        comparison: The worst comparison of all outputs, where they could be compared.
        changed: Whether the pass did anything: whether the result is another than that of no pass.
    """

    name: str
    outcome: PassOutcome
    reason: str = ""
    comparison: Comparison | None = None
    changed: bool = True

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "name": self.name,
            "outcome": str(self.outcome),
            "reason": self.reason,
            "comparison": self.comparison.to_dict() if self.comparison else None,
            "changed": self.changed,
        }


@dataclass(frozen=True)
class Blame:
    """Passes that break the network: one alone, or several together of which none does so without the others."""

    passes: tuple[str, ...]
    outcome: PassOutcome
    reason: str = ""

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {"passes": list(self.passes), "outcome": str(self.outcome), "reason": self.reason}


@dataclass(frozen=True)
class PassReport:
    """Which passes of an optimiser break a network.

    Attributes:
        source: Name of the network.
        tool: The optimiser as written, and its version.
        rows: Rows compared; random ones without data.
        floor: Noise floor of the first output.
        idle: The optimiser without any pass. Where that is broken, no pass is to blame.
        bundles: The whole optimiser at each of its levels, the one asked for last.
        passes: Each pass alone, where they were tried.
        culprits: Who is to blame for the last bundle.
        attempts: How often the optimiser was run.
    """

    source: str
    tool: str
    version: str
    rows: int
    random: bool
    floor: NoiseFloor
    idle: PassResult
    bundles: tuple[PassResult, ...]
    passes: tuple[PassResult, ...] = ()
    culprits: tuple[Blame, ...] = ()
    attempts: int = 0

    @property
    def right(self) -> bool:
        """Whether the optimiser as it runs by itself may be relied on for this network."""
        return not self.bundles[-1].outcome.broken

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON."""
        return {
            "source": self.source,
            "tool": self.tool,
            "version": self.version,
            "rows": self.rows,
            "random": self.random,
            "noise_floor": self.floor.to_dict(),
            "right": self.right,
            "idle": self.idle.to_dict(),
            "bundles": [b.to_dict() for b in self.bundles],
            "passes": [p.to_dict() for p in self.passes],
            "culprits": [c.to_dict() for c in self.culprits],
            "attempts": self.attempts,
        }


def blame(
    model: Model,
    tool: PassTool,
    *,
    data: Dataset | None = None,
    rows: int = 200,
    each: bool = False,
    timeout_s: float = 300.0,
    tell: Report = lambda text: None,
) -> PassReport:
    """Find the passes of an optimiser that break a network.

    Args:
        model: The network that is right by definition.
        tool: The optimiser, at the level to look into.
        data: Rows; without them, 32 random inputs are used.
        rows: Rows to use at most.
        each: Try every pass the optimiser has alone, also those it does not run by itself and where nothing breaks.
        timeout_s: Longest time for one attempt.
        tell: Receives one line per step.

    Raises:
        MissingDependencyError: The optimiser is not installed.
        DataError: The rows do not fit the network.
        WorkerFailure: The network itself cannot be run.
    """
    for module, extra in tool.requires.items():
        if not installed(module):
            raise MissingDependencyError(module, extra, f"trying the passes of {tool.name}")
    if data is not None and model.preprocessing is None:
        model, note = with_guessed_preprocessing(model, data)
        tell(note)
    x, _ = source_rows(model, data, rows)
    with _Trials(model, tool, x, timeout_s) as trials:
        tell(f"run {tool.spelled()} on {model.name}")
        idle = trials.run([], "no pass")
        bundles = tuple(trials.whole(level) for level in tool.bundles())
        report = PassReport(
            model.name,
            tool.spelled(),
            distribution_version(tool.distribution) if tool.distribution else "",
            len(next(iter(x.values()))),
            data is None,
            trials.floors[0],
            idle,
            bundles,
        )
        alone: dict[str, PassResult] = {}
        culprits: list[Blame] = []
        if each or not report.right:
            names = trials.listing()
            for name in names["all" if each else "bundle"]:
                tell(f"run {name} alone")
                alone[name] = trials.run([name], name)
            if not report.right and not idle.outcome.broken:
                culprits = _culprits(trials, names["bundle"], alone, tell)
        return replace(
            report, passes=tuple(alone.values()), culprits=tuple(culprits), attempts=trials.attempts
        )


def _culprits(
    trials: _Trials, bundle: Sequence[str], alone: Mapping[str, PassResult], tell: Report
) -> list[Blame]:
    """Passes that break the network alone, then sets of those left that do so together."""
    found = [
        Blame((name,), alone[name].outcome, alone[name].reason)
        for name in bundle
        if alone[name].outcome.broken
    ]
    rest = [name for name in bundle if not alone[name].outcome.broken]

    def breaks(names: list[str]) -> bool:
        return trials.run(names).outcome.broken

    for _ in range(_MOST_INTERACTIONS):
        if len(rest) < 2 or not breaks(rest):
            break
        tell(f"{len(rest)} passes that are fine alone break it together: bisecting")
        together = smallest_subset(rest, breaks)
        result = trials.run(together)
        found.append(Blame(tuple(together), result.outcome, result.reason))
        rest.remove(together[-1])  # what is left may hold another set
    return found


class _Trials:
    """A worker that tries passes on one network, replaced when one of them ends it; what was tried is remembered."""

    def __init__(self, model: Model, tool: PassTool, x: Mapping[str, np.ndarray], timeout_s: float) -> None:
        self._model, self._tool, self._x, self._timeout_s = model, tool, dict(x), timeout_s
        self._proto = model.to_bytes()
        self._worker: Worker | None = None
        self._known: dict[tuple[str, tuple[str, ...] | None], PassResult] = {}
        self._seen: dict[str, PassResult] = {}
        self._idle = ""
        self.attempts = 0
        self._own = self._begin()
        self.floors = [
            floor_between(to_real(first, model, i), to_real(second, model, i), _FLOORS[int(tool.in_runtime)])
            for i, (first, second) in enumerate(zip(self._own["again"], self._own["arrays"], strict=True))
        ]

    def __enter__(self) -> _Trials:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.close()

    def listing(self) -> dict[str, list[str]]:
        """Names of ``all`` passes and of those of the ``bundle``."""
        return self._call("listing", self._tool.spelled())

    def whole(self, level: PassTool) -> PassResult:
        """The optimiser as it runs by itself."""
        return self._attempt(level, None, level.spelled())

    def run(self, passes: Sequence[str], name: str = "") -> PassResult:
        """The optimiser with these passes only."""
        return self._attempt(self._tool, tuple(passes), name or "+".join(passes))

    def _attempt(self, tool: PassTool, passes: tuple[str, ...] | None, name: str) -> PassResult:
        key = (tool.spelled(), passes)
        if key not in self._known:
            self._known[key] = self._judged(tool, passes, name)
        return replace(self._known[key], name=name)

    def _judged(self, tool: PassTool, passes: tuple[str, ...] | None, name: str) -> PassResult:
        self.attempts += 1
        try:
            found = self._call("attempt", tool.spelled(), None if passes is None else list(passes))
        except WorkerFailure as failure:
            kind = PassOutcome.TIMEOUT if failure.outcome is Outcome.TIMEOUT else PassOutcome.CRASH
            return PassResult(name, kind, failure.reason)
        if passes == ():
            self._idle = found["hash"]
        if not found.get("seen"):
            answers = {**found, **self._own} if found.get("same") else found
            self._seen[found["hash"]] = self._compared(answers, name)
        changed = found["hash"] != self._idle if self._idle else True
        return replace(self._seen[found["hash"]], changed=changed)

    def _compared(self, found: Mapping[str, Any], name: str) -> PassResult:
        if "invalid" in found:
            return PassResult(name, PassOutcome.INVALID, found["invalid"])
        own, given = list(self._own["outputs"]), list(found["outputs"])
        arrays = list(found["arrays"])
        if set(own) == set(given):
            arrays = [arrays[given.index(n)] for n in own]
        if len(arrays) != len(own):
            reason = f"it has {len(arrays)} outputs, the network {len(own)}"
            return PassResult(name, PassOutcome.INVALID, reason)
        compared = [
            compare_outputs(to_real(wanted, self._model, i), to_real(got, self._model, i), floor=floor)
            for i, (wanted, got, floor) in enumerate(
                zip(self._own["arrays"], arrays, self.floors, strict=True)
            )
        ]
        order = list(Verdict)
        worst = min(compared, key=lambda c: order.index(c.verdict))
        if not worst.verdict.right:
            return PassResult(name, PassOutcome.DIFFERENT, worst.reason, worst)
        renamed = [
            f"{old} to {new}"
            for side in ("inputs", "outputs")
            if found[side] and set(self._own[side]) != set(found[side])
            for old, new in zip(self._own[side], found[side], strict=True)
            if old != new
        ]
        kind = PassOutcome.RENAMES_IO if renamed else PassOutcome.FINE
        return PassResult(name, kind, ", ".join(renamed) or worst.reason, worst)

    def _call(self, function: str, *arguments: Any) -> Any:
        if self._worker is None or not self._worker.alive:
            self._begin()
        assert self._worker is not None
        return self._worker.call(f"{_WORK}:{function}", *arguments, timeout_s=self._timeout_s)

    def _begin(self) -> dict[str, Any]:
        """A new worker that holds the network and the rows; see ``_attempts.begin``."""
        if self._worker is not None:
            self._worker.close()
        self._worker = Worker(threads=1, memory_bytes=_MEMORY, name="optimiser")
        self._seen = {}
        given = [type(self._tool).__module__, self._proto, self._x, self._tool.in_runtime]
        return self._worker.call(f"{_WORK}:begin", *given, timeout_s=self._timeout_s)
