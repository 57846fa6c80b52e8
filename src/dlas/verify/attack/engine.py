"""Attack several networks on the same rows, the first one's changed samples on all others as well.

What an attack finds is kept in the cache in blocks of rows, so that a run that was killed goes on where it was, and
another network or attack costs only what is new.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Sequence
from contextlib import ExitStack, contextmanager
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.cache import Cache
from dlas.core.errors import DataError, DlasError, OptionError, StorageError
from dlas.core.files import scratch_folder
from dlas.core.lazy import distribution_version
from dlas.core.options import options_dict
from dlas.core.provenance import made_with
from dlas.core.statistics import proportion
from dlas.core.telling import now_and_then
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.metrics import hits
from dlas.data.splits import sample
from dlas.verify.attack.attack import EPS, USUAL, Attack, Job, parse_attacks, parse_eps
from dlas.verify.attack.opening import Bench, Opened, opened
from dlas.verify.attack.pixels import UNIT
from dlas.verify.attack.report import (
    TRANSFER,
    AttackReport,
    AttackResult,
    Example,
    ModelResult,
    kind_of,
    warnings_on,
    worst_case,
)
from dlas.verify.attack.runtimes import named
from dlas.verify.differential.warm import Compiler
from dlas.verify.paths import parse_paths
from dlas.verify.running import Subject, Unread

if TYPE_CHECKING:
    from dlas.verify.mutate.engine import Progress

BLOCK = 100  # rows that are attacked, and kept, together
EXAMPLES = 12  # rows that a report shows
_TOLERANCE = 1e-5  # of a sample's range, by which rounding may carry an attack beyond eps


def attack_networks(
    subjects: Sequence[Subject | Unread],
    data: Dataset,
    *,
    attacks: str | Sequence[str] = USUAL,
    eps: float | str = EPS,
    rows: int = 200,
    path: str = "",
    value_range: tuple[float, float] = UNIT,
    seed: int = 0,
    threads: int = 1,
    timeout_s: float = 300.0,
    progress: Progress | None = None,
) -> AttackReport:
    """Accuracy of networks on rows as they are, and as attacks change them.

    Args:
        subjects: Networks; what white boxes find on the first one is tried on all others (transfer).
        data: Labelled rows: images, or arrays within ``value_range``.
        attacks: Names with options, as :func:`dlas.verify.attack.attack.parse_attacks` reads them.
        eps: Largest change of a number of a sample, as a fraction of its range: ``8/255`` of a pixel.
        rows: Rows to use at most; fewer than there are come as a sample balanced over the classes.
        path: What runs the networks, such as ``tvm:O2``; by default the runtime that owns the file.
        value_range: For arrays that are no images: the values that 0 and 1 stand for.
        seed: For every attack that draws and has none of its own.
        threads: Of torch, and of the runtime that owns the file; answers repeat for one number of them.
        timeout_s: Longest time for compiling, and for 100 rows.
        progress: Told what is being done.

    Raises:
        DataError: The rows have no labels, or fit none of the networks.
        OptionError: A value that is not accepted.
        DlasError: None of the networks can be attacked; says why the first one cannot.
    """
    chosen = parse_attacks(attacks, seed=seed)
    bound = parse_eps(eps)
    few, labels = _rows(data, rows)
    routes = parse_paths(path) if path else []
    if len(routes) > 1:
        raise OptionError("path", path, "one back end: every network is attacked where it runs")
    if progress is not None:
        progress.start(len(subjects) * (len(chosen) + 1))
    with ExitStack() as stack:
        folder = stack.enter_context(scratch_folder())
        compiler = stack.enter_context(Compiler(folder, timeout_s))
        stack.enter_context(_threads(threads))
        bench = Bench(
            data, few, labels, chosen, bound, value_range, threads, timeout_s, compiler, routes[0] if routes else None,
            progress, Cache(), made_with(),
        )  # fmt: skip
        found, source = _all(bench, subjects, stack)
    return AttackReport(
        data=data.name,
        rows=len(few),
        eps=bound,
        value_range=value_range,
        attacks=tuple(attack.spelled() for attack in chosen),
        source=source.name if source is not None and len(found) > 1 else "",
        models=tuple(found),
        versions=_versions(chosen),
        settings={attack.spelled(): options_dict(attack.options) for attack in chosen},
        pictured=next(reversed(source.changed)) if source is not None else "",
        examples=_examples(bench, source) if source is not None else (),
    )


def _examples(bench: Bench, source: Opened) -> tuple[Example, ...]:
    """Rows that the last white box brought down on the first network."""
    spelled = next(reversed(source.changed))
    lost = np.flatnonzero(source.right & ~source.survived[spelled])[:EXAMPLES]
    before = source.victim.pixels.shared(source.samples)
    classes, labels = bench.data.classes, bench.labels
    return tuple(
        Example(
            int(bench.data.rows[i]),
            classes[labels[i]] if labels[i] < len(classes) else str(labels[i]),
            before[i],
            source.changed[spelled][i],
        )
        for i in lost
    )


@contextmanager
def _threads(count: int) -> Iterator[None]:
    import torch

    if count < 1:
        raise OptionError("threads", count, "a number >= 1")
    before = torch.get_num_threads()
    torch.set_num_threads(count)
    try:
        yield
    finally:
        torch.set_num_threads(before)


def _rows(data: Dataset, rows: int) -> tuple[Dataset, np.ndarray]:
    if rows < 1:
        raise OptionError("rows", rows, "a number >= 1")
    if data.labels is None:
        raise DataError(f"{data.name} has no labels", "an attack needs to know which answers are right")
    few = sample(data, rows, seed=0) if rows < len(data) else data
    assert few.labels is not None
    return few, np.asarray(few.labels, np.int64)


def _all(
    bench: Bench, subjects: Sequence[Subject | Unread], stack: ExitStack
) -> tuple[list[ModelResult], Opened | None]:
    """Every network in turn, and the first one if others could learn from it."""
    found: list[ModelResult] = []
    first_error: DlasError | None = None
    source: Opened | None = None
    for place, subject in enumerate(subjects):
        name = named(subject, subjects)
        try:
            if isinstance(subject, Unread):
                raise subject.error
            one = opened(bench, subject, name, stack)
        except StorageError:
            raise
        except DlasError as error:
            first_error = first_error or error
            found.append(ModelResult(name, reason=error.message))
            bench.advance(len(bench.attacks) + 1)
            continue
        results = [_attacked(bench, one, attack, keep=place == 0) for attack in bench.attacks]
        if source is not None:
            results += _carried(bench, source, one)
        if place == 0:
            source = one
        found.append(_judged(one, results))
    if source is None and first_error is not None and all(model.reason for model in found):
        raise first_error
    return found, source if source is not None and source.changed else None


def _judged(one: Opened, results: list[AttackResult]) -> ModelResult:
    right = int(one.right.sum())
    notes = list(one.notes)
    if isinstance(one.victim.twin, str):
        notes.append(f"black box only: {one.victim.twin}")
    return ModelResult(
        target=one.name,
        path=one.path,
        size_bytes=one.size_bytes,
        clean=proportion(right, len(one.right)),
        results=tuple(results),
        worst=worst_case(results),
        warnings=tuple(warnings_on(results, one.flat, right)),
        notes=tuple(notes),
    )


def _attacked(bench: Bench, one: Opened, attack: Attack, keep: bool) -> AttackResult:
    """One attack on one network: white boxes work on every row, others on those that are still right."""
    spelled, kind = attack.spelled(), kind_of(attack)
    if missing := attack.missing():
        bench.advance()
        return AttackResult(spelled, kind, reason=missing)
    every = attack.white_box and keep
    rows = np.arange(len(one.right)) if every else np.flatnonzero(one.right)
    survived = one.right.copy()
    queries, changed = 0, []
    try:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            bench.tell(f"{one.name}: {spelled}, {start} of {len(rows)} rows")
            one.victim.asked = _asked(bench, f"{one.name}: {spelled}, {start} of {len(rows)} rows")
            found = _block(bench, one, attack, block, every)
            survived[block] &= found["right"]
            queries += int(found["queries"])
            if every:
                changed.append(found["changed"])
    except StorageError:
        raise
    except DlasError as error:
        return AttackResult(spelled, kind, reason=error.message)
    finally:
        bench.advance()
    if changed:
        one.changed[spelled] = one.victim.pixels.shared(np.concatenate(changed))
        one.survived[spelled] = survived
    robust = proportion(int(survived.sum()), len(survived))
    return AttackResult(
        spelled, kind, robust, queries=queries / len(rows) if len(rows) else 0.0, survived=survived
    )


def _asked(bench: Bench, what: str) -> Callable[[int], None]:
    """Progress of an attack that asks for many scores: a line once in a while."""
    tell = now_and_then(bench.tell)
    return lambda queries: tell(f"{what}, {queries} queries")


def _block(bench: Bench, one: Opened, attack: Attack, block: np.ndarray, keep: bool) -> dict[str, np.ndarray]:
    """An attack on some rows, from the cache where it was made before."""
    victim = one.victim

    def make() -> dict[str, np.ndarray]:
        job = Job(one.samples[block], bench.labels[block], bench.eps, bench.data.rows[block])
        victim.queries = 0
        changed = attack.run(victim, job)
        queries = victim.queries
        _check_change(attack, changed, job)
        found = {"right": hits(victim.scores(changed), job.labels)[0], "queries": np.array(queries)}
        return {**found, "changed": changed} if keep else found

    parts = [one.key, attack.name, options_dict(attack.options), bench.eps, block.tolist(), keep]
    return bench.kept(parts, make)


def _check_change(attack: Attack, changed: np.ndarray, job: Job) -> None:
    """Refuse what an attack may not do: a result beyond eps would be a figure of something else."""
    far = float(np.abs(changed - job.samples).max(initial=0))
    fits = changed.shape == job.samples.shape and changed.dtype == np.float32
    if not fits or not far <= job.eps + _TOLERANCE or changed.min() < 0 or changed.max() > 1:
        raise DlasError(
            f"{attack.name} gives {changed.dtype}{list(changed.shape)} changed by {far:g}, beyond eps = {job.eps:g}",
            "this is a defect of the attack",
        )


def _carried(bench: Bench, source: Opened, one: Opened) -> list[AttackResult]:
    """What white boxes made of the rows on ``source``, tried on another network."""
    found = []
    for spelled, changed in source.changed.items():
        if source.victim.pixels.space != one.victim.pixels.space:
            reason = f"{one.name} takes samples of another kind than {source.name}"
            found.append(AttackResult(spelled, TRANSFER, reason=reason))
            continue
        bench.tell(f"{one.name}: {spelled} from {source.name}")
        own = one.victim.pixels.own(changed)

        def make(own: np.ndarray = own) -> dict[str, np.ndarray]:
            return {"right": hits(one.victim.scores(own), bench.labels)[0]}

        try:
            right = bench.kept([one.key, "transfer", source.key, spelled, bench.eps], make)["right"]
        except WorkerFailure as failure:
            found.append(AttackResult(spelled, TRANSFER, reason=failure.reason))
            continue
        survived = one.right & right
        robust = proportion(int(survived.sum()), len(survived))
        found.append(AttackResult(spelled, TRANSFER, robust, queries=1.0, survived=survived))
    return found


def _versions(chosen: Sequence[Attack]) -> dict[str, str]:
    names = ["dlas", "torch", "onnxruntime", "ai-edge-litert"]
    names += ["adversarial-robustness-toolbox"] if any(attack.requires for attack in chosen) else []
    return {name: version for name in names if (version := distribution_version(name))}
