"""Networks ready to be attacked, and what all attacks of a run have in common."""

from __future__ import annotations

import zipfile
from collections.abc import Callable, Mapping, Sequence
from contextlib import ExitStack
from dataclasses import dataclass, field, replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

import numpy as np

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError, StorageError
from dlas.data.dataset import Dataset
from dlas.data.guess import with_guessed_preprocessing
from dlas.data.metrics import hits
from dlas.verify.attack.attack import Attack
from dlas.verify.attack.pixels import pixels_of
from dlas.verify.attack.runtimes import asker_of
from dlas.verify.attack.twin import twin_of
from dlas.verify.attack.victim import Victim
from dlas.verify.differential.warm import Compiler
from dlas.verify.paths import RunPath
from dlas.verify.running import Subject

if TYPE_CHECKING:
    from dlas.verify.mutate.engine import Progress


@dataclass(eq=False)
class Opened:
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
class Bench:
    """What all attacks have in common."""

    whole: Dataset
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
        """What is being done now."""
        if self.progress is not None:
            self.progress.step(text)

    def advance(self, units: int = 1) -> None:
        """So many networks or attacks are done."""
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


def opened(bench: Bench, subject: Subject, name: str, stack: ExitStack) -> Opened:
    """A network, run once on the rows as they are."""
    bench.tell(f"{name}: rows as they are")
    notes = []
    if subject.model.preprocessing is None:
        model, note = with_guessed_preprocessing(subject.model, bench.whole)
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
    found = Opened(name, asker.path, key, _size(subject.path), victim, samples, right, notes=notes)
    _feel(bench, found)
    bench.advance()
    return found


def _feel(bench: Bench, found: Opened) -> None:
    """See whether there is a slope at all; a network without one is left to black boxes."""
    if isinstance(found.victim.twin, str) or not any(attack.white_box for attack in bench.attacks):
        return
    twin, right = found.victim.twin, found.right
    if not right.any():
        return
    try:
        kept = bench.kept(
            [found.key, "flat"],
            lambda: {"flat": np.array(twin.flat(found.samples[right], bench.labels[right]))},
        )
        found.flat = int(kept["flat"])
    except StorageError:
        raise
    except DlasError as error:
        found.victim.twin = error.message


def _size(path: Path) -> int:
    return (
        sum(p.stat().st_size for p in path.rglob("*") if p.is_file())
        if path.is_dir()
        else path.stat().st_size
    )
