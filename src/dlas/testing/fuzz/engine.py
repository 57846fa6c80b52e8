"""Runs mutations in a worker process that may die, and says what became of each.

Number ``n`` of a target is always the same mutation of the same seed, so a run can be divided, stopped and resumed,
and a finding repeated from its two words: target and number.
"""

from __future__ import annotations

import contextlib
import faulthandler
import json
import random
import tempfile
import time
import traceback
import warnings
from collections import Counter
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import asdict, dataclass, field
from pathlib import Path
from types import TracebackType
from typing import Any

from dlas.core.errors import DlasError
from dlas.core.files import atomic_folder
from dlas.core.worker import Worker, WorkerFailure, child_memory, reset_peak
from dlas.testing.fuzz import corpus, probes
from dlas.testing.fuzz.mutate import mutate

SECONDS = 20
GROWTH_BYTES = 2 * 2**30
_KILL_BYTES = 4 * 2**30
_LONGEST_MESSAGE = 4000
# Their native libraries die of damaged files; dlas opens these in a worker process only, where that is one error.
_GUARDED = frozenset({"keras"})


@dataclass(frozen=True)
class Finding:
    """A mutation that broke a promise.

    Attributes:
        target: What read the file.
        number: Which mutation.
        seed: Name of the sound file it was made from.
        kind: ``exception``, ``crash``, ``slow``, ``memory``, ``message`` or ``wrong``.
        text: What happened, with the place in the code where one is known; equal for equal defects.
    """

    target: str
    number: int
    seed: str
    kind: str
    text: str


@dataclass
class Tally:
    """Counts of a run.

    ``compared`` networks gave the same answers as their own runtime, which died of ``runtime_deaths`` files.
    """

    mutations: int = 0
    refused: int = 0
    loaded: int = 0
    compared: int = 0
    runtime_deaths: int = 0
    slowest_s: float = 0.0
    growth_bytes: int = 0
    findings: list[Finding] = field(default_factory=list)

    def add(self, other: Tally) -> None:
        """Take over the counts of another run."""
        for name in ("mutations", "refused", "loaded", "compared", "runtime_deaths"):
            setattr(self, name, getattr(self, name) + getattr(other, name))
        self.slowest_s = max(self.slowest_s, other.slowest_s)
        self.growth_bytes = max(self.growth_bytes, other.growth_bytes)
        self.findings += other.findings

    def to_dict(self) -> dict[str, Any]:
        """Plain values."""
        return asdict(self)

    @classmethod
    def from_dict(cls, fields: Mapping[str, Any]) -> Tally:
        """Back from :meth:`to_dict`."""
        return cls(**{**fields, "findings": [Finding(**f) for f in fields["findings"]]})


class Fuzzer:
    """A corpus and the worker that reads its mutations; a context manager.

    Args:
        real: Folder of real model files to add to the corpus.
        keep: Folder that files which broke a promise are written to; None keeps none.
        targets: Only these; empty for all.
        corpus: Folder to keep the sound files in, so that a later run mutates the same ones.
    """

    def __init__(
        self,
        *,
        real: Path | None = None,
        keep: Path | None = None,
        targets: Sequence[str] = (),
        corpus: Path | None = None,
    ) -> None:
        self._stack = contextlib.ExitStack()
        self.folder = Path(self._stack.enter_context(tempfile.TemporaryDirectory(prefix="dlas-fuzz-")))
        self._keep = keep
        (self.folder / "work").mkdir()
        self.corpus = corpus or self.folder / "corpus"
        if not self.corpus.is_dir():
            write_corpus(self.corpus, real)
        self.seeds: dict[str, list[str]] = {}
        for place in sorted(self.corpus.iterdir()):
            target, _, name = place.name.partition("@")
            if not targets or target in targets:
                self.seeds.setdefault(target, []).append(name)
        self._worker: Worker | None = None

    def __enter__(self) -> Fuzzer:
        return self

    def __exit__(
        self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None
    ) -> None:
        if self._worker is not None:
            self._worker.close()
        self._stack.close()

    def run(self, target: str, numbers: Iterable[int], *, batch: int = 100) -> Tally:
        """Read mutations ``numbers`` of ``target``; the worker is replaced when one of them kills it."""
        tally = Tally()
        rest = list(numbers)
        while rest:
            part, rest = rest[:batch], rest[batch:]
            while part:
                found, part = self._part(target, part)
                tally.add(found)
        if self._keep is not None:
            for finding in tally.findings:
                self._keep.mkdir(parents=True, exist_ok=True)
                name, data = self.mutant(target, finding.number)
                place = self._keep / f"{target}-{finding.number}-{finding.kind}{Path(name).suffix}"
                place.write_bytes(data)
        return tally

    def mutant(self, target: str, number: int) -> tuple[str, bytes]:
        """Seed and content of one mutation."""
        return mutant(self.corpus, target, self.seeds[target], number)

    def _part(self, target: str, numbers: list[int]) -> tuple[Tally, list[int]]:
        if self._worker is None or not self._worker.alive:
            if self._worker is not None:
                self._worker.close()
            self._worker = Worker(threads=1, memory_bytes=_KILL_BYTES, name="fuzz worker")
        try:
            answer = self._worker.call(
                "dlas.testing.fuzz.engine:serve", str(self.folder), str(self.corpus), target, self.seeds[target],
                numbers,
                timeout_s=60 + len(numbers) * SECONDS,
            )  # fmt: skip
            return Tally.from_dict(answer), []
        except WorkerFailure as failure:
            return self._death(target, numbers, failure)

    def _death(self, target: str, numbers: list[int], failure: WorkerFailure) -> tuple[Tally, list[int]]:
        """Counts up to the mutation that killed the worker, and the numbers after it."""
        state = self.folder / "work" / "state.json"
        if not state.exists():
            raise failure
        facts = json.loads(state.read_text())
        state.unlink()
        tally = Tally.from_dict(facts["tally"])
        number, phase = facts["number"], facts["phase"]
        tally.mutations += 1
        if phase == "own" or target in _GUARDED:
            tally.runtime_deaths += 1  # the file kills the library it was made for
            tally.loaded += phase == "own"
        else:
            kind = "memory" if "of memory" in failure.reason else "crash"
            if "Timeout (" in failure.stderr_tail:
                kind = "slow"
            text = f"{phase}: {failure.reason}; {_place_in_dump(failure.stderr_tail)}"
            tally.findings.append(Finding(target, number, self.mutant(target, number)[0], kind, text))
        return tally, numbers[numbers.index(number) + 1 :]


def write_corpus(folder: Path, real: Path | None) -> None:
    """Write the sound files of all targets into ``folder``, which appears when they are all there."""
    with atomic_folder(folder) as place, tempfile.TemporaryDirectory(prefix="dlas-fuzz-") as made:
        for number, seed in enumerate(corpus.make(Path(made), real)):
            (place / f"{seed.target}@{number:02}-{seed.name}{seed.suffix}").write_bytes(seed.data)


def mutant(folder: Path, target: str, seeds: Sequence[str], number: int) -> tuple[str, bytes]:
    """Seed and content of mutation ``number``."""
    name = seeds[number % len(seeds)]
    rng = random.Random(f"{target} {number}")
    return name, mutate((folder / f"{target}@{name}").read_bytes(), rng)


def serve(folder: str, sound: str, target: str, seeds: list[str], numbers: list[int]) -> dict[str, Any]:
    """In the worker: read mutations one after the other."""
    warnings.simplefilter("ignore")
    base = Path(folder)
    tally = Tally()
    for number in numbers:
        name, data = mutant(Path(sound), target, seeds, number)
        path = base / "work" / f"m{Path(name).suffix}"
        path.write_bytes(data)
        mark = _Marker(base / "work" / "state.json", tally, number)
        mark("load")
        faulthandler.dump_traceback_later(SECONDS, exit=True)
        finding = _one(target, path, tally, mark)
        faulthandler.cancel_dump_traceback_later()
        tally.mutations += 1
        if finding is not None:
            tally.findings.append(Finding(target, number, name, *finding))
    return tally.to_dict()


class _Marker:
    """Writes down where the worker is, for the case that it dies."""

    def __init__(self, path: Path, tally: Tally, number: int) -> None:
        self._path, self._tally, self._number = path, tally, number

    def __call__(self, phase: str) -> None:
        facts = {"number": self._number, "phase": phase, "tally": self._tally.to_dict()}
        self._path.write_text(json.dumps(facts))


def _one(target: str, path: Path, tally: Tally, mark: _Marker) -> tuple[str, str] | None:
    reset_peak()
    before = child_memory()["rss_bytes"]
    start = time.monotonic()
    try:
        model = probes.read(target, path)
    except DlasError as error:
        tally.refused += 1
        if len(str(error)) > _LONGEST_MESSAGE or error.exit_code != 2:
            return "message", f"{type(error).__name__} of {len(str(error))} characters"
        return None
    except BaseException as error:
        return "exception", f"{type(error).__name__} at {place_of(error)}: {str(error)[:120]}"
    finally:
        growth = child_memory()["peak_rss_bytes"] - before
        tally.slowest_s = max(tally.slowest_s, time.monotonic() - start)
        tally.growth_bytes = max(tally.growth_bytes, growth)
    if growth > GROWTH_BYTES:
        return "memory", f"grew by {growth / 2**30:.1f} GiB"
    tally.loaded += 1
    if model is None:
        return None
    try:
        tally.compared += probes.compare(target, path, model, mark)
    except probes.WrongAnswerError as error:
        return "wrong", str(error)
    except BaseException as error:
        return "exception", f"comparing: {type(error).__name__} at {place_of(error)}: {str(error)[:120]}"
    return None


def place_of(error: BaseException) -> str:
    """The innermost line of dlas, and where the error came from."""
    frames = traceback.extract_tb(error.__traceback__)
    ours = [f for f in frames if "/dlas/" in f.filename and "/testing/" not in f.filename]
    last = frames[-1] if frames else None
    words = [f"{'/'.join(Path(f.filename).parts[-2:])}:{f.lineno}" for f in (*ours[-1:], last) if f]
    return " from ".join(dict.fromkeys(words))


def _place_in_dump(tail: str) -> str:
    lines = [line.strip() for line in tail.splitlines() if 'File "' in line]
    return " < ".join(line.partition('File "')[2].rpartition("/")[2] for line in lines[:3])


def table(tallies: Mapping[str, Tally]) -> str:
    """One line per target and one per distinct defect."""
    lines = [
        f"{'target':10}{'mutations':>10}{'refused':>10}{'loaded':>8}{'compared':>10}{'runtime died':>14}"
        f"{'slowest s':>11}{'growth MiB':>12}{'findings':>10}"
    ]
    for name, t in tallies.items():
        lines.append(
            f"{name:10}{t.mutations:10}{t.refused:10}{t.loaded:8}{t.compared:10}{t.runtime_deaths:14}"
            f"{t.slowest_s:11.2f}{t.growth_bytes / 2**20:12.0f}{len(t.findings):10}"
        )
    counts: Counter[tuple[str, str, str]] = Counter()
    first: dict[tuple[str, str, str], int] = {}
    for t in tallies.values():
        for finding in t.findings:
            key = (finding.target, finding.kind, finding.text)
            counts[key] += 1
            first.setdefault(key, finding.number)
    for (target, kind, text), count in counts.most_common():
        lines.append(f"{count:5} x {target} {kind} (first: number {first[target, kind, text]}): {text}")
    return "\n".join(lines)
