"""Run the two sides of a comparison on the same rows: what is fed, by whom it is run, how the outputs pair up."""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DataError, DlasError, ShapeError
from dlas.core.files import scratch_folder
from dlas.core.options import Choice
from dlas.core.worker import Worker, run_in_worker
from dlas.data.dataset import Dataset
from dlas.graph.guard import import_model
from dlas.graph.model import Model
from dlas.graph.signature import adapt_rows, random_array, to_real
from dlas.runtime.native import owner
from dlas.verify.differential import NoiseFloor, floor_between

_MEMORY = 8 * 2**30  # bytes that running a network may take
_WITHOUT_DATA = 32  # random rows: enough to see a difference, no measure of accuracy


@dataclass(frozen=True)
class Subject:
    """A network under comparison: where it lies, what dlas reads from it, and the options that was read with."""

    path: Path
    model: Model
    options: Mapping[str, Any] = field(default_factory=dict)

    @classmethod
    def open(cls, path: Path, architecture: str = "", **options: Any) -> Subject:
        """Read a file with the options of its format's reader; raises ModelError when it cannot be."""
        if architecture:
            options["architecture"] = architecture
        return cls(path, import_model(path, **options), options)


@dataclass(frozen=True)
class Unread:
    """A file that was to be compared and cannot be read: where it lies, and why."""

    path: Path
    error: DlasError


def source_rows(
    model: Model, data: Dataset | None, rows: int
) -> tuple[dict[str, np.ndarray], np.ndarray | None]:
    """Rows for the source, ``(N, ...)`` by input, and their labels; random ones without data.

    Raises:
        DataError: Data for a network with several inputs.
    """
    from dlas.data.preprocess import prepare

    if data is None:
        rng = np.random.default_rng(0)
        leading = [s.shape[0] if s.shape else None for s in model.inputs]
        together = (
            len(set(leading)) == 1 and leading[0] is not None
        )  # states and tables have an axis of their own
        count = min(rows, _WITHOUT_DATA)
        return {
            s.name: random_array((count, *s.bound(1)[1:]) if together else s.bound(1), s.dtype, rng)
            for s in model.inputs
        }, None
    if len(model.inputs) != 1:
        raise DataError(
            f"{model.name} has {len(model.inputs)} inputs; rows of a data set feed one",
            "leave --data out: random inputs are used then",
        )
    few = data.head(rows)
    return {model.inputs[0].name: prepare(few, model)}, few.labels


def fed_rows(
    model: Model,
    x: Mapping[str, np.ndarray],
    data: Dataset | None,
    axes: Mapping[str, tuple[int, ...]] | None = None,
) -> list[np.ndarray]:
    """Rows for a target, in the order of its inputs.

    They are prepared by its own rules where it has some; else the source's rows are adapted, paired by name where
    all names agree and by position otherwise. ``axes`` is how an input's axes are known to be turned; where it says
    nothing, the shapes do.

    Raises:
        ShapeError: They do not fit.
    """
    from dlas.data.preprocess import prepare

    if data is not None and model.preprocessing is not None:
        return [prepare(data.head(len(next(iter(x.values())))), model)]
    names = [spec.name for spec in model.inputs]
    given = [x[name] for name in names] if set(names) == set(x) else list(x.values())
    if len(given) != len(names):
        raise DataError(f"{model.name} has {len(names)} inputs, the source {len(given)}")
    given = [
        turned(rows, (axes or {}).get(spec.name), spec.bound(1))
        for spec, rows in zip(model.inputs, given, strict=True)
    ]
    return [adapt_rows(rows, model, i) for i, rows in enumerate(given)]


def native(subject: Subject, inputs: list[np.ndarray], timeout_s: float) -> list[np.ndarray]:
    """All outputs of a file on the runtime that owns it, as real numbers; raises WorkerFailure."""
    answers = run_in_worker(
        "dlas.runtime.native:answers",
        str(subject.path),
        inputs,
        dict(subject.options),
        timeout_s=timeout_s,
        memory_bytes=_MEMORY,
    )
    return [to_real(y, subject.model, i) for i, y in enumerate(answers)]


def on_backend(model: Model, backend: str, inputs: list[np.ndarray], timeout_s: float) -> list[np.ndarray]:
    """First output of a network of one input on a back end, as a list of one; raises WorkerFailure."""
    if len(inputs) != 1:
        raise DataError(f"{model.name} has {len(inputs)} inputs; back ends are compared on networks with one")
    choice = str(Choice.parse(backend))
    with scratch_folder() as place, Worker(threads=1) as worker:
        (place / "artifact").mkdir()
        (place / "model.onnx").write_bytes(model.to_bytes())
        build = [choice, str(place / "model.onnx"), "host", str(place / "artifact"), 1]
        worker.call("dlas.runtime.session:build", *build, timeout_s=timeout_s)
        opening = [choice, str(place / "artifact"), "host", 1]
        worker.call("dlas.runtime.session:open", *opening, timeout_s=timeout_s)
        found = worker.call("dlas.runtime.session:outputs", inputs[0], timeout_s=timeout_s)
    return [to_real(found, model)]


def in_order(answers: list[np.ndarray], target: Model, source: Model) -> list[np.ndarray]:
    """Outputs of a target in the order of the source's, by name where all names agree."""
    names = [spec.name for spec in target.outputs]
    wanted = [spec.name for spec in source.outputs]
    if len(answers) == len(names) and set(names) == set(wanted):
        return [answers[names.index(name)] for name in wanted]
    return answers


def axes_of(target: Subject, source: Path) -> dict[str, dict[str, tuple[int, ...]]]:
    """Orders of the axes of a tflite file that dlas wrote, against the network it was written from; else nothing.

    A source that is a tflite file has the axes of such files itself.
    """
    from dlas.graph.formats.c_array import flatbuffer
    from dlas.graph.formats.tflite import read_layouts

    if owner(target.path) != "litert" or owner(source) == "litert":
        return {"inputs": {}, "outputs": {}}
    return read_layouts(target.path if target.path.suffix.lower() == ".tflite" else flatbuffer(target.path))


def turned(array: np.ndarray, order: tuple[int, ...] | None, wanted: tuple[int, ...]) -> np.ndarray:
    """``array`` with its axes in ``order`` if that gives the ``wanted`` shape behind the batch, else as it is."""
    if (
        order is None
        or len(order) != array.ndim
        or tuple(array.shape[a] for a in order)[1:] != tuple(wanted)[1:]
    ):
        return array
    return array.transpose(order)


def floors(model: Model, x: Mapping[str, np.ndarray]) -> list[NoiseFloor]:
    """How much each output moves when only the kernels of the reference engine change; raises WorkerFailure."""
    found = run_in_worker(
        "dlas.verify.running:_both_ways", model.to_bytes(), dict(x), timeout_s=300, memory_bytes=_MEMORY
    )
    if isinstance(found, str):
        raise ShapeError(found)
    return [
        floor_between(
            to_real(first, model, i), to_real(second, model, i), "onnxruntime, all optimisations against none"
        )
        for i, (first, second) in enumerate(found)
    ]


def _both_ways(proto: bytes, x: Mapping[str, np.ndarray]) -> list[tuple[np.ndarray, np.ndarray]] | str:
    """In a worker: each output with all optimisations and with none, or why they do not come in rows."""
    import onnx

    from dlas.graph.reference import answers

    model = Model.from_proto(onnx.ModelProto.FromString(proto))
    try:
        first, second = answers(model, x), answers(model, x, level="disable")
    except ShapeError as error:
        return str(error)
    return [(first[spec.name], second[spec.name]) for spec in model.outputs]
