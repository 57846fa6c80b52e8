"""Study: try every stack of a space, keep what each one cost, resume where it was stopped."""

from __future__ import annotations

import fcntl
from collections.abc import Iterator
from concurrent.futures import ThreadPoolExecutor
from contextlib import contextmanager, nullcontext
from dataclasses import asdict, replace
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np

from dlas.compress.method import methods
from dlas.core.cache import Cache
from dlas.core.environment import fingerprint, load, machine_key
from dlas.core.errors import DlasError
from dlas.core.figure import Figure, Outcome, Record, Source
from dlas.core.options import build_options
from dlas.core.statistics import proportion
from dlas.core.timing import Protocol as TimingProtocol
from dlas.core.worker import WorkerFailure
from dlas.data.metrics import top1
from dlas.explore.executor import Executor, ProcessExecutor, limits
from dlas.explore.panel import Member, Panel
from dlas.explore.pareto import hypervolume, pareto_keys, reference_point, values_of
from dlas.explore.pipeline import Product, Workbench
from dlas.explore.progress import Progress, Silent
from dlas.explore.result import Objective, Point, StudyResult
from dlas.explore.space import Pipeline, Stack
from dlas.explore.spec import StudySpec
from dlas.explore.storage import SqliteStorage, Storage
from dlas.hardware.target import targets
from dlas.runtime.backend import backends


class Study:
    """Tries the stacks of a space.

    Args:
        spec: What the stack file says.
        out: Folder for ``study.db``; created when the study runs.
        storage: Where rows are kept; by default ``out/study.db``.
        executor: Where steps run; by default worker processes of this machine.
        cache: Where products of steps are kept.
        progress: Told what is being done.
        command: The command line, for the report.
    """

    def __init__(
        self,
        spec: StudySpec,
        out: Path,
        *,
        storage: Storage | None = None,
        executor: Executor | None = None,
        cache: Cache | None = None,
        progress: Progress | None = None,
        command: str = "",
    ) -> None:
        self.spec = spec
        self.out = out
        self.progress = progress or Silent()
        self.command = command
        check_choices(spec)
        self._storage = storage
        self._executor = executor
        self._cache = cache or Cache()

    def run(self, *, fresh: bool = False) -> StudyResult:
        """Try what has not been tried yet and return everything.

        Args:
            fresh: Measure again what is already stored.

        Raises:
            DlasError: Model or data cannot be used at all; nothing is stored then.
            KeyboardInterrupt: The run was interrupted; finished points are stored.
        """
        executor = self._executor or ProcessExecutor(**limits(self.spec.limits))
        try:
            bench = Workbench(self.spec, executor, self._cache, self.progress)
            with _as_user_error("the model cannot be imported"):
                bench.network  # noqa: B018 - everything below needs it; fail before anything is stored
            with _as_user_error("the data cannot be prepared"):
                bench.rows  # noqa: B018
            with self._opened(write=True) as storage:
                return _Run(self, bench, storage, executor).run(fresh)
        finally:
            if self._executor is None:
                executor.close()

    def stored(self) -> StudyResult | None:
        """What is stored of this study so far, or None."""
        if self._storage is None and not (self.out / "study.db").exists():
            return None
        with self._opened(write=False) as storage:
            return load_result(storage, self.spec.name) if self.spec.name in storage.studies() else None

    @contextmanager
    def _opened(self, *, write: bool) -> Iterator[Storage]:
        if self._storage is not None:
            yield self._storage
            return
        storage = SqliteStorage(self.out / "study.db", create=write)
        try:
            with _alone(self.out / ".study.lock") if write else nullcontext():
                yield storage
        finally:
            storage.close()


class _Run:
    """One run of a study: the state that is only needed while points are being tried."""

    def __init__(self, study: Study, bench: Workbench, storage: Storage, executor: Executor) -> None:
        self.spec = study.spec
        self.command = study.command
        self.progress = study.progress
        self.bench = bench
        self.storage = storage
        self.executor = executor
        self.environment = fingerprint()
        self.protocol = TimingProtocol.quick() if self.spec.study.timing == "quick" else TimingProtocol()
        machine = machine_key()
        self.stacks = self.spec.space.stacks(self.spec.study.design)
        self.keys = {stack: bench.point_key(stack, machine) for stack in self.stacks}
        self.panel: Panel | None = None
        self.changes: dict[str, list[dict[str, Any]]] = {}

    def run(self, fresh: bool) -> StudyResult:
        name = self.spec.name
        if fresh:
            self.storage.forget(name, list(self.keys.values()))
        done = self.storage.points(name)
        todo = [stack for stack in self.stacks if not self._settled(done.get(self.keys[stack]))]
        if name in self.storage.studies():
            # Of a study whose file was changed, only what belongs to points that still count.
            kept = {str(stack.compress) for stack in self.stacks if self.keys[stack] in done}
            known = self.storage.study(name)["changes"]
            self.changes = {pipeline: rows for pipeline, rows in known.items() if pipeline in kept}
        self.progress.start(len(self.stacks))
        self.progress.advance(len(self.stacks) - len(todo))
        self.storage.put_study(name, self._facts())
        try:
            for pipeline in dict.fromkeys(stack.compress for stack in todo):
                self._try_variant(pipeline, [s for s in todo if s.compress == pipeline])
        finally:
            if self.panel is not None:
                self.panel.close()
            self.storage.put_study(name, self._facts())
        return load_result(self.storage, name)

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
            "changes": self.changes,
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

    def _try_variant(self, pipeline: Pipeline, stacks: list[Stack]) -> None:
        """Compress, judge, then compile, check and time on every back end."""
        started = monotonic()
        try:
            self._require_data(pipeline)
            product = self.bench.compressed(pipeline)
            judged = self._judge(product)
        except DlasError as failure:
            for stack in stacks:
                self._store(stack, failure_record(failure, f"compress {pipeline}"), monotonic() - started)
            return
        self.changes[str(pipeline)] = self.bench.changes(product)
        self.storage.put_study(self.spec.name, self._facts())  # before its points: a kill must not part them
        for target in dict.fromkeys(s.target for s in stacks):
            for threads in dict.fromkeys(s.threads for s in stacks):
                members = [s for s in stacks if s.target == target and s.threads == threads]
                if members:
                    self._measure(members, product, judged)

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
        return figures, facts

    def _measure(
        self, stacks: list[Stack], product: Product, judged: tuple[dict[str, Figure], dict[str, Any]]
    ) -> None:
        """Compile, check and time the stacks of one panel, interleaved with the baseline."""
        started = monotonic()
        if self.panel is None:
            self.panel = Panel(self.bench, self.spec.space.baseline, self.executor, self.protocol)
        members = [Member(stack, product, self.bench.floor(product)) for stack in stacks]
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
            self._store(member.stack, self._record(member, judged), each)

    def _record(self, member: Member, judged: tuple[dict[str, Figure], dict[str, Any]]) -> Record:
        if member.failure is not None:
            record = failure_record(member.failure, f"{member.stack.backend}")
            # What compression cost is known even where the network cannot be deployed.
            return replace(record, figures=judged[0], facts={**judged[1], **record.facts})
        figures = {**judged[0], **member.figures}
        facts = {**judged[1], **member.facts}
        facts["notes"] = [*judged[1]["notes"], *member.facts.get("notes", [])]
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
        self.progress.advance()


class NotFiniteError(DlasError):
    """A network answers with NaN or infinity: there is nothing to compare a back end with."""


def load_result(storage: Storage, name: str) -> StudyResult:
    """A study's result from its stored rows: Pareto set and hypervolume are computed here, never stored."""
    known = storage.study(name)
    stored = storage.points(name)
    points = tuple(stored[key] for key in known["keys"] if key in stored)
    objectives = tuple(Objective.parse(o) for o in known["objectives"])
    front = pareto_keys(points, objectives)
    return StudyResult(
        name=name,
        points=points,
        objectives=objectives,
        pareto=front,
        hypervolume=front_volume(points, front, objectives),
        changes=known["changes"],
        facts={**known["facts"], **_baseline_facts(points)},
        environment=known["environment"],
        command=known["command"],
        stack=known["stack"],
        pending=len(known["keys"]) - len(points),
    )


def front_volume(
    points: tuple[Point, ...], front: tuple[str, ...], objectives: tuple[Objective, ...]
) -> dict[str, Any]:
    """Hypervolume of the Pareto set against the worst value of every objective over all good points, times 1.1."""
    _, values = values_of(points, objectives)
    if not front or len(objectives) > 4:
        return {}
    reference = reference_point(values)
    return {"value": hypervolume(values, reference), "reference": [float(v) for v in reference]}


def usable_objectives(objectives: tuple[Objective, ...], labelled: bool) -> tuple[Objective, ...]:
    """Without labels there is no accuracy: agreement with the original stands in for it."""
    if labelled:
        return objectives
    return tuple(Objective("agreement", False) if o.figure == "top1" else o for o in objectives)


def failure_record(failure: DlasError, where: str) -> Record:
    """The row of something that could not be done."""
    if isinstance(failure, WorkerFailure):
        reason = f"{where}: {failure.reason}"
        return Record(failure.outcome, reason, stderr_tail=failure.stderr_tail)
    outcome = Outcome.WRONG if isinstance(failure, NotFiniteError) else Outcome.UNSUPPORTED
    return Record(outcome, f"{where}: {failure}")


def check_choices(spec: StudySpec) -> None:
    """Raise before anything runs when a name or an option in the space does not exist."""
    for pipeline in spec.space.compress:
        for choice in pipeline.steps:
            build_options(methods.get(choice.name).Options, choice.as_dict(), choice.name)
    for choice in spec.space.backends:
        build_options(backends.get(choice.name).Options, choice.as_dict(), choice.name)
    for choice in spec.space.targets:
        build_options(targets.get(choice.name).Options, choice.as_dict(), choice.name)


def _baseline_facts(points: tuple[Point, ...]) -> dict[str, Any]:
    base = next((p for p in points if p.baseline), None)
    if base is None:
        return {}
    facts: dict[str, Any] = {"baseline": dict(base.choices)}
    for figure in ("top1", "latency_ms"):
        if figure in base.record.figures:
            facts[f"baseline_{figure}"] = base.record.figures[figure].value
    return facts


@contextmanager
def _as_user_error(what: str) -> Iterator[None]:
    """A worker's failure in a step without which there is no study becomes one line for the user."""
    try:
        yield
    except WorkerFailure as failure:
        raise DlasError(f"{what}: {failure.reason}", failure.hint) from failure


@contextmanager
def _alone(path: Path) -> Iterator[None]:
    """Hold the study file for one process; the system gives the lock back if the process dies."""
    with path.open("w") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise DlasError(
                f"another dlas is running the study in {path.parent}",
                "wait for it, or name another folder with --out",
            ) from None
        yield
