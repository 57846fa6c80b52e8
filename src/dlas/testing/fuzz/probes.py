"""What is done with a mutated file: it is read as its kind, and a network that comes out is held against its runtime.

A probe either raises a :class:`~dlas.core.errors.DlasError` (the file was refused) or returns; anything else that
comes out of it is a finding.
"""

from __future__ import annotations

import json
import math
from collections.abc import Callable, Mapping
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError, UnknownNameError
from dlas.graph.format import formats, load_model
from dlas.graph.model import Model, TensorSpec

LARGEST_INPUT = 2**20  # elements; networks that want more are not run
LARGEST_WORK = 2**24  # elements of all tensors with a known shape together
_TOLERANCE = 1e-3
_FLOOR = 1e-6  # absolute: answers this small are all rounding
_STEPS = 3  # what rounding may move a quantised output by, beside what the runtime's own kernels differ by
_QUANTISED_TOLERANCE = (
    0.1  # of the largest answer, likewise, for one that answers in floats: steps of 3 % are seen
)


class WrongAnswerError(Exception):
    """A file was read without complaint, but the network computes something else than its own runtime does."""


def read(target: str, path: Path) -> Model | None:
    """Read ``path`` as ``target``; the Model where there is one to compare.

    Raises:
        DlasError: It was refused.
        UnknownNameError: No such target.
    """
    if target in _READERS:
        _READERS[target](path)
        return None
    if target in formats.names():
        listed = formats.get(target).weights(path)
        if listed is not None:
            json.dumps(listed.to_dict())
        partly = _PARTLY.get(path.suffix.lower())
        if partly is not None:
            partly(path)
            return None
        return load_model(path)
    raise UnknownNameError("fuzz target", target, [*_READERS, *formats.names()])


def compare(target: str, path: Path, model: Model, mark: Callable[[str], None]) -> bool:
    """Whether the network could be run on both sides; then it gave the same answers.

    Args:
        target: Name of the format.
        path: The mutated file.
        model: What was read from it.
        mark: Called with ``own`` and ``ours`` before either runtime is entered, either of which may die on it.

    Raises:
        WrongAnswerError: The answers differ.
    """
    owner = _OWNERS.get(target)
    if owner is None or not _small(model):
        return False
    rng = np.random.default_rng(0)
    inputs = {spec.name: _draw(spec, rng) for spec in model.inputs}
    mark("own")
    wanted = owner(path, model, inputs)
    if not wanted:
        return False
    mark("ours")
    found = _ours(model, inputs)
    if found is None:
        return False
    quantised = any(node.op_type == "DequantizeLinear" for node in model.ir.graph)
    for spec in model.outputs:
        tolerance = _QUANTISED_TOLERANCE if quantised else _TOLERANCE
        _same(spec, [answers[spec.name] for answers in wanted], found[spec.name], tolerance)
    return True


def _ours(model: Model, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray] | None:
    from dlas.graph.reference import Reference

    try:
        with Reference(model, level="disable") as reference:
            return reference.run(inputs)
    except DlasError:
        return None  # refused when it is run: no wrong numbers come out


def _by_onnxruntime(
    path: Path, model: Model, inputs: Mapping[str, np.ndarray]
) -> list[dict[str, np.ndarray]]:
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
        names = [o.name for o in session.get_outputs()]
        results: list[Any] = list(session.run(None, dict(inputs)))
        return [dict(zip(names, results, strict=True))]
    except Exception:  # whatever its own runtime refuses cannot be compared
        return []


def _by_litert(path: Path, model: Model, inputs: Mapping[str, np.ndarray]) -> list[dict[str, np.ndarray]]:
    """Answers of the reference kernels and of the default ones: mutated scales set them far apart."""
    kinds = ["BUILTIN_REF", "AUTO"]
    return [found for kind in kinds if (found := _litert(path, model, inputs, kind)) is not None]


def _litert(
    path: Path, model: Model, inputs: Mapping[str, np.ndarray], kind: str
) -> dict[str, np.ndarray] | None:
    from dlas.core.lazy import optional_import

    litert = optional_import("ai_edge_litert.interpreter", extra="tflite", needed_for="comparing with LiteRT")
    try:
        interpreter = litert.Interpreter(
            model_path=str(path),
            num_threads=1,
            experimental_op_resolver_type=getattr(litert.OpResolverType, kind),
        )
        interpreter.allocate_tensors()
        for detail, array in zip(interpreter.get_input_details(), inputs.values(), strict=True):
            interpreter.set_tensor(detail["index"], array)
        interpreter.invoke()
        found = [interpreter.get_tensor(d["index"]) for d in interpreter.get_output_details()]
    except Exception:  # as above
        return None
    return dict(zip([spec.name for spec in model.outputs], found, strict=True))


_OWNERS: dict[str, Callable[..., list[dict[str, np.ndarray]]]] = {
    "onnx": _by_onnxruntime,
    "tflite": _by_litert,
}


def _small(model: Model) -> bool:
    total = 0
    for spec in model.inputs:
        total += math.prod(d if isinstance(d, int) else 1 for d in spec.shape)
    if total > LARGEST_INPUT:
        return False
    for node in model.ir.graph:
        for value in node.outputs:
            dims = value.shape.dims if value.shape is not None else ()
            total += math.prod(d if isinstance(d, int) else 1 for d in dims)
    return total <= LARGEST_WORK


def _draw(spec: TensorSpec, rng: np.random.Generator) -> np.ndarray:
    shape = tuple(d if isinstance(d, int) else 1 for d in spec.shape)
    dtype = np.dtype(spec.dtype)
    if dtype.kind in "iu":
        low, high = max(np.iinfo(dtype).min, -100), min(np.iinfo(dtype).max, 100)
        return rng.integers(low, high, shape).astype(dtype)
    return np.asarray(rng.standard_normal(shape)).astype(dtype)


def _same(spec: TensorSpec, several: list[np.ndarray], found: np.ndarray, tolerance: float) -> None:
    """Raise unless ``found`` is near one of the runtime's answers, or no farther than these are from each other."""
    wanted = several[0]
    if wanted.size == 0 and found.shape == tuple(d if isinstance(d, int) else 1 for d in spec.shape):
        return  # the runtime believes an axis of length 0 that its operators do not compute
    if wanted.dtype != found.dtype or wanted.shape != found.shape:
        raise WrongAnswerError(
            f"output {spec.name!r}: {found.dtype.name}{list(found.shape)} instead of "
            f"{wanted.dtype.name}{list(wanted.shape)}"
        )
    a, b = wanted.astype(np.float64), found.astype(np.float64)
    others = [y.astype(np.float64) for y in several[1:]]
    if not all(np.isfinite(y).all() for y in (a, *others)):
        return  # where the runtime overflows there is nothing to hold ours against
    if not np.isfinite(b).all():
        raise WrongAnswerError(f"output {spec.name!r} holds {b[~np.isfinite(b)][0]}, the runtime's is finite")
    base = _STEPS if wanted.dtype.kind in "iu" else _FLOOR + tolerance * float(np.abs(a).max(initial=0))
    allowed = base + max(
        [float(np.abs(a - y).max(initial=0)) for y in others if y.shape == a.shape], default=0.0
    )
    worst = float(np.abs(a - b).max(initial=0))
    if worst > allowed:
        raise WrongAnswerError(f"output {spec.name!r} is off by {worst:g}, allowed are {allowed:g}")


# readers of what is no network


def _read_checkpoint(path: Path) -> None:
    """The weights of a checkpoint; building and exporting the network adds nothing that the file decides."""
    from dlas.graph.formats._torch_checkpoint import assemble, read_state

    assemble(path.name, read_state(path), "", ())


def _read_program(path: Path) -> None:
    from dlas.graph.formats._torch_program import read_program

    read_program(path)


def _read_keras(path: Path) -> None:
    """What is decided before TensorFlow sees the file."""
    from dlas.graph.formats.keras import check

    check(path)


def _list_only(path: Path) -> None:
    """Weights without a network were listed already."""


_PARTLY: dict[str, Callable[[Path], None]] = {
    ".h5": _read_keras,
    ".hdf5": _read_keras,
    ".keras": _read_keras,
    ".gguf": _list_only,
    ".pth": _read_checkpoint,
    ".pt": _read_checkpoint,
    ".th": _read_checkpoint,
    ".pt2": _read_program,
}


def _read_data(path: Path) -> None:
    from dlas.data.find import loader_for
    from dlas.data.preprocess import prepare
    from dlas.graph.preprocessing import Preprocessing

    loader = loader_for(path)
    loader.describe(path)
    found = loader.load(path)
    if not isinstance(found.samples, np.ndarray) or found.samples.dtype == np.uint8:
        prepare(found.head(8), Preprocessing(height=8, width=8, colour="RGB", scale=1 / 255))


def _read_image(path: Path) -> None:
    from dlas.data.dataset import Dataset
    from dlas.data.preprocess import prepare
    from dlas.graph.preprocessing import Preprocessing

    one = Dataset("images", [path.read_bytes()], None, (), "none", path.name)
    prepare(one, Preprocessing(height=8, width=8, colour="RGB", scale=1 / 255))


def _read_stack(path: Path) -> None:
    from dlas.explore.spec import read_spec

    read_spec(path)


def _read_study(path: Path) -> None:
    from dlas.explore.storage import SqliteStorage
    from dlas.explore.study import load_result
    from dlas.report.data import embed_json, page_data

    storage = SqliteStorage(path, create=False)
    try:
        for name in storage.studies():
            embed_json(page_data(load_result(storage, name)))
    finally:
        storage.close()


_READERS: dict[str, Callable[[Path], Any]] = {
    "npz": _read_data,
    "parquet": _read_data,
    "image": _read_image,
    "stack": _read_stack,
    "study": _read_study,
}
