"""What an optimiser must offer so that its passes can be tried one by one.

Everything here runs inside a worker process: optimisers are native code and may crash on the very networks they are
tried on.
"""

from __future__ import annotations

from abc import abstractmethod
from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any, ClassVar

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.options import Configurable
from dlas.core.registry import Registry

pass_tools: Registry[type[PassTool]] = Registry("pass-tool", "dlas.verify.passes.tools")

_ROWS = 100  # per run, where the batch is free


class InvalidResult(DlasError):  # noqa: N818 - it is an outcome to record, not only an error
    """What an optimiser made is no network that can be run."""


@dataclass(frozen=True)
class Answers:
    """What an optimised network calls its inputs and outputs, and what it answers.

    Attributes:
        inputs: Names of the inputs.
        outputs: Names of the outputs.
        arrays: ``(N, ...)`` per output.
    """

    inputs: tuple[str, ...]
    outputs: tuple[str, ...]
    arrays: list[np.ndarray]


class PassTool(Configurable):
    """An optimiser of networks whose passes have names.

    Class attributes:
        distribution: Python distribution whose version identifies it.
        in_runtime: Whether it is part of ONNX Runtime, whose optimisations can then not be the noise floor.
    """

    distribution: ClassVar[str] = ""
    in_runtime: ClassVar[bool] = False

    def bundles(self) -> list[PassTool]:
        """The optimiser at each level up to the one asked for, weakest first; itself is the last."""
        return [self]

    @abstractmethod
    def passes(self, model: bytes) -> list[str]:
        """Names of all passes that may be tried on this network, an ONNX file, in the order they run."""

    def bundle(self, model: bytes) -> list[str]:
        """Those of :meth:`passes` that the optimiser runs by itself."""
        return self.passes(model)

    @abstractmethod
    def run(self, model: bytes, passes: Sequence[str] | None) -> bytes:
        """The network after ``passes``; None means as the optimiser does it by itself. Any exception is a crash."""

    def check(self, result: bytes) -> None:
        """Raise where :meth:`run` gave something outside the ONNX standard."""
        import onnx

        onnx.checker.check_model(onnx.ModelProto.FromString(result))

    def answers(self, result: bytes, rows: dict[str, np.ndarray]) -> Answers:
        """What :meth:`run` gave answers to ``(N, ...)`` rows per input name.

        Raises:
            InvalidResult: It cannot be loaded, asks for other inputs, or fails on them.
        """
        return by_onnxruntime(result, rows)


def by_onnxruntime(
    result: bytes, rows: dict[str, np.ndarray], *, optimise: bool = False, rows_per_run: int = _ROWS
) -> Answers:
    """Run an ONNX file on ONNX Runtime, as it stands unless told to ``optimise``; see :meth:`PassTool.answers`."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    levels = ort.GraphOptimizationLevel
    options.graph_optimization_level = levels.ORT_ENABLE_ALL if optimise else levels.ORT_DISABLE_ALL
    options.intra_op_num_threads = options.inter_op_num_threads = 1
    options.log_severity_level = 4
    try:
        session: Any = ort.InferenceSession(result, options, providers=["CPUExecutionProvider"])
    except Exception as error:
        raise InvalidResult(f"cannot be loaded: {_short(error)}") from error
    inputs = {spec.name: spec.shape for spec in session.get_inputs()}
    outputs = tuple(spec.name for spec in session.get_outputs())
    if len(inputs) != len(rows):
        extra = [n for n in inputs if n not in rows]
        lost = [n for n in rows if n not in inputs]
        what = f"asks for {len(extra)} more inputs: " if extra else "takes no input: "
        raise InvalidResult(what + ", ".join((extra or lost)[:4]))
    named = set(inputs) == set(rows)
    fed = {name: rows[name if named else other] for name, other in zip(inputs, rows, strict=True)}
    first = [shape[0] for shape in inputs.values() if shape]
    try:
        arrays = _in_parts(session, fed, first[0] if first and isinstance(first[0], int) else 0, rows_per_run)
    except InvalidResult:
        raise
    except Exception as error:
        raise InvalidResult(f"cannot be run: {_short(error)}") from error
    return Answers(tuple(inputs), outputs, arrays)


def _in_parts(session: Any, fed: dict[str, np.ndarray], fixed: int, free: int) -> list[np.ndarray]:
    """All outputs for all rows, ``fixed`` of them at a time; ``free`` where any number is taken (``fixed`` is 0)."""
    counts = {len(x) if x.ndim else 0 for x in fed.values()}
    if len(counts) != 1 or counts == {0}:  # inputs that are no rows: one run takes them all
        return [np.asarray(y) for y in session.run(None, fed)]
    total, step = counts.pop(), fixed or free
    parts: list[list[np.ndarray]] = []
    for start in range(0, total, step):
        few = {n: x[start : start + step] for n, x in fed.items()}
        count = len(next(iter(few.values())))
        if fixed and count < fixed:
            few = {n: np.concatenate([x, np.repeat(x[-1:], fixed - count, axis=0)]) for n, x in few.items()}
        parts.append([np.asarray(y) for y in session.run(None, few)])
        bad = next((list(y.shape) for y in parts[-1] if y.ndim == 0 or len(y) != (fixed or count)), None)
        if bad is not None:
            raise InvalidResult(f"an output has the shape {bad} for {fixed or count} rows")
        parts[-1] = [y[:count] for y in parts[-1]]
    return [np.concatenate(found) for found in zip(*parts, strict=True)]


def _short(error: BaseException) -> str:
    text = " ".join(str(error).split()).removeprefix("[ONNXRuntimeError] : ")
    return (text.split(" : ", 2)[-1] or type(error).__name__)[:200]
