"""Run a model file on the runtime that owns its format, without any translation of ours in between.

This is the judge of importers and exporters: what ONNX Runtime says of an ``.onnx`` file, LiteRT of a ``.tflite``
file, torch of a checkpoint, Keras of its own files and TensorFlow of a SavedModel folder. The functions are called in
a worker process.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import ShapeError, UnsupportedError
from dlas.core.lazy import optional_import
from dlas.graph.format import format_for, load_model
from dlas.graph.formats.keras import open_network
from dlas.graph.formats.keras.loading import tensorflow
from dlas.graph.model import NEWEST_IR
from dlas.graph.reference import Reference

BLOCK = 100  # rows per run of a network that takes any number


OURSELVES = "dlas"  # for formats that no runtime runs


def owner(path: Path) -> str:
    """Name of the runtime that owns the format of a file or folder; ``dlas`` where there is none.

    Raises:
        ModelError: No format has that ending, or knows that folder.
    """
    return format_for(path).runtime or OURSELVES


def answers(
    path: str,
    inputs: Sequence[np.ndarray],
    options: Mapping[str, Any] | None = None,
    threads: int = 2,
    kernels: str = "",
) -> list[np.ndarray]:
    """All outputs of a model file, in the order of the file.

    Args:
        path: Model file.
        inputs: One array ``(N, ...)`` per input of the file, in its order. Where N is not the same for all, they are
            what one run takes.
        options: What its reader was told about the file, such as the architecture of a bare checkpoint or the
            signature of a SavedModel.
        threads: Threads within an operator.
        kernels: For TFLite files: which of the kernels of the back end ``litert``; by default what LiteRT takes.

    Returns:
        One array per output. Those with a row per sample are ``(N, ...)``; others come as they are where all rows
        fit into one run.

    Raises:
        UnsupportedError: An output without a row per sample needs several runs.
        ShapeError: The file has another number of inputs.
    """
    runner = opened(path, {**(options or {}), **({"kernels": kernels} if kernels else {})}, threads)
    if runner.inputs != len(inputs):
        raise ShapeError(f"{Path(path).name} has {runner.inputs} inputs, {len(inputs)} were given")
    return answers_of(runner, inputs)


def answers_of(runner: Runner, inputs: Sequence[np.ndarray]) -> list[np.ndarray]:
    """All outputs of an opened file; see :func:`answers`."""
    if len({len(x) if x.ndim else None for x in inputs}) != 1:
        return list(runner.run([np.ascontiguousarray(x) for x in inputs]))  # no rows: one run of these shapes
    count, step = len(inputs[0]), runner.batch or BLOCK
    parts = []
    for start in range(0, count, step):
        rows = min(step, count - start)
        given = [filled(x[start : start + step], runner.batch) for x in inputs]
        found = runner.run(given)
        parts.append([y[:rows] if rows < runner.batch and y.ndim else y for y in found])
    return [joined(list(found), count) for found in zip(*parts, strict=True)]


def opened(path: str, options: Mapping[str, Any], threads: int) -> Runner:
    """A model file on its runtime; see :func:`answers`."""
    runners = {"onnxruntime": _onnx, "litert": _tflite, "torch": _torch, "keras": _keras, OURSELVES: _dlas}
    return runners[owner(Path(path))](path, dict(options), threads)


def joined(parts: list[np.ndarray], count: int) -> np.ndarray:
    """The parts of one output over several runs, put together along the first axis to ``count`` rows.

    Raises:
        UnsupportedError: There are several, and they have no row per sample.
    """
    if len(parts) == 1:
        return parts[0]
    if any(p.ndim == 0 for p in parts) or sum(len(p) for p in parts) != count:
        raise UnsupportedError("an output has no row per sample, so that several runs cannot be put together")
    return np.concatenate(parts)


def filled(rows: np.ndarray, batch: int) -> np.ndarray:
    """Rows for a file that takes ``batch`` at a time (0: any number): the last one is repeated."""
    if len(rows) < batch:
        rows = np.concatenate([rows, np.repeat(rows[-1:], batch - len(rows), axis=0)])
    return np.ascontiguousarray(rows)


@dataclass(frozen=True)
class Runner:
    """An opened file: one call with all inputs gives all outputs.

    Attributes:
        run: That call.
        inputs: How many there are.
        batch: Rows per run; 0 where any number will do.
    """

    run: Callable[[list[np.ndarray]], Sequence[np.ndarray]]
    inputs: int
    batch: int


def _onnx(path: str, options: dict[str, Any], threads: int) -> Runner:
    import onnxruntime

    settings = onnxruntime.SessionOptions()
    settings.intra_op_num_threads = threads
    settings.log_severity_level = 3
    session = onnxruntime.InferenceSession(
        _known(path, settings), settings, providers=["CPUExecutionProvider"]
    )
    given = session.get_inputs()
    names = [i.name for i in given]
    first = [i.shape[0] for i in given if i.shape]
    return Runner(
        lambda arrays: [np.asarray(y) for y in session.run(None, dict(zip(names, arrays, strict=True)))],
        len(names),
        first[0] if first and isinstance(first[0], int) else 0,
    )


def _known(path: str, settings: Any) -> str | bytes:
    """The file, under a version of the format that ONNX Runtime knows: onnx writes newer ones than it reads."""
    import onnx

    proto = onnx.load(path, load_external_data=False)
    if proto.ir_version <= NEWEST_IR:
        return path
    proto.ir_version = NEWEST_IR
    folder = str(Path(path).absolute().parent)
    settings.add_session_config_entry("session.model_external_initializers_file_folder_path", folder)
    return proto.SerializeToString()


def _tflite(path: str, options: dict[str, Any], threads: int) -> Runner:
    interpreter_module = optional_import(
        "ai_edge_litert.interpreter", extra="tflite", needed_for="running a TFLite file"
    )
    if path.lower().endswith((".c", ".cc")):
        from dlas.graph.formats.c_array import flatbuffer

        given_as: dict[str, Any] = {"model_content": flatbuffer(Path(path), options.get("array", ""))}
    else:
        given_as = {"model_path": path}
    if "kernels" in options:
        from dlas.runtime.backends.litert import RESOLVERS

        resolver = getattr(interpreter_module.OpResolverType, RESOLVERS[options["kernels"]])
        given_as["experimental_op_resolver_type"] = resolver
    interpreter = interpreter_module.Interpreter(num_threads=threads, **given_as)
    interpreter.allocate_tensors()
    given = [d["index"] for d in interpreter.get_input_details()]
    wanted = [d["index"] for d in interpreter.get_output_details()]

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        for index, x in zip(given, arrays, strict=True):
            interpreter.set_tensor(index, x)
        interpreter.invoke()
        return [interpreter.get_tensor(index).copy() for index in wanted]

    shape = interpreter.get_input_details()[0]["shape"]
    return Runner(run, len(given), int(shape[0]) if len(shape) else 0)


def _torch(path: str, options: dict[str, Any], threads: int) -> Runner:
    import torch

    model = load_model(Path(path), **options)
    module = model.torch_module
    if module is None:
        raise UnsupportedError(f"{Path(path).name}: no torch module came with it")
    torch.set_num_threads(threads)

    def run(arrays: list[np.ndarray]) -> list[np.ndarray]:
        with torch.inference_mode():
            found = module(*(torch.from_numpy(x) for x in arrays))
        return [y.numpy() for y in (found if isinstance(found, tuple | list) else [found])]

    first = model.inputs[0].shape[:1]
    return Runner(run, len(model.inputs), first[0] if first and isinstance(first[0], int) else 0)


def _dlas(path: str, options: dict[str, Any], threads: int) -> Runner:
    # Nobody else can judge: what dlas reads from the file, on the reference engine.
    model = load_model(Path(path), **options)
    reference = Reference(model, threads=threads)
    names = [spec.name for spec in model.inputs]
    first = model.inputs[0].shape[:1]
    return Runner(
        lambda arrays: list(reference.run(dict(zip(names, arrays, strict=True))).values()),
        len(names),
        first[0] if first and isinstance(first[0], int) else 0,
    )


def _keras(path: str, options: dict[str, Any], threads: int) -> Runner:
    # The same static checks and the same loader as the importer's, but no translation.
    tf = tensorflow()
    with contextlib.suppress(RuntimeError):  # it has run something already, and keeps the threads it has
        tf.config.threading.set_intra_op_parallelism_threads(threads)
        tf.config.threading.set_inter_op_parallelism_threads(1)
    network = open_network(Path(path), **options)
    answer = tf.function(network.function, autograph=False, input_signature=list(network.inputs))
    first = network.inputs[0].shape[:1]
    return Runner(
        lambda arrays: [np.asarray(y) for y in answer(*map(tf.constant, arrays))],
        len(network.inputs),
        (first[0] or 0) if len(first) else 0,
    )
