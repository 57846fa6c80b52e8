"""Study: try every stack of a space, keep what each one cost, resume where it was stopped.

Several processes may run one study at once; they share its points (``explore.claims``) and its cache.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from dlas.compress.method import methods
from dlas.core.cache import Cache
from dlas.core.errors import DlasError
from dlas.core.options import build_options
from dlas.core.worker import WorkerFailure
from dlas.explore.claims import Claims, Unshared, claims_in
from dlas.explore.executor import Executor, ProcessExecutor, limits
from dlas.explore.pareto import hypervolume, pareto_keys, reference_point, values_of
from dlas.explore.pipeline import Workbench
from dlas.explore.progress import Progress, Silent
from dlas.explore.result import Objective, Point, StudyResult
from dlas.explore.run import Run
from dlas.explore.spec import StudySpec
from dlas.explore.storage import SqliteStorage, Storage
from dlas.hardware.target import target_for
from dlas.runtime.backend import backends
from dlas.verify.attack.attack import parse_attacks, parse_eps


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
        executor = self._executor or ProcessExecutor(**limits(self.spec.limits), home=self._cache.root)
        try:
            bench = Workbench(self.spec, executor, self._cache, self.progress)
            with _as_user_error("the model cannot be imported"):
                bench.network  # noqa: B018 - everything below needs it; fail before anything is stored
            with _as_user_error("the data cannot be prepared"):
                bench.rows  # noqa: B018
            with self._shared(fresh) as (storage, claims):
                Run(self.spec, self.command, bench, storage, claims, self.progress).finish(fresh)
                return load_result(storage, self.spec.name)
        finally:
            if self._executor is None:
                executor.close()

    def stored(self) -> StudyResult | None:
        """What is stored of this study so far, or None."""
        if self._storage is None and not (self.out / "study.db").exists():
            return None
        storage = self._storage or SqliteStorage(self.out / "study.db", create=False)
        try:
            return load_result(storage, self.spec.name) if self.spec.name in storage.studies() else None
        finally:
            if self._storage is None:
                storage.close()

    @contextmanager
    def _shared(self, alone: bool) -> Iterator[tuple[Storage, Claims]]:
        """The storage, and claims on its points; a storage of the caller's own is not shared."""
        if self._storage is not None:
            yield self._storage, Unshared()
            return
        storage = SqliteStorage(self.out / "study.db")
        try:
            with claims_in(self.out, alone=alone) as claims:
                yield storage, claims
        finally:
            storage.close()


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
        changes=_changes(storage, name, points),
        facts={**known["facts"], **_baseline_facts(points)},
        environment=known["environment"],
        command=known["command"],
        stack=known["stack"],
        pending=len(known["keys"]) - len(points),
    )


def _changes(storage: Storage, name: str, points: tuple[Point, ...]) -> dict[str, list[dict[str, Any]]]:
    """What the pipelines of these points changed; a study whose file was edited may know others."""
    known = storage.changes(name)
    tried = dict.fromkeys(p.choices.get("compress", "none") for p in points)
    return {pipeline: known[pipeline] for pipeline in tried if pipeline in known}


def front_volume(
    points: tuple[Point, ...], front: tuple[str, ...], objectives: tuple[Objective, ...]
) -> dict[str, Any]:
    """Hypervolume of the Pareto set against the worst value of every objective over all good points, times 1.1."""
    _, values = values_of(points, objectives)
    if not front or not 1 <= len(objectives) <= 4:
        return {}
    reference = reference_point(values)
    return {"value": hypervolume(values, reference), "reference": [float(v) for v in reference]}


def check_choices(spec: StudySpec) -> None:
    """Raise before anything runs when a name or an option in the space does not exist."""
    for pipeline in spec.space.compress:
        for choice in pipeline.steps:
            build_options(methods.get(choice.name).Options, choice.as_dict(), choice.name)
    for choice in spec.space.backends:
        build_options(backends.get(choice.name).Options, choice.as_dict(), choice.name)
    for choice in spec.space.targets:
        target_for(choice)
    if spec.attack.attacks:
        parse_attacks(spec.attack.attacks)
        parse_eps(spec.attack.eps)


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
