"""What a network computes, by ONNX Runtime on the CPU: the yardstick for importers, methods and back ends."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

import numpy as np

from dlas.core.errors import (
    DlasError,
    ModelError,
    OptionError,
    ShapeError,
    UnknownNameError,
    UnsupportedError,
)
from dlas.graph.model import Model
from dlas.graph.passes import infer_shapes

LEVELS = ("all", "basic", "disable")
"""ONNX Runtime's graph optimisation: everything, only what keeps the result exact, nothing."""


class Reference:
    """A Model made runnable. Use as a context manager or call :meth:`close`.

    Args:
        model: The network.
        level: Graph optimisation, one of ``LEVELS``.
        threads: Threads within an operator.

    Raises:
        ModelError: ONNX Runtime refuses the graph.
        UnsupportedError: It has no kernel for one of the operators.
    """

    def __init__(self, model: Model, *, level: str = "all", threads: int = 1) -> None:
        import onnxruntime as ort

        if level not in LEVELS:
            raise OptionError("level", level, "one of " + ", ".join(LEVELS))
        if threads < 1:
            raise OptionError("threads", threads, "a number >= 1")
        options = ort.SessionOptions()
        options.graph_optimization_level = {
            "all": ort.GraphOptimizationLevel.ORT_ENABLE_ALL,
            "basic": ort.GraphOptimizationLevel.ORT_ENABLE_BASIC,
            "disable": ort.GraphOptimizationLevel.ORT_DISABLE_ALL,
        }[level]
        options.intra_op_num_threads = threads
        options.inter_op_num_threads = 1
        options.log_severity_level = 4
        # Otherwise a MatMul with dequantised weights rounds its activations to 8 bits: 45 dB instead of 131.
        options.add_session_config_entry("session.qdq_matmulnbits_accuracy_level", "1")
        self.model = model
        self._outputs = [spec.name for spec in model.outputs]
        try:
            self._session: Any = ort.InferenceSession(
                model.to_bytes(), options, providers=["CPUExecutionProvider"]
            )
        except Exception as error:
            raise explained(error, model.name) from error

    def run(self, inputs: Mapping[str, np.ndarray]) -> dict[str, np.ndarray]:
        """Outputs by name, in the Model's order.

        Raises:
            ShapeError: ``inputs`` do not fit what the network declares.
            ModelError: The network fails on them.
        """
        if self._session is None:
            raise ModelError(f"{self.model.name} is closed", "make a new Reference")
        self.model.check_inputs(inputs)
        try:
            results = self._session.run(self._outputs, dict(inputs))
        except Exception as error:
            raise explained(error, self.model.name) from error
        return dict(zip(self._outputs, results, strict=True))

    def close(self) -> None:
        """Give back the session; calling it again does nothing."""
        self._session = None

    def __enter__(self) -> Reference:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


def answers(
    model: Model,
    inputs: Mapping[str, np.ndarray],
    *,
    batch_size: int = 100,
    threads: int = 2,
    level: str = "all",
    outputs: Sequence[str] | None = None,
) -> dict[str, np.ndarray]:
    """Outputs of a network for every row of its inputs.

    Args:
        model: The network; one with a fixed batch is run that many rows at a time, the last ones padded.
        inputs: ``(N, ...)`` per input, in its dtype. Where N is not the same for all, they are what one run takes.
        batch_size: Rows per run where the batch is dynamic.
        threads: Threads within an operator.
        level: Graph optimisation, one of ``LEVELS``.
        outputs: Names wanted; None for all.

    Returns:
        ``(N, ...)`` per output, rows in the order of the inputs.

    Raises:
        ShapeError: The inputs do not fit, or an output has no row per sample.
    """
    if batch_size < 1:
        raise OptionError("batch_size", batch_size, "a number >= 1")
    counts = {len(x) if x.ndim else 0 for x in inputs.values()}
    if counts == {0}:
        shapes = ", ".join(str(list(x.shape)) for x in inputs.values())
        raise ShapeError(f"{model.name}: no rows to predict, the inputs have the shape {shapes}")
    if len(counts) != 1:
        with Reference(model, level=level, threads=threads) as reference:
            found = reference.run(inputs)
        return {name: found[name] for name in outputs or found}
    total = counts.pop()
    first = [spec.shape[0] for spec in model.inputs if spec.shape]
    fixed = first[0] if first and isinstance(first[0], int) else 0
    step = fixed or batch_size
    wanted = list(outputs or (spec.name for spec in model.outputs))
    parts: dict[str, list[np.ndarray]] = {name: [] for name in wanted}
    with Reference(model, level=level, threads=threads) as reference:
        for start in range(0, total, step):
            count = min(step, total - start)
            rows = {n: _filled(x[start : start + step], fixed) for n, x in inputs.items()}
            found = reference.run(rows)
            for name in wanted:
                result = found[name]
                if result.ndim == 0 or len(result) != (fixed or count):
                    raise ShapeError(
                        f"{model.name}: output {name!r} has the shape {list(result.shape)} "
                        f"for {fixed or count} samples",
                        "an output must have one row per sample",
                    )
                parts[name].append(result[:count])
    return {name: np.concatenate(found) for name, found in parts.items()}


def _filled(rows: np.ndarray, fixed: int) -> np.ndarray:
    """Rows for a network that takes ``fixed`` at a time (0: any number): the last one is repeated."""
    if fixed and len(rows) < fixed:
        rows = np.concatenate([rows, np.repeat(rows[-1:], fixed - len(rows), axis=0)])
    return np.ascontiguousarray(rows)


def predict(
    model: Model, x: np.ndarray, *, batch_size: int = 100, threads: int = 2, level: str = "all"
) -> np.ndarray:
    """First output of a network with one input, for every row of ``x``; see :func:`answers`.

    Args:
        model: The network.
        x: ``(N, ...)`` in the input's dtype.
        batch_size: Rows per run where the batch is dynamic.
        threads: Threads within an operator.
        level: Graph optimisation, one of ``LEVELS``.

    Returns:
        ``(N, ...)``: the first output, rows in the order of ``x``.

    Raises:
        ShapeError: ``x`` does not fit, or the output has no row per sample.
        UnsupportedError: The network has several inputs.
    """
    if len(model.inputs) != 1:
        names = ", ".join(spec.name for spec in model.inputs)
        raise UnsupportedError(f"{model.name} has {len(model.inputs)} inputs ({names}), predict feeds one")
    name = model.outputs[0].name
    fed = {model.inputs[0].name: x}
    return answers(model, fed, batch_size=batch_size, threads=threads, level=level, outputs=[name])[name]


def intermediates(
    model: Model, inputs: Mapping[str, np.ndarray], names: Sequence[str] | None = None
) -> dict[str, np.ndarray]:
    """Values inside the network, by name, computed without graph optimisation.

    Args:
        model: The network.
        inputs: What to feed it.
        names: Tensors wanted; None for every one that a node writes.

    Raises:
        UnknownNameError: The graph has no tensor of that name.
    """
    graph = model.editable()
    infer_shapes(graph)
    values = {v.name: v for node in graph.graph for v in node.outputs if v.name}
    constants = model.initializers
    fed = {spec.name for spec in model.inputs}
    for name in names or ():
        if name not in values and name not in fed and name not in constants:
            raise UnknownNameError("tensor", name, [*map(str, values), *fed])
    wanted = [str(n) for n in (names if names is not None else values)]
    present = {v.name for v in graph.graph.outputs}
    for name in wanted:
        value = values.get(name)
        if value is None or name in present:
            continue
        if value.type is None or value.shape is None:
            if names is not None:
                raise UnsupportedError(f"{model.name}: the type of tensor {name!r} cannot be inferred")
            continue
        graph.graph.outputs.append(value)
    opened = Model(graph, model.name)
    with Reference(opened, level="disable") as reference:
        results = reference.run(inputs)
    found = {**{n: np.asarray(inputs[n]) for n in fed}, **constants, **results}
    return {name: found[name] for name in wanted if name in found}


def explained(error: Exception, name: str) -> DlasError:
    """An error of ONNX Runtime as one line of ours; anything else is raised again as it is."""
    kind = type(error)
    if not kind.__module__.startswith("onnxruntime"):
        raise error
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    text = text.split(" : ", 2)[-1][:300]
    if kind.__name__ in ("NotImplemented", "EPFail"):
        return UnsupportedError(f"ONNX Runtime cannot run {name}: {text}")
    return ModelError(f"ONNX Runtime refuses {name}: {text}")
