"""Compare a network with its conversions, each on the runtime that owns its file and on any path asked for."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from concurrent.futures import Future, ThreadPoolExecutor
from dataclasses import dataclass, replace

import numpy as np

from dlas.core.environment import usable_cores
from dlas.core.errors import DlasError
from dlas.core.files import scratch_folder
from dlas.core.lazy import distribution_version
from dlas.core.timing import Protocol
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.guess import background_class, with_guessed_preprocessing
from dlas.runtime.backend import backends
from dlas.runtime.native import OURSELVES, owner
from dlas.verify.differential.floor import source_floors
from dlas.verify.differential.judging import (
    Known,
    failed,
    judged,
    named_rows,
    native_runtime,
    top1_of,
    unread,
    worst,
)
from dlas.verify.differential.layers import compare_layers
from dlas.verify.differential.matrix import LabelMatrix
from dlas.verify.differential.outputs import is_classifier
from dlas.verify.differential.report import Answers, CompareReport, PathResult
from dlas.verify.differential.times import BASE, PathTime, path_times
from dlas.verify.differential.warm import Compiler, Lane, NativeLane, Shelf, time_lanes
from dlas.verify.paths import RunPath, parse_paths
from dlas.verify.running import Subject, Unread, axes_of, fed_rows, in_order, native, source_rows

__all__ = ["CompareReport", "PathResult", "Subject", "compare_files", "compare_layers", "worst"]

Report = Callable[[str], None]

_AT_ONCE = 4  # paths that answer at the same time: each may hold a whole network


class SourceError(DlasError):
    """The source itself cannot be run: there is nothing to compare with."""


@dataclass(eq=False)
class _Job:
    """One row of the report: a target on its own runtime (no path) or on a path."""

    number: int
    place: int  # of the target among all
    target: Subject
    title: str
    path: RunPath | None
    lane: Lane | None = None
    result: PathResult | None = None

    @property
    def name(self) -> str:
        """What the row is called."""
        return native_runtime(self.target.path) if self.path is None else self.path.label


def compare_files(
    source: Subject,
    targets: Sequence[Subject | Unread],
    *,
    data: Dataset | None = None,
    paths: Sequence[str] = (),
    rows: int = 200,
    layers: bool = False,
    timeout_s: float = 300.0,
    timing: Protocol | None = None,
    tell: Report = lambda text: None,
) -> CompareReport:
    """Compare targets with a source on the same rows.

    Whatever becomes of a path is a row of the report: one that crashes, hangs or finds the disk full does not keep
    the others from being tried.

    Args:
        source: The network that is right by definition, run by the runtime that owns its file.
        targets: Its conversions; one that cannot be read becomes a row that says so.
        data: Rows; without them, 32 random inputs are used (they show differences, not accuracy).
        paths: Paths to run each target on besides its own runtime, such as ``tvm:O0..O3`` (see ``verify.paths``).
        rows: Rows to use at most.
        layers: Also compare every intermediate tensor that has the same name and shape in both.
        timeout_s: Longest time for compiling, and for 64 rows.
        timing: How to time the paths against the source's base path; None leaves times out.
        tell: Receives one line per step.

    Raises:
        UnknownNameError: No such path.
        DataError: The rows do not fit the source.
        DlasError: The source itself cannot be run, or no target can be read.
    """
    read = _read(targets, tell)
    routes = parse_paths(paths)
    if data is not None and source.model.preprocessing is None:
        model, note = with_guessed_preprocessing(source.model, data)
        source = replace(source, model=model)
        tell(note)
    known = _source_answers(source, data, rows, timeout_s, tell)
    titles = _titles(targets)
    jobs = _jobs(source, targets, titles, routes)
    with scratch_folder() as folder, Compiler(folder, timeout_s) as compiler:
        try:
            _answer(known, jobs, compiler, timing is not None, timeout_s, tell)
            times = _times(known, source, jobs, compiler, timing, timeout_s, tell) if timing else {}
        finally:
            for job in jobs:
                if job.lane is not None:
                    job.lane.close()
    found = _in_order_of(targets, titles, jobs, times)
    compared = tuple(compare_layers(source.model, read[0].model, known.x)) if layers and read else ()
    return CompareReport(
        source=source.path.name,
        rows=known.count,
        floor=known.floors[0],
        source_top1=top1_of(known.answers[0], known.labels),
        paths=tuple(found),
        layers=compared,
        random=data is None,
        matrix=_matrix(known, found),
        base=BASE if times else "",
        versions=_versions([source, *read], routes),
        answers=_answers_of(known),
    )


def _read(targets: Sequence[Subject | Unread], tell: Report) -> list[Subject]:
    """The targets that could be read; raises what became of the first where there is none."""
    lost = [target for target in targets if isinstance(target, Unread)]
    if lost and len(lost) == len(targets):
        raise lost[0].error
    for target in lost:
        tell(f"{target.path.name} cannot be read: {target.error.message}")
    return [target for target in targets if isinstance(target, Subject)]


def _source_answers(
    source: Subject, data: Dataset | None, rows: int, timeout_s: float, tell: Report
) -> Known:
    """Run the source, and measure its noise floor."""
    tell(f"run {source.path.name} on {owner(source.path)}")
    if owner(source.path) == OURSELVES:
        tell(f"no runtime runs {source.path.suffix} files: what dlas reads from it stands for it")
    x, labels = source_rows(source.model, data, rows)
    try:
        reference = native(source, list(x.values()), timeout_s)
    except WorkerFailure as failure:
        raise SourceError(
            f"{source.path.name}: the source itself cannot be run: {failure.reason}"
        ) from failure
    first = reference[0]
    if labels is not None and is_classifier(first) and (hint := background_class(first, labels)):
        tell(hint)
    found = source_floors(source, x, reference, timeout_s)
    return Known(source.path, source.model, x, data, labels, reference, found)


def _titles(targets: Sequence[Subject | Unread]) -> list[str]:
    """What each target is called: its file name where that tells it from the others."""
    names = [target.path.name for target in targets]
    return [n if names.count(n) == 1 else str(t.path) for n, t in zip(names, targets, strict=True)]


def _jobs(
    source: Subject, targets: Sequence[Subject | Unread], titles: Sequence[str], routes: Sequence[RunPath]
) -> list[_Job]:
    """What is to be run; a source compared with itself has nothing to say on its own runtime besides paths."""
    jobs: list[_Job] = []
    for place, (target, title) in enumerate(zip(targets, titles, strict=True)):
        if isinstance(target, Unread):
            continue
        own = [] if routes and target.path == source.path else [None]
        jobs += [_Job(len(jobs) + i, place, target, title, path) for i, path in enumerate([*own, *routes])]
    return jobs


def _in_order_of(
    targets: Sequence[Subject | Unread],
    titles: Sequence[str],
    jobs: Sequence[_Job],
    times: Mapping[int, PathTime],
) -> list[PathResult]:
    """Every row of the report, those of the first target first."""
    found = []
    for place, (target, title) in enumerate(zip(targets, titles, strict=True)):
        if isinstance(target, Unread):
            found.append(unread(title, target.path, target.error))
        found += [
            replace(job.result, time=times.get(job.number))
            for job in jobs
            if job.place == place and job.result is not None
        ]
    return found


def _answer(
    known: Known, jobs: Sequence[_Job], compiler: Compiler, keep: bool, timeout_s: float, tell: Report
) -> None:
    """Run every job: one is compiled while those before it answer."""
    pool = ThreadPoolExecutor(min(_AT_ONCE, usable_cores()))
    shelf = Shelf()
    waiting: list[Future[None]] = []

    def run(job: _Job) -> None:
        try:
            job.result = _run(known, job, timeout_s)
        except DlasError as error:
            job.result = failed(known, job.title, job.name, error)
        if job.lane is not None:
            if keep and job.result.comparison is not None:
                shelf.put(job.lane)
            else:
                job.lane.close()

    try:
        for job in jobs:
            tell(f"run {job.target.path.name} on {job.name}")
            try:
                if job.path is not None:
                    job.lane = compiler.build(job.target.model, job.path)
            except DlasError as error:
                job.result = failed(known, job.title, job.name, error)
                continue
            waiting.append(pool.submit(run, job))
        for future in waiting:
            future.result()
    except BaseException:
        for job in jobs:  # whatever still runs need not be waited for
            if job.lane is not None:
                job.lane.close()
        raise
    finally:
        pool.shutdown(cancel_futures=True)


def _run(known: Known, job: _Job, timeout_s: float) -> PathResult:
    """Answers of one job, judged."""
    target = job.target
    if job.lane is None:
        axes = axes_of(target, known.path)
        fed = fed_rows(target.model, known.x, known.data, axes["inputs"])
        found = native(target, fed, timeout_s)
    else:
        axes = {"inputs": {}, "outputs": {}}
        found = job.lane.outputs(named_rows(target.model, known))
    answers = in_order(found, target.model, known.model)
    row = judged(known, target.model, job.title, job.name, answers, axes["outputs"])
    return replace(row, notes=job.lane.notes if job.lane else ())


def _times(
    known: Known,
    source: Subject,
    jobs: Sequence[_Job],
    compiler: Compiler,
    protocol: Protocol,
    timeout_s: float,
    tell: Report,
) -> dict[int, PathTime]:
    """Times of the paths that gave answers, by number of the job."""
    answered = {str(j.number): j for j in jobs if j.result is not None and j.result.comparison is not None}
    lanes: dict[str, Lane | NativeLane] = {
        name: j.lane if j.lane is not None else NativeLane(j.target, timeout_s)
        for name, j in answered.items()
    }
    if not lanes:
        return {}
    (base_path,) = parse_paths(BASE)
    is_base = [
        str(j.number) for j in jobs if j.path and j.path.key == base_path.key and j.target.path == source.path
    ]
    base = is_base[0] if is_base and is_base[0] in lanes else "base"
    feeds = {name: _one_row(known, j) for name, j in answered.items()}
    own: list[Lane | NativeLane] = [lane for lane in lanes.values() if isinstance(lane, NativeLane)]
    if base == "base":
        try:
            own.append(compiler.build(source.model, base_path))
            lanes[base] = own[-1]
            feeds[base] = named_rows(source.model, known, 1)
        except DlasError as error:
            tell(f"no ratios of times: the source's base path {BASE} cannot be built: {error.message}")
    tell(f"time {len(lanes)} paths in turn")
    try:
        taken, bases, why = time_lanes(lanes, base, feeds, protocol)
    finally:
        for lane in own:
            lane.close()
    order = {job.target.path: i for i, job in enumerate(jobs)}
    paths = {name: (order[j.target.path], j.path) for name, j in answered.items()}
    return {int(name): time for name, time in path_times(taken, bases, why, paths).items()}


def _one_row(known: Known, job: _Job) -> dict[str, np.ndarray]:
    """What a timed run computes on, by input."""
    if job.path is not None:
        return named_rows(job.target.model, known, 1)
    return named_rows(job.target.model, known, 1, axes_of(job.target, known.path)["inputs"])


def _matrix(known: Known, found: Sequence[PathResult]) -> LabelMatrix | None:
    """Label differences between all that gave labels; None where the outputs are no class scores."""
    answers = _answers_of(known)
    if answers is None:
        return None
    alone = len({p.target for p in found}) < 2
    labels = {p.path if alone else f"{p.target} {p.path}": p.labels for p in found if p.labels is not None}
    return LabelMatrix.of({"source": answers.labels, **labels})


def _answers_of(known: Known) -> Answers | None:
    scores = known.answers[0].astype(np.float64)
    if not is_classifier(scores):
        return None
    two = np.partition(scores, -2, axis=1)[:, -2:]
    return Answers(scores.argmax(axis=1), two[:, 1] - two[:, 0], known.labels)


def _versions(subjects: Sequence[Subject], routes: Sequence[RunPath]) -> dict[str, str]:
    """Version of every library that took part."""
    names = {owner(s.path) for s in subjects} | {route.backend.name for route in routes}
    members = {name: member for name, member in backends.members() if name in names}
    wanted = {"dlas", "onnxruntime", *(m.distribution for m in members.values())}
    wanted |= {"tensorflow", "keras"} if "keras" in names else set()
    return {name: version for name in sorted(wanted) if (version := distribution_version(name))}
