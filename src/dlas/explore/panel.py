"""A panel: artifacts that are timed in turn, together with the baseline, so that drift hits all of them alike."""

from __future__ import annotations

from dataclasses import dataclass, field
from time import monotonic
from typing import Any

import numpy as np

from dlas.core.cache import key_of
from dlas.core.errors import DlasError, StorageError
from dlas.core.figure import Figure, Source
from dlas.core.timing import Protocol as TimingProtocol
from dlas.core.timing import Timing, ratio
from dlas.core.worker import WorkerFailure
from dlas.explore.executor import Session
from dlas.explore.pipeline import Product, Workbench
from dlas.explore.space import Stack
from dlas.hardware.target import is_accelerator
from dlas.runtime.bench import measure_survivors
from dlas.verify.differential import Comparison, NoiseFloor, compare_outputs

PROFILE_REPEATS = 10
CHECK_S = 8.0  # a path slower than this is checked on fewer rows than asked for; the row says how many
CHECK_BLOCK = 20
_ANCHOR = "baseline"


@dataclass
class Member:
    """One stack on its way through a panel: opened, checked, timed, or failed on the way."""

    stack: Stack
    product: Product
    floor: NoiseFloor
    session: Session | None = None
    failure: DlasError | None = None
    comparison: Comparison | None = None
    figures: dict[str, Figure] = field(default_factory=dict)
    facts: dict[str, Any] = field(default_factory=dict)

    @property
    def is_modelled(self) -> bool:
        """Whether its device is not here: nothing is timed, a model says how long it takes."""
        return is_accelerator(self.stack.target)


class Panel:
    """Opens, checks and times members next to the baseline.

    Args:
        bench: Makes the artifacts.
        baseline: The stack that all speed-ups are ratios to; kept loaded as the anchor of every round.
        protocol: How long to time.
    """

    def __init__(self, bench: Workbench, baseline: Stack, protocol: TimingProtocol) -> None:
        self._bench = bench
        self._executor = bench.executor
        self._protocol = protocol
        self._comparisons: dict[str, Comparison] = {}
        self._failures: dict[str, DlasError] = {}
        self._anchor = self.open(Member(baseline, bench.network, bench.floor(bench.network)))

    def open(self, member: Member) -> Member:
        """Compile, load and check; a failure is kept in the member."""
        with self._executor.busy():
            return self._open(member)

    def _open(self, member: Member) -> Member:
        stack = member.stack
        memo = key_of(member.product.facts["hash"], str(stack.backend), str(stack.target))
        if memo in self._failures:
            member.failure = self._failures[memo]
            return member
        try:
            artifact = self._bench.artifact(member.product, stack.backend, stack.target)
        except StorageError:  # no property of the member: the run stops
            raise
        except DlasError as failure:
            member.failure = self._failures[memo] = failure
            return member
        try:
            member.session = self._executor.session(stack.threads)
            opened = member.session.open(
                str(stack.backend), str(artifact.folder), str(stack.target), stack.threads
            )
            member.facts["notes"] = list(opened.get("notes", []))
            size = artifact.facts["artifact_bytes"]
            member.figures["artifact_bytes"] = Figure(size, "bytes", Source.MEASURED)
            member.comparison = self._check(memo, member)
        except StorageError:
            raise
        except DlasError as failure:
            self._fail(member, failure)
        return member

    def _check(self, memo: str, member: Member) -> Comparison:
        """Compare with the reference engine; thread counts share one artifact, hence one check."""
        if memo not in self._comparisons:
            assert member.session is not None
            answers = _answers(member.session, self._bench.check_rows)
            reference = self._bench.scores(member.product, count=len(self._bench.check_rows))
            compared = compare_outputs(reference[: len(answers)], answers, floor=member.floor)
            self._comparisons[memo] = compared
        return self._comparisons[memo]

    def time(self, members: list[Member]) -> None:
        """Time the members in turn with the baseline; one that dies is dropped and the rest are timed again."""
        if not members:
            return
        timed = [member for member in members if not member.is_modelled]
        with self._executor.quiet():
            for member in members:
                if member.is_modelled:
                    self._finish_modelled(member)
        if not timed:
            return
        sessions = {str(i): m.session for i, m in enumerate(timed) if m.session is not None}
        if self._anchor.session is not None and self._anchor.failure is None and not self._anchor.is_modelled:
            sessions[_ANCHOR] = self._anchor.session
        with self._executor.quiet():
            timings, failures = measure_survivors(sessions, self._protocol)
            for name, failure in failures.items():
                self._fail(self._anchor if name == _ANCHOR else timed[int(name)], failure)
            for index, member in enumerate(timed):
                if member.failure is None:
                    self._finish(member, timings[str(index)], timings.get(_ANCHOR))

    def _model(self, member: Member) -> None:
        """Take the time of a device that is not here from its model."""
        assert member.session is not None
        try:
            member.figures.update(member.session.modelled())
            member.facts["layers"] = member.session.layers(PROFILE_REPEATS)
        except WorkerFailure as failure:
            self._fail(member, failure)

    def _finish_modelled(self, member: Member) -> None:
        """A speed-up has both sides out of a model, or there is none."""
        self._model(member)
        if (
            self._anchor.is_modelled
            and self._anchor.failure is None
            and "latency_ms" not in self._anchor.figures
        ):
            self._model(self._anchor)
        base = self._anchor.figures.get("latency_ms") if self._anchor.is_modelled else None
        if member.failure is None and base is not None:
            value = base.value / member.figures["latency_ms"].value
            note = "both on simulated accelerators"
            member.figures["speedup"] = Figure(value, "ratio", Source.ESTIMATED, note=note)
        if member.session is not None:
            member.session.close()

    def _finish(self, member: Member, timing: Timing, anchor: Timing | None) -> None:
        member.figures["latency_ms"] = timing.figure()
        if anchor is not None:
            member.figures["speedup"] = ratio(anchor, timing)
        assert member.session is not None
        try:
            facts = member.session.facts(PROFILE_REPEATS)
        except WorkerFailure as failure:
            self._fail(member, failure)
            return
        peak = facts["memory"].get("peak_bytes")
        if peak is not None:
            member.figures["peak_memory_bytes"] = Figure(peak, "bytes", Source.MEASURED)
        if "energy" in facts:
            member.figures["energy_mj"] = Figure(facts["energy"]["mj_per_run"], "mJ", Source.MEASURED)
        for name in ("layers", "no_layers"):
            if name in facts:
                member.facts[name] = facts[name]
        member.session.close()

    def _fail(self, member: Member, failure: DlasError) -> None:
        member.failure = failure
        if member.session is not None:
            member.session.close()

    def close(self) -> None:
        """End the anchor's session."""
        if self._anchor.session is not None:
            self._anchor.session.close()


def _answers(session: Session, rows: np.ndarray) -> np.ndarray:
    """Answers on as many rows as fit into the time for a check, in blocks; a slow path is checked on fewer rows."""
    started, answers = monotonic(), []
    for start in range(0, len(rows), CHECK_BLOCK):
        answers.append(session.outputs(rows[start : start + CHECK_BLOCK]))
        if monotonic() - started > CHECK_S:
            break
    return np.concatenate(answers)
