"""The steps of a study with their cache: the same thing is never imported, compressed, judged or compiled twice.

The key of a step is the hash of its input, its options in full, the versions of the libraries, the code of dlas and
of installed plug-ins, and the processor's features (engines pick kernels and compilers instructions by them).
A pipeline of several methods is cached step by step, so ``channel + int8`` starts from the stored ``channel``.
"""

from __future__ import annotations

import contextlib
import functools
import json
import math
import os
from collections.abc import Iterator, Mapping
from dataclasses import asdict, dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.compress.method import methods
from dlas.core.cache import Cache, key_of
from dlas.core.environment import cpu_model
from dlas.core.errors import DlasError, StorageError
from dlas.core.files import file_hash
from dlas.core.lazy import distribution_version
from dlas.core.options import Choice, options_dict
from dlas.core.paths import resolve
from dlas.core.provenance import made_with
from dlas.data.dataset import loaders
from dlas.data.find import locate
from dlas.explore.executor import Executor
from dlas.explore.progress import Progress
from dlas.explore.space import Pipeline, Stack
from dlas.explore.spec import StudySpec
from dlas.graph.format import companions
from dlas.runtime.backend import backends
from dlas.verify.differential import NoiseFloor, floor_between

STEPS = "dlas.explore.steps"
HOLDOUT = 0.2  # share of a data set without a calibration set of its own that compression may look at


@dataclass(frozen=True)
class Product:
    """What a step made: its folder in the cache, its key and the facts it wrote."""

    folder: Path
    key: str
    facts: Mapping[str, Any]

    def __str__(self) -> str:
        return str(self.folder)


class Workbench:
    """Makes and remembers the products of one study."""

    def __init__(self, spec: StudySpec, executor: Executor, cache: Cache, progress: Progress) -> None:
        self.spec = spec
        self.executor = executor
        self.cache = cache
        self.progress = progress
        self.notes: list[str] = []
        self._hashes: dict[Path, str] = {}  # of this run only: the user may change a file before the next one
        self._versions = made_with()

    def make(self, what: str, step: str, inputs: Any, *args: Any) -> Product:
        """Run ``steps.<step>`` into the folder of its key, unless it is there; ``what`` is for the progress bar."""
        key = key_of(step, inputs, self._versions)

        def fill(folder: Path) -> None:
            self.progress.step(what)
            placed = [str(folder) if a is FOLDER else a for a in args]
            result = self.executor.call(step if ":" in step else f"{STEPS}:{step}", *placed)
            if result is not None:
                (folder / "facts.json").write_text(json.dumps(result))

        folder = self.cache.folder(key, fill)
        return Product(folder, key, self._json(folder, "facts.json") or {})

    def _json(self, folder: Path, name: str) -> Any:
        """What a file of a product says; None where it has no such file."""
        with self._reading():
            return json.loads((folder / name).read_text()) if name in os.listdir(folder) else None

    @contextlib.contextmanager
    def _reading(self) -> Iterator[None]:
        """Say in one line that somebody removed or changed the cache between making a product and reading it."""
        try:
            yield
        except (OSError, ValueError, EOFError) as error:
            raise StorageError(
                f"the cache {self.cache.root} was removed or changed while it was used: {error}",
                "run the same command again",
            ) from error

    @functools.cached_property
    def network(self) -> Product:
        """The network as imported, with the preprocessing it is judged under."""
        model, path = self.spec.model, self.model_path
        files = [self._hash(f) for f in (path, *companions(path))]
        # The file's name is in what is made: as the network's name and as its source.
        inputs = [path.name, files, model.architecture, model.name, dict(self.spec.preprocessing)]
        made = self.make(
            f"import {path.name}",
            "import_network",
            inputs,
            str(path),
            FOLDER,
            model.architecture,
            model.name or path.stem,
            dict(self.spec.preprocessing),
        )
        if made.facts["preprocessing"] is None and self.spec.data.path:
            data = self.judged
            made = self.make(
                "find the preprocessing",
                "guess_preprocessing",
                [made.key, _content(data)],
                str(made),
                FOLDER,
                data,
            )
            self.notes.append(made.facts["note"])
        return made

    @property
    def model_path(self) -> Path:
        """Where the model file lies."""
        from dlas.models.pretrained import pretrained_path

        if not self.spec.model.path:
            raise DlasError("no model is named", "give [model] path in the stack file, or a model file")
        return pretrained_path(self.spec.model.path) or resolve(
            self.spec.model.path, "model", self.spec.folder
        )

    @property
    def judged(self) -> dict[str, Any]:
        """The rows the network is judged on."""
        data = self.spec.data
        return {**self._source(data.path, data.split, "judge"), "rows": data.rows}

    @property
    def calibration(self) -> dict[str, Any]:
        """The rows compression may look at; empty when there is no data set."""
        if not self.spec.data.path:
            return {}
        return {**self._source(*self._calibration, "calibration"), "rows": self.spec.data.calibration_rows}

    @property
    def _calibration(self) -> tuple[str, str]:
        """Path and split of the calibration rows."""
        data = self.spec.data
        return data.calibration or data.path, data.calibration_split or (
            "" if data.calibration else data.split
        )

    @property
    def _overlap(self) -> bool:
        """Whether rows to calibrate with and rows to judge on come out of one pot: then each gets a part of it."""
        data = self.spec.data
        path, split = self._calibration
        return self._place(path, split) == self._place(data.path, data.split) and (
            split == data.split or "" in (split, data.split)
        )

    def _place(self, path: str, split: str) -> Path:
        known = path in ("", *loaders.names())
        return Path(path) if known else locate(path, split, self.spec.folder)

    def _source(self, path: str, split: str, part: str) -> dict[str, Any]:
        place, overlap = self._place(path, split), self._overlap
        return {
            "path": path and str(place),
            "sha256": self._hash(place) if path else "",
            "split": split,
            "label_offset": self.spec.data.label_offset,
            "part": part if overlap else "",
            "holdout": HOLDOUT if overlap else 0.0,
        }

    def _hash(self, path: Path) -> str:
        if path not in self._hashes:
            self._hashes[path] = file_hash(path)
        return self._hashes[path]

    @functools.cached_property
    def rows(self) -> Product:
        """The judged rows in the network's input form."""
        network = self.network
        return self.make(
            "prepare the rows",
            "prepare_rows",
            [network.facts["hash"], _content(self.judged)],
            str(network),
            FOLDER,
            self.judged,
        )

    @functools.cached_property
    def check_rows(self) -> np.ndarray:
        """The rows each compiled network is checked on, ``(n, ...)``."""
        with self._reading():
            return first_rows(self.rows.folder / "x.npy", self.spec.data.check_rows)

    @functools.cached_property
    def labels(self) -> np.ndarray | None:
        """``(N,) int64``, or None."""
        if not self.rows.facts["labelled"]:
            return None
        with self._reading():
            return np.load(self.rows.folder / "labels.npy")

    def compressed(self, pipeline: Pipeline) -> Product:
        """The network after a pipeline; every prefix is cached."""
        made, rows = self.network, _content(self.calibration)
        for count, choice in enumerate(pipeline.steps, 1):
            member = methods.get(choice.name)(**choice.as_dict())
            options = options_dict(member.options)
            # What was measured for a network holds on this processor.
            more = [*member.depends_on(), *([cpu_model()] if member.takes_costs else [])]
            made = self.make(
                f"compress: {Pipeline(pipeline.steps[:count])}",
                "compress_network",
                [made.facts["hash"], self.network.facts["hash"], choice.name, options, rows, *more],
                str(made),
                str(self.network),
                FOLDER,
                choice.name,
                options,
                self.calibration,
            )
        return made

    def changes(self, product: Product) -> list[dict[str, Any]]:
        """What compression changed, layer by layer."""
        return self._json(product.folder, "changes.json") or []

    def scores(self, product: Product, *, level: str = "all", count: int = 0) -> np.ndarray:
        """Answers of the reference engine on the judged rows."""
        what = f"check rows, optimisation {level}" if count else "judge on the data"
        made = self.make(
            what,
            "reference_scores",
            [product.facts["hash"], self.rows.key, level, count],
            str(product),
            FOLDER,
            str(self.rows),
            level,
            count,
            2,
        )
        with self._reading():
            return np.load(made.folder / "scores.npy")

    def robustness(self, product: Product) -> Mapping[str, Any]:
        """What the attacks of the stack file leave of a network's accuracy; see ``steps.attack_network``."""
        attack = asdict(self.spec.attack)
        return self.make(
            "attack",
            "attack_network",
            [product.facts["hash"], self.network.facts["hash"], _content(self.judged), attack],
            str(product),
            str(self.network),
            self.judged,
            attack,
        ).facts

    def floor(self, product: Product) -> NoiseFloor:
        """Noise floor of a network: the reference with and without its optimised kernels."""
        count = self.spec.data.check_rows
        first = self.scores(product, count=count)
        second = self.scores(product, level="disable", count=count)
        return floor_between(first, second, "onnxruntime, all optimisations against none")

    def artifact(self, product: Product, backend: Choice, target: Choice) -> Product:
        """The compiled network."""
        return self.make(
            f"compile for {backend}",
            "dlas.runtime.session:build",
            [product.facts["hash"], str(backend), str(target), _version(backend)],
            str(backend),
            str(product.folder / "model.onnx"),
            str(target),
            FOLDER,
        )

    def point_key(self, stack: Stack, machine: str) -> str:
        """Key of a point: everything its figures depend on, the baseline of its speed-up included."""
        return key_of(
            stack.choices(),
            self.spec.space.baseline.choices(),
            self.network.facts["hash"],
            _content(self.judged),
            _content(self.calibration),
            self.spec.data.check_rows,
            self.spec.study.timing,
            asdict(self.spec.attack),
            _version(stack.backend),
            self._versions,
            machine,
        )


def _content(rows: Mapping[str, Any]) -> dict[str, Any]:
    """What a result depends on of rows: not where the file lies."""
    return {**rows, "path": Path(rows["path"]).name} if rows else {}


class _Folder:
    """Stands for the step's own folder in a list of arguments."""


FOLDER = _Folder()


def first_rows(path: Path, count: int) -> np.ndarray:
    """The first rows of a ``.npy`` file, read and not mapped: a mapped file that shrinks kills its reader."""
    with path.open("rb") as file:
        np.lib.format.read_magic(file)
        shape, by_column, dtype = np.lib.format.read_array_header_1_0(file)
        rows = min(count, shape[0])
        if by_column:
            return np.load(path)[:rows]
        return np.fromfile(file, dtype, rows * math.prod(shape[1:])).reshape(rows, *shape[1:])


def _version(backend: Choice) -> str:
    """Version of the library behind a back end; that of a plug-in is not among those dlas knows by itself."""
    return distribution_version(backends.get(backend.name).distribution)
