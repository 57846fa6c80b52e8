"""Attack several networks on the same rows, the first one's changed samples on all others as well.

What an attack finds is kept in the cache in blocks of rows, so that a run that was killed goes on where it was, and
another network or attack costs only what is new.
"""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Iterator, Mapping, Sequence
from contextlib import ExitStack, contextmanager
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DataError, DlasError, OptionError, StorageError
from dlas.core.files import scratch_folder
from dlas.core.lazy import distribution_version
from dlas.core.options import options_dict
from dlas.core.provenance import made_with
from dlas.core.statistics import proportion
from dlas.core.worker import WorkerFailure
from dlas.data.dataset import Dataset
from dlas.data.guess import with_guessed_preprocessing
from dlas.data.metrics import hits
from dlas.data.splits import sample
from dlas.verify.attack.attack import EPS, USUAL, Attack, Job, parse_attacks, parse_eps
from dlas.verify.attack.pixels import UNIT, pixels_of
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
from dlas.verify.attack.runtimes import asker_of, named
from dlas.verify.attack.twin import twin_of
from dlas.verify.attack.victim import Victim
from dlas.verify.differential.warm import Compiler
from dlas.verify.paths import RunPath, parse_paths
from dlas.verify.running import Subject, Unread

if TYPE_CHECKING:
    from dlas.verify.mutate.engine import Progress

BLOCK = 100  # rows that are attacked, and kept, together
EXAMPLES = 12  # rows that a report shows
_TOLERANCE = 1e-5  # of a sample's range, by which rounding may carry an attack beyond eps


@dataclass(eq=False)
class _Opened:
    """A network ready to be attacked.

    Attributes:
        name: What it is called.
        path: What runs it.
        key: What the answers of the deployed network depend on.
        size_bytes: Of its file.
        victim: As attacks see it.
        samples: ``(N, ...) float32`` in 0..1, in its own axes.
        right: ``(N,) bool``, rows that it answers rightly.
        flat: How many of those have a gradient that is 0 everywhere.
        notes: What is to be known.
        changed: What white boxes made of all samples, by attack, for the networks behind this one.
        survived: The rows that were right all the same.
    """

    name: str
    path: str
    key: str
    size_bytes: int
    victim: Victim
    samples: np.ndarray
    right: np.ndarray
    flat: int = 0
    notes: list[str] = field(default_factory=list)
    changed: dict[str, np.ndarray] = field(default_factory=dict)
    survived: dict[str, np.ndarray] = field(default_factory=dict)


@dataclass(frozen=True)
class _Bench:
    """What all attacks have in common."""

    data: Dataset
    labels: np.ndarray
    attacks: Sequence[Attack]
    eps: float
    value_range: tuple[float, float]
    threads: int
    timeout_s: float
    compiler: Compiler
    route: RunPath | None
    progress: Progress | None
    cache: Cache
    made_with: Mapping[str, Any]

    def tell(self, text: str) -> None:
        if self.progress is not None:
            self.progress.step(text)

    def advance(self, units: int = 1) -> None:
        if self.progress is not None:
            self.progress.advance(units)

    def kept(self, parts: Sequence[Any], make: Callable[[], dict[str, np.ndarray]]) -> dict[str, np.ndarray]:
        """Arrays from the cache, made unless they are there."""

        def fill(folder: Path) -> None:
            np.savez(folder / "found.npz", **make())  # type: ignore[arg-type]

        folder = self.cache.folder(key_of("attack", list(parts), self.made_with), fill)
        try:
            with np.load(folder / "found.npz") as stored:
                return dict(stored)
        except (OSError, ValueError, EOFError, zipfile.BadZipFile) as error:
            raise StorageError(
                f"the cache {self.cache.root} was removed or changed while it was used: {error}",
                "run the same command again",
            ) from error


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
        bench = _Bench(
            few, labels, chosen, bound, value_range, threads, timeout_s, compiler, routes[0] if routes else None,
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
        pictured=next(reversed(source.changed)) if source is not None else "",
        examples=_examples(bench, source) if source is not None else (),
    )


def _examples(bench: _Bench, source: _Opened) -> tuple[Example, ...]:
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
    bench: _Bench, subjects: Sequence[Subject | Unread], stack: ExitStack
) -> tuple[list[ModelResult], _Opened | None]:
    """Every network in turn, and the first one if others could learn from it."""
    found: list[ModelResult] = []
    first_error: DlasError | None = None
    source: _Opened | None = None
    for place, subject in enumerate(subjects):
        name = named(subject, subjects)
        try:
            if isinstance(subject, Unread):
                raise subject.error
            opened = _open(bench, subject, name, stack)
        except StorageError:
            raise
        except DlasError as error:
            first_error = first_error or error
            found.append(ModelResult(name, reason=error.message))
            bench.advance(len(bench.attacks) + 1)
            continue
        results = [_attacked(bench, opened, attack, keep=place == 0) for attack in bench.attacks]
        if source is not None:
            results += _carried(bench, source, opened)
        if place == 0:
            source = opened
        found.append(_judged(opened, results))
    if source is None and first_error is not None and all(model.reason for model in found):
        raise first_error
    return found, source if source is not None and source.changed else None


def _judged(opened: _Opened, results: list[AttackResult]) -> ModelResult:
    right = int(opened.right.sum())
    notes = list(opened.notes)
    if isinstance(opened.victim.twin, str):
        notes.append(f"black box only: {opened.victim.twin}")
    return ModelResult(
        target=opened.name,
        path=opened.path,
        size_bytes=opened.size_bytes,
        clean=proportion(right, len(opened.right)),
        results=tuple(results),
        worst=worst_case(results),
        warnings=tuple(warnings_on(results, opened.flat, right)),
        notes=tuple(notes),
    )


def _open(bench: _Bench, subject: Subject, name: str, stack: ExitStack) -> _Opened:
    """A network, run once on the rows as they are."""
    bench.tell(f"{name}: rows as they are")
    notes = []
    if subject.model.preprocessing is None:
        model, note = with_guessed_preprocessing(subject.model, bench.data)
        subject = replace(subject, model=model)
        notes.append(note)
    model = subject.model
    pixels, samples = pixels_of(model, bench.data, bench.value_range)
    asker = stack.enter_context(
        asker_of(subject, bench.route, bench.compiler, bench.threads, bench.timeout_s)
    )
    victim = Victim(name, pixels, asker, twin_of(model, pixels))
    parts = [model.hash, asker.path, bench.data.hash, list(bench.value_range), bench.threads]
    key = key_of(*parts)
    scores = bench.kept([key, "clean"], lambda: {"scores": victim.scores(samples)})["scores"]
    right, odd = hits(scores, bench.labels)
    if odd:
        notes.append(odd)
    opened = _Opened(name, asker.path, key, _size(subject.path), victim, samples, right, notes=notes)
    _feel(bench, opened)
    bench.advance()
    return opened


def _feel(bench: _Bench, opened: _Opened) -> None:
    """See whether there is a slope at all; a network without one is left to black boxes."""
    if isinstance(opened.victim.twin, str) or not any(attack.white_box for attack in bench.attacks):
        return
    twin, right = opened.victim.twin, opened.right
    try:
        found = bench.kept(
            [opened.key, "flat"],
            lambda: {"flat": np.array(twin.flat(opened.samples[right], bench.labels[right]))},
        )
        opened.flat = int(found["flat"])
    except StorageError:
        raise
    except DlasError as error:
        opened.victim.twin = error.message


def _attacked(bench: _Bench, opened: _Opened, attack: Attack, keep: bool) -> AttackResult:
    """One attack on one network: white boxes work on every row, others on those that are still right."""
    spelled, kind = attack.spelled(), kind_of(attack)
    if missing := attack.missing():
        bench.advance()
        return AttackResult(spelled, kind, reason=missing)
    every = attack.white_box and keep
    rows = np.arange(len(opened.right)) if every else np.flatnonzero(opened.right)
    survived = opened.right.copy()
    queries, changed = 0, []
    try:
        for start in range(0, len(rows), BLOCK):
            block = rows[start : start + BLOCK]
            bench.tell(f"{opened.name}: {spelled}, {start} of {len(rows)} rows")
            found = _block(bench, opened, attack, block, every)
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
        opened.changed[spelled] = opened.victim.pixels.shared(np.concatenate(changed))
        opened.survived[spelled] = survived
    robust = proportion(int(survived.sum()), len(survived))
    return AttackResult(
        spelled, kind, robust, queries=queries / len(rows) if len(rows) else 0.0, survived=survived
    )


def _block(
    bench: _Bench, opened: _Opened, attack: Attack, block: np.ndarray, keep: bool
) -> dict[str, np.ndarray]:
    """An attack on some rows, from the cache where it was made before."""
    victim = opened.victim

    def make() -> dict[str, np.ndarray]:
        job = Job(opened.samples[block], bench.labels[block], bench.eps, bench.data.rows[block])
        victim.queries = 0
        changed = attack.run(victim, job)
        queries = victim.queries
        _check_change(attack, changed, job)
        found = {"right": hits(victim.scores(changed), job.labels)[0], "queries": np.array(queries)}
        return {**found, "changed": changed} if keep else found

    parts = [opened.key, attack.name, options_dict(attack.options), bench.eps, block.tolist(), keep]
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


def _carried(bench: _Bench, source: _Opened, opened: _Opened) -> list[AttackResult]:
    """What white boxes made of the rows on ``source``, tried on another network."""
    found = []
    for spelled, changed in source.changed.items():
        if source.victim.pixels.space != opened.victim.pixels.space:
            reason = f"{opened.name} takes samples of another kind than {source.name}"
            found.append(AttackResult(spelled, TRANSFER, reason=reason))
            continue
        bench.tell(f"{opened.name}: {spelled} from {source.name}")
        own = opened.victim.pixels.own(changed)

        def make(own: np.ndarray = own) -> dict[str, np.ndarray]:
            return {"right": hits(opened.victim.scores(own), bench.labels)[0]}

        try:
            right = bench.kept([opened.key, "transfer", source.key, spelled, bench.eps], make)["right"]
        except WorkerFailure as failure:
            found.append(AttackResult(spelled, TRANSFER, reason=failure.reason))
            continue
        survived = opened.right & right
        robust = proportion(int(survived.sum()), len(survived))
        found.append(AttackResult(spelled, TRANSFER, robust, queries=1.0, survived=survived))
    return found


def _size(path: Path) -> int:
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )


def _versions(chosen: Sequence[Attack]) -> dict[str, str]:
    names = ["dlas", "torch", "onnxruntime", "ai-edge-litert"]
    names += ["adversarial-robustness-toolbox"] if any(attack.requires for attack in chosen) else []
    return {name: version for name in names if (version := distribution_version(name))}
