"""Run a model file on the runtime that owns its format, without any translation of ours in between.

This is the judge of importers and exporters: what ONNX Runtime says of an ``.onnx`` file, LiteRT of a ``.tflite``
file and torch of a checkpoint. The functions are called in a worker process.
"""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.core.lazy import optional_import

OWNERS = {
    ".onnx": "onnxruntime",
    ".tflite": "litert",
    ".th": "torch",
    ".pt": "torch",
    ".pth": "torch",
    ".pt2": "torch",
}


def owner(path: Path) -> str:
    """Name of the runtime that owns a file's format."""
    try:
        return OWNERS[path.suffix.lower()]
    except KeyError:
        raise UnsupportedError(
            f"{path.name}: no runtime owns the ending {path.suffix!r}", "accepted: " + ", ".join(OWNERS)
        ) from None


def scores(path: str, x: np.ndarray, architecture: str = "", threads: int = 2) -> np.ndarray:
    """First output of a single-input model file on rows ``x`` ``(N, ...)``, stacked.

    Raises:
        UnsupportedError: The file has several inputs, or no runtime owns it.
    """
    runners = {"onnxruntime": _onnx, "litert": _tflite, "torch": _torch}
    run, batch = runners[owner(Path(path))](path, architecture, threads)
    step = batch or 100
    return np.concatenate([run(np.ascontiguousarray(x[i : i + step])) for i in range(0, len(x), step)])


_Runner = Callable[[np.ndarray], np.ndarray]


def _onnx(path: str, architecture: str, threads: int) -> tuple[_Runner, int]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = threads
    options.log_severity_level = 3
    session = onnxruntime.InferenceSession(path, options, providers=["CPUExecutionProvider"])
    (name,) = _single([i.name for i in session.get_inputs()])
    first = session.get_inputs()[0].shape[0]
    return lambda x: np.asarray(session.run(None, {name: x})[0]), first if isinstance(first, int) else 0


def _tflite(path: str, architecture: str, threads: int) -> tuple[_Runner, int]:
    interpreter_module = optional_import(
        "ai_edge_litert.interpreter", extra="tflite", needed_for="running a TFLite file"
    )
    interpreter = interpreter_module.Interpreter(model_path=path, num_threads=threads)
    interpreter.allocate_tensors()
    (given,) = _single(interpreter.get_input_details())
    wanted = interpreter.get_output_details()[0]

    def run(x: np.ndarray) -> np.ndarray:
        interpreter.set_tensor(given["index"], x)
        interpreter.invoke()
        return interpreter.get_tensor(wanted["index"]).copy()

    return run, int(given["shape"][0])


def _torch(path: str, architecture: str, threads: int) -> tuple[_Runner, int]:
    import torch

    from dlas.graph.format import load_model

    model = load_model(Path(path), **({"architecture": architecture} if architecture else {}))
    module = model.torch_module
    if module is None:
        raise UnsupportedError(f"{Path(path).name}: no torch module came with it")
    torch.set_num_threads(threads)

    def run(x: np.ndarray) -> np.ndarray:
        with torch.inference_mode():
            return module(torch.from_numpy(x)).numpy()

    return run, 0


def _single(inputs: list) -> list:
    if len(inputs) != 1:
        raise UnsupportedError(
            f"the network has {len(inputs)} inputs; only single-input networks can be compared"
        )
    return inputs
