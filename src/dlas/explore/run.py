"""The run of a study: which points are left, who tries them, and what becomes of each."""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from concurrent.futures import ThreadPoolExecutor
from dataclasses import asdict, dataclass, replace
from time import monotonic, sleep
from typing import Any

import numpy as np

from dlas.compress.method import methods
from dlas.core.environment import fingerprint, load, machine_key
from dlas.core.errors import DlasError, StorageError
from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.core.options import Choice
from dlas.core.statistics import proportion
from dlas.core.timing import Protocol as TimingProtocol
from dlas.core.worker import WorkerFailure
from dlas.data.metrics import top1
from dlas.explore.claims import Claims
from dlas.explore.panel import Member, Panel
from dlas.explore.pipeline import Product, Workbench
from dlas.explore.progress import Progress
from dlas.explore.result import Objective, Point
from dlas.explore.space import Pipeline, Stack
from dlas.explore.spec import StudySpec
from dlas.explore.storage import Storage

_PATIENCE_S = 0.5  # between two looks at what other processes have finished


@dataclass(frozen=True)
class _Variant:
    """A compressed network with the figures and facts that hold on every back end."""

    product: Product
    figures: Mapping[str, Figure]
    facts: Mapping[str, Any]


class Run:
    """One process's part in a study.

    Args:
        spec: What the stack file says.
        command: The command line, for the report.
        bench: Makes and remembers the products of steps.
        storage: Where rows are kept.
        claims: Who tries which point.
        progress: Told what is being done.
    """

    def __init__(
        self,
        spec: StudySpec,
        command: str,
        bench: Workbench,
        storage: Storage,
        claims: Claims,
        progress: Progress,
    ) -> None:
        self.spec = spec
        self.command = command
        self.progress = progress
        self.bench = bench
        self.storage = storage
        self.claims = claims
        self.environment = fingerprint()
        self.protocol = TimingProtocol.quick() if spec.study.timing == "quick" else TimingProtocol()
        machine = machine_key()
        self.stacks = spec.space.stacks(spec.study.design)
        self.keys = {stack: bench.point_key(stack, machine) for stack in self.stacks}
        self.panel: Panel | None = None
        self._left = dict.fromkeys(self.stacks)
        self._variants: dict[Pipeline, _Variant | DlasError] = {}

    def finish(self, fresh: bool = False) -> None:
        """Try everything that nobody has tried; returns when no point is left, whoever tried it.

        Args:
            fresh: Measure again what is already stored.
        """
        name = self.spec.name
        if fresh:
            self.storage.forget(name, list(self.keys.values()))
        self.progress.start(len(self.stacks))
        self.storage.put_study(name, self._facts())
        try:
            self._strike(self.storage.points(name))
            while self._left:
                for group in _panels(self._left):
                    self._try_free(group)
                if self._left:
                    self.progress.step(f"{len(self._left)} points are with another dlas")
                    sleep(_PATIENCE_S)
                    self._strike(self.storage.points(name))
        finally:
            if self.panel is not None:
                self.panel.close()
            self.storage.put_study(name, self._facts())

    def _strike(self, done: Mapping[str, Point]) -> None:
        """Take off the list what is settled."""
        for stack in [s for s in self._left if self._settled(done.get(self.keys[s]))]:
            del self._left[stack]
            self.progress.advance()

    def _try_free(self, group: list[Stack]) -> None:
        """Try the stacks of one panel that no other process is trying or has tried."""
        got = self.claims.take([self.keys[stack] for stack in group])
        try:
            if got:
                # Only now, with the claims in hand, is it certain what others have finished.
                self._strike(self.storage.points(self.spec.name, [self.keys[stack] for stack in group]))
                mine = [s for s in group if s in self._left and self.keys[s] in got]
                if mine:
                    self._try(mine)
        finally:
            self.claims.release(got)

    def _settled(self, point: Point | None) -> bool:
        """Whether nothing is left to try: what the limits may have stopped is tried again under other ones."""
        if point is None:
            return False
        stopped = point.record.outcome in (Outcome.CRASH, Outcome.TIMEOUT)
        return not stopped or point.record.environment.get("limits") == asdict(self.spec.limits)

    def _facts(self) -> dict[str, Any]:
        network, rows = self.bench.network.facts, self.bench.rows.facts
        objectives = [str(o) for o in usable_objectives(self.spec.objectives, rows["labelled"])]
        return {
            "keys": list(self.keys.values()),
            "objectives": objectives,
            "command": self.command,
            "stack": self.spec.text,
            "environment": self.environment,
            "facts": {
                "model": network["name"],
                "model_source": network["source"],
                "model_kind": network["kind"],
                "preprocessing": network["preprocessing"],
                "dataset": rows["name"],
                "rows": rows["rows"],
                "classes": rows["classes"],
                "check_rows": len(self.bench.check_rows),
                "design": self.spec.study.design,
                "protocol": asdict(self.protocol),
                "notes": self.bench.notes,
            },
        }

    def _try(self, stacks: list[Stack]) -> None:
        """Compress, judge, then compile, check and time the stacks of one panel."""
        started = monotonic()
        pipeline = stacks[0].compress
        variant = self._variant(pipeline)
        if isinstance(variant, DlasError):
            for stack in stacks:
                self._store(stack, failure_record(variant, f"compress {pipeline}"), monotonic() - started)
            return
        # Before its points: a kill must not part them.
        self.storage.put_changes(self.spec.name, str(pipeline), self.bench.changes(variant.product))
        self._measure(stacks, variant)

    def _variant(self, pipeline: Pipeline) -> _Variant | DlasError:
        """The compressed network with what holds on every back end, or why there is none."""
        if pipeline not in self._variants:
            try:
                self._require_data(pipeline)
                product = self.bench.compressed(pipeline)
                self._variants[pipeline] = _Variant(product, *self._judge(product))
            except DlasError as failure:
                self._variants[pipeline] = failure
        return self._variants[pipeline]

    def _require_data(self, pipeline: Pipeline) -> None:
        for choice in pipeline.steps:
            if methods.get(choice.name).needs_data and not self.bench.calibration:
                raise DlasError(f"{choice.name} needs calibration rows", "give --data or [data] path")

    def _judge(self, product: Product) -> tuple[dict[str, Figure], dict[str, Any]]:
        """Figures and facts of a compressed network that hold on every back end."""
        figures = {name: Figure.from_dict(f) for name, f in product.facts["figures"].items()}
        scores = self.bench.scores(product)
        broken = int(np.sum(~np.isfinite(scores.reshape(len(scores), -1)).all(axis=1)))
        if broken:
            raise NotFiniteError(f"{broken} of {len(scores)} rows come out as NaN or infinity")
        original = self.bench.scores(self.bench.network)
        labels = self.bench.labels
        if scores.ndim == 2 and scores.shape == original.shape:
            figures["agreement"] = proportion(
                int(np.sum(scores.argmax(1) == original.argmax(1))), len(scores)
            )
            if labels is not None:
                figures["top1"] = top1(scores, labels)
        floor = self.bench.floor(product)
        facts = {
            "noise_floor": floor.to_dict(),
            "kind": product.facts["kind"],
            "notes": product.facts["notes"],
        }
        if self.spec.attack.attacks and labels is not None:
            robustness = self.bench.robustness(product)
            if robustness["robust_accuracy"]:
                figures["robust_accuracy"] = Figure.from_dict(robustness["robust_accuracy"])
            facts["notes"] = [*facts["notes"], *robustness["notes"]]
        return figures, facts

    def _measure(self, stacks: list[Stack], variant: _Variant) -> None:
        """Compile, check and time the stacks of one panel, interleaved with the baseline."""
        started = monotonic()
        if self.panel is None:
            self.panel = Panel(self.bench, self.spec.space.baseline, self.protocol)
        floor = self.bench.floor(variant.product)
        members = [Member(stack, variant.product, floor) for stack in stacks]
        pool = ThreadPoolExecutor(max_workers=2)
        try:
            opened = list(pool.map(self.panel.open, members))
        finally:
            # After Ctrl-C nobody waits for a compiler: its worker is killed as the study closes its executor.
            pool.shutdown(wait=False, cancel_futures=True)
        ready = [m for m in opened if m.failure is None]
        self.progress.step(f"time {stacks[0].compress}, {stacks[0].threads} thread(s)")
        self.panel.time(ready)
        each = (monotonic() - started) / len(stacks)
        for member in opened:
            self._store(member.stack, self._record(member, variant), each)

    def _record(self, member: Member, variant: _Variant) -> Record:
        if member.failure is not None:
            record = failure_record(member.failure, f"{member.stack.backend}")
            # What compression cost is known even where the network cannot be deployed.
            return replace(record, figures=variant.figures, facts={**variant.facts, **record.facts})
        figures = {**variant.figures, **member.figures}
        facts = {**variant.facts, **member.facts}
        facts["notes"] = [*variant.facts["notes"], *member.facts.get("notes", [])]
        comparison = member.comparison
        assert comparison is not None, "a member without failure was checked"
        facts["verdict"] = str(comparison.verdict)
        facts["comparison"] = comparison.to_dict()
        if comparison.label_diff is not None:
            figures["label_diff"] = comparison.label_diff
        if comparison.sqnr_db is not None:
            figures["sqnr_db"] = Figure(comparison.sqnr_db, "dB", Source.MEASURED, n=comparison.rows)
        right = comparison.verdict.right
        return Record(
            Outcome.OK if right else Outcome.WRONG, "" if right else comparison.reason, figures, facts
        )

    def _store(self, stack: Stack, record: Record, seconds: float) -> None:
        baseline = stack == self.spec.space.baseline
        record = replace(record, environment={"load": load(), "limits": asdict(self.spec.limits)})
        point = Point(self.keys[stack], stack.choices(), record, baseline, seconds)
        self.storage.put_point(self.spec.name, point)
        self._left.pop(stack, None)
        self.progress.advance()


class NotFiniteError(DlasError):
    """A network answers with NaN or infinity: there is nothing to compare a back end with."""


def _panels(stacks: Iterable[Stack]) -> list[list[Stack]]:
    """Stacks that are timed together: one compressed network, one target, one number of threads."""
    groups: dict[tuple[Pipeline, Choice, int], list[Stack]] = {}
    for stack in stacks:
        groups.setdefault((stack.compress, stack.target, stack.threads), []).append(stack)
    return list(groups.values())


def usable_objectives(objectives: tuple[Objective, ...], labelled: bool) -> tuple[Objective, ...]:
    """Without labels there is no accuracy: agreement with the original stands in for it."""
    if labelled:
        return objectives
    return tuple(Objective("agreement", False) if o.figure == "top1" else o for o in objectives)


def failure_record(failure: DlasError, where: str) -> Record:
    """The row of something that could not be done.

    Raises:
        StorageError: It was for want of a disk, which says nothing about the point: it is tried again another time.
    """
    if isinstance(failure, StorageError):
        raise failure
    if isinstance(failure, WorkerFailure):
        reason = f"{where}: {failure.reason}"
        return Record(failure.outcome, reason, stderr_tail=failure.stderr_tail)
    outcome = Outcome.WRONG if isinstance(failure, NotFiniteError) else Outcome.UNSUPPORTED
    return Record(outcome, f"{where}: {failure}")
