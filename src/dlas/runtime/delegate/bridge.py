"""The C++ half of the delegate as Python sees it: what it tells about an operator, and how it calls back.

The structures mirror ``Value`` and ``Given`` of ``delegate.cpp``; LiteRT's own are read there and nowhere else.
"""

from __future__ import annotations

import ctypes
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.lazy import optional_import
from dlas.core.text import printable

OPERATORS = {3: "CONV_2D", 4: "DEPTHWISE_CONV_2D", 9: "FULLY_CONNECTED", 67: "TRANSPOSE_CONV"}
_DTYPES = {
    1: "float32",
    2: "int32",
    3: "uint8",
    4: "int64",
    6: "bool",
    7: "int16",
    9: "int8",
    10: "float16",
}
_PADDINGS = {1: "SAME", 2: "VALID"}
_RANK = 8
_WORDS = 1024  # bytes of a message
_LEFT, _FAILED = -1, -2


@dataclass(frozen=True)
class Tensor:
    """A tensor of LiteRT.

    Attributes:
        name: In the file.
        index: In the graph.
        shape: TFLite's order of axes, channels last.
        dtype: NumPy name, or ``type N`` where NumPy has none.
        scales: One, or one per channel; empty where it is not quantised.
        zero_points: As many.
        axis: Of the channels.
        data: Content of a constant.
    """

    name: str
    index: int
    shape: tuple[int, ...]
    dtype: str
    scales: tuple[float, ...]
    zero_points: tuple[int, ...]
    axis: int
    data: np.ndarray | None


@dataclass(frozen=True)
class Operator:
    """An operator of LiteRT, in its own words.

    Attributes:
        graph: Number of its graph, which another graph of the interpreter does not have.
        node: Its number there.
        op: One of :data:`OPERATORS`.
        x: What it reads; its weights, bias and result are the tensors that follow.
        padding: ``SAME`` or ``VALID``.
        strides: Height, width.
        dilations: Height, width.
        activation: TFLite's number.
        weights_format: TFLite's number; 0 is a plain matrix.
        keep_dims: Whether a dense layer keeps the axes of its input.
    """

    graph: int
    node: int
    op: str
    x: Tensor
    weight: Tensor
    bias: Tensor | None
    y: Tensor
    padding: str
    strides: tuple[int, int]
    dilations: tuple[int, int]
    activation: int
    weights_format: int
    keep_dims: bool


class Handler(Protocol):
    """What the delegate asks; any exception is told to LiteRT as a failure of the step."""

    def consider(self, operator: Operator) -> int | None:
        """A number for an operator that is taken, None for one that LiteRT keeps."""
        ...

    def unreadable(self, graph: int, node: int, op: str) -> None:
        """An operator with sparse or missing tensors, which LiteRT keeps."""
        ...

    def shape(self, number: int, x: tuple[int, ...]) -> Sequence[int]:
        """Shape of the result, for an input of the shape ``x``."""
        ...

    def run(self, number: int, x: np.ndarray, y: np.ndarray) -> None:
        """Compute; both are flat arrays of bytes, ``uint8``, in LiteRT's memory and valid during the call only."""
        ...


class _Value(ctypes.Structure):
    _fields_ = (
        ("name", ctypes.c_char_p),
        ("data", ctypes.c_void_p),
        ("scales", ctypes.POINTER(ctypes.c_float)),
        ("zero_points", ctypes.POINTER(ctypes.c_int32)),
        ("bytes", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("index", "type", "rank", "constant", "channels", "axis")),
        ("zero_point", ctypes.c_int32),
        ("scale", ctypes.c_float),
        ("dims", ctypes.c_int32 * _RANK),
    )

    def tensor(self) -> Tensor:
        """A copy.

        Raises:
            DlasError: Its size is not that of its shape and dtype, so that LiteRT's structures are read wrongly.
        """
        shape, dtype = tuple(self.dims[: self.rank]), _DTYPES.get(self.type, f"type {self.type}")
        data = None
        if self.type in _DTYPES:
            size = math.prod(shape) * np.dtype(dtype).itemsize
            if size != self.bytes:
                raise DlasError(
                    f"LiteRT's structures are not what dlas reads: {dtype} {list(shape)} in {self.bytes} bytes",
                    "ai-edge-litert 2.3 is known to work",
                )
            if self.data:
                data = np.frombuffer(ctypes.string_at(self.data, size), dtype).reshape(shape)
        scales, zeros = (self.scale,), (self.zero_point,)
        if self.channels:
            scales, zeros = tuple(self.scales[: self.channels]), tuple(self.zero_points[: self.channels])
        elif not self.scale:
            scales, zeros = (), ()
        name = (self.name or b"").decode(errors="replace")
        return Tensor(name, self.index, shape, dtype, scales, zeros, self.axis, data)


class _Given(ctypes.Structure):
    _fields_ = (
        ("graph", ctypes.c_uint64),
        *((name, ctypes.c_int32) for name in ("op", "node", "known", "has_bias", "padding")),
        *((name, ctypes.c_int32) for name in ("stride_h", "stride_w", "dilation_h", "dilation_w")),
        *((name, ctypes.c_int32) for name in ("activation", "weights_format", "keep_dims")),
        *((name, _Value) for name in ("x", "weight", "bias", "y")),
    )

    def operator(self) -> Operator:
        return Operator(
            self.graph,
            self.node,
            OPERATORS[self.op],
            self.x.tensor(),
            self.weight.tensor(),
            self.bias.tensor() if self.has_bias else None,
            self.y.tensor(),
            _PADDINGS.get(self.padding, ""),
            (self.stride_h, self.stride_w),
            (self.dilation_h, self.dilation_w),
            self.activation,
            self.weights_format,
            bool(self.keep_dims),
        )


_CONSIDER = ctypes.CFUNCTYPE(ctypes.c_int, ctypes.POINTER(_Given), ctypes.c_void_p)
_SHAPE = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_int, ctypes.POINTER(ctypes.c_int), ctypes.POINTER(ctypes.c_int),
    ctypes.c_void_p,
)  # fmt: skip
_RUN = ctypes.CFUNCTYPE(
    ctypes.c_int, ctypes.c_int, ctypes.c_void_p, ctypes.c_uint64, ctypes.c_void_p, ctypes.c_uint64,
    ctypes.c_void_p,
)  # fmt: skip


class _Callbacks:
    """Functions for C++ around a handler. No exception may leave them: it is kept and told as words."""

    def __init__(self, handler: Handler) -> None:
        self.handler = handler
        self.error: BaseException | None = None

    def consider(self, given: Any, words: int) -> int:
        def step() -> int:
            told = given.contents
            if not told.known:
                self.handler.unreadable(told.graph, told.node, OPERATORS[told.op])
                return _LEFT
            number = self.handler.consider(told.operator())
            return _LEFT if number is None else number

        return self._guarded(step, words)

    def shape(self, number: int, rank: int, dims: Any, result: Any, words: int) -> int:
        def step() -> int:
            found = self.handler.shape(number, tuple(dims[:rank]))
            for axis, length in enumerate(found):
                result[axis] = length
            return len(found)

        return self._guarded(step, words)

    def run(self, number: int, x: int, x_bytes: int, y: int, y_bytes: int, words: int) -> int:
        def step() -> int:
            self.handler.run(number, _bytes_at(x, x_bytes), _bytes_at(y, y_bytes))
            return 0

        return self._guarded(step, words)

    def _guarded(self, step: Callable[[], int], words: int) -> int:
        try:
            return step()
        except BaseException as error:  # it goes on in `Bridge.check`
            self.error = error
            text = str(error) if isinstance(error, DlasError) else f"{type(error).__name__}: {error}"
            told = printable(text, _WORDS // 4).encode(errors="replace")[: _WORDS - 1]
            ctypes.memmove(words, told + b"\0", len(told) + 1)
            return _FAILED


def _bytes_at(address: int, size: int) -> np.ndarray:
    """LiteRT's memory itself."""
    return np.ctypeslib.as_array((ctypes.c_uint8 * size).from_address(address))


class Bridge:
    """A loaded delegate that asks ``handler``.

    Args:
        library: The compiled ``delegate.cpp``.
        handler: Answers.

    Raises:
        MissingDependencyError: LiteRT is not installed.
        DlasError: LiteRT does not load it.
    """

    def __init__(self, library: Path, handler: Handler) -> None:
        litert = optional_import(
            "ai_edge_litert.interpreter", extra="tflite", needed_for="the LiteRT delegate"
        )
        # The callbacks do not know this object: no cycle keeps it alive once the interpreter lets go of it.
        self._callbacks = _Callbacks(handler)
        self._functions = {
            "consider": _CONSIDER(self._callbacks.consider),
            "shape": _SHAPE(self._callbacks.shape),
            "run": _RUN(self._callbacks.run),
        }
        addresses = {name: ctypes.cast(f, ctypes.c_void_p).value or 0 for name, f in self._functions.items()}
        try:
            self._native = litert.load_delegate(str(library), addresses)
        except (OSError, ValueError) as error:
            raise DlasError(f"LiteRT does not load the delegate: {error}") from error

    @property
    def pointer(self) -> int:
        """The native delegate."""
        return self._native._get_native_delegate_pointer()  # what Interpreter calls

    def forget(self) -> None:
        """Drop what went wrong in an earlier step, which LiteRT has told already."""
        self._callbacks.error = None

    def check(self) -> None:
        """Raise what went wrong in a callback since the last time.

        Raises:
            DlasError: Something did. An interruption is raised as it is.
        """
        error, self._callbacks.error = self._callbacks.error, None
        if error is None:
            return
        if isinstance(error, DlasError) or not isinstance(error, Exception):
            raise error
        raise DlasError(f"the delegate failed: {type(error).__name__}: {error}") from error
