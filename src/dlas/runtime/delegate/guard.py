"""Proves that the delegate reads LiteRT's structures rightly, on a network whose every number is known.

LiteRT's headers are not there to compile against, so a new release may move a field. Run in a process of its own: a
wrong layout may well crash.
"""

from __future__ import annotations

from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import DlasError
from dlas.core.lazy import optional_import
from dlas.graph.formats.tflite.flat import aligned_buffer, pack, schema
from dlas.runtime.delegate.bridge import Bridge, Operator, Tensor

# Name, shape, dtype, scales, zero point, whether it has content.
_TENSORS = (
    ("x", (1, 5, 7, 3), "INT8", (0.5,), 3, False),
    ("conv/w", (4, 3, 2, 3), "INT8", (0.1, 0.2, 0.3, 0.4), 0, True),
    ("conv/b", (4,), "INT32", (0.05, 0.1, 0.15, 0.2), 0, True),
    ("conv", (1, 3, 7, 4), "INT8", (0.25,), -7, False),
    ("up/shape", (4,), "INT32", (), 0, True),
    ("up/w", (2, 2, 3, 4), "INT8", (0.7, 0.8), 0, True),
    ("up", (1, 4, 15, 2), "INT8", (2.0,), 11, False),
    ("dense/w", (6, 120), "INT8", (0.01,), 0, True),
    ("y", (1, 6), "INT8", (4.0,), -1, False),
)
_OPERATORS = (
    ("CONV_2D", ("x", "conv/w", "conv/b"), "conv"),
    ("TRANSPOSE_CONV", ("up/shape", "up/w", "conv"), "up"),
    ("FULLY_CONNECTED", ("up", "dense/w"), "y"),
)
# What must be read: op, tensors, padding, strides, dilations, activation.
_EXPECTED = (
    ("CONV_2D", ("x", "conv/w", "conv/b", "conv"), "SAME", (2, 1), (1, 3), 3),
    ("TRANSPOSE_CONV", ("conv", "up/w", None, "up"), "VALID", (1, 2), (1, 1), 1),
    ("FULLY_CONNECTED", ("up", "dense/w", None, "y"), "", (0, 0), (0, 0), 2),
)


def check(library: str) -> None:
    """Let a delegate take a network and compare all it reads with what the network is.

    Raises:
        DlasError: Something differs; says the first.
    """
    handler = _Observer()
    bridge = Bridge(Path(library), handler)
    try:
        _observe(bridge, handler)
    except (RuntimeError, ValueError):
        bridge.check()
        raise


def _observe(bridge: Bridge, handler: _Observer) -> None:
    litert = optional_import("ai_edge_litert.interpreter", extra="tflite", needed_for="the LiteRT delegate")
    interpreter = litert.Interpreter(
        model_content=_network(),
        experimental_delegates=[_Handle(bridge)],
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        num_threads=1,
    )
    given, result = interpreter.get_input_details()[0], interpreter.get_output_details()[0]
    x = handler.operators[0].x if handler.operators else None
    _expect("input 0", None if x is None else (x.shape, x.dtype), _seen(given))
    details = {d["name"]: d for d in interpreter.get_tensor_details()}
    for operator, expected in zip(handler.operators, _EXPECTED, strict=True):
        _compare(operator, expected, details)
    x = np.arange(105, dtype=np.int8).reshape(1, 5, 7, 3)
    interpreter.allocate_tensors()
    interpreter.set_tensor(given["index"], x)
    interpreter.invoke()
    _expect("the first input", handler.first.tolist(), x.view(np.uint8).reshape(-1).tolist())
    _expect("the result", interpreter.get_tensor(result["index"]).tolist(), [[3] * 6])


class _Handle:
    def __init__(self, bridge: Bridge) -> None:
        self._bridge = bridge

    def _get_native_delegate_pointer(self) -> int:
        return self._bridge.pointer


class _Observer:
    """Takes every operator and computes nothing."""

    def __init__(self) -> None:
        self.operators: list[Operator] = []
        self.first = np.zeros(0, np.uint8)

    def consider(self, operator: Operator) -> int:
        self.operators.append(operator)
        return len(self.operators) - 1

    def unreadable(self, graph: int, node: int, op: str) -> None:
        """Nothing: that it is missing shows."""

    def shape(self, number: int, x: tuple[int, ...]) -> Sequence[int]:
        _expect("a shape", x, self.operators[number].x.shape)
        return self.operators[number].y.shape

    def run(self, number: int, x: np.ndarray, y: np.ndarray) -> None:
        if number == 0:
            self.first = x.copy()
        else:  # what the operator before has written
            _expect("a value between two operators", x.tolist(), [number] * x.size)
        y[:] = number + 1


def _expect(what: str, found: Any, wanted: Any) -> None:
    if found != wanted:
        raise DlasError(f"{what} is read as {found}, it is {wanted}")


def _seen(details: dict[str, Any]) -> tuple[tuple[int, ...], str]:
    return tuple(details["shape"].tolist()), np.dtype(details["dtype"]).name


def _compare(operator: Operator, expected: tuple[Any, ...], details: dict[str, Any]) -> None:
    op, names, *rest = expected
    read = (operator.x, operator.weight, operator.bias, operator.y)
    _expect("an operator", operator.op, op)
    _expect(f"{op}'s tensors", tuple(None if t is None else t.name for t in read), names)
    options = [operator.padding, operator.strides, operator.dilations, operator.activation]
    if op == "FULLY_CONNECTED":  # it has no window
        options = ["", (0, 0), (0, 0), operator.activation]
        _expect("weights_format, keep_dims", (operator.weights_format, operator.keep_dims), (0, False))
    _expect(f"{op}'s options", options, rest)
    for tensor in read:
        if tensor is not None:
            _compare_tensor(tensor, details[tensor.name])


def _compare_tensor(tensor: Tensor, details: dict[str, Any]) -> None:
    name, quantization = tensor.name, details["quantization_parameters"]
    _expect(f"{name}", (tensor.shape, tensor.dtype), _seen(details))
    _expect(f"{name}'s index", tensor.index, details["index"])
    _expect(f"{name}'s scales", list(tensor.scales), quantization["scales"].tolist())
    _expect(f"{name}'s zero points", list(tensor.zero_points), quantization["zero_points"].tolist())
    content = next(has for n, *_, has in _TENSORS if n == name)
    _expect(f"{name}'s content", tensor.data is not None, content)
    if tensor.data is not None:
        _expect(f"{name}'s content", tensor.data.reshape(-1).tolist(), _content(name).reshape(-1).tolist())


def _content(name: str) -> np.ndarray:
    shape, dtype = next((s, d) for n, s, d, *_ in _TENSORS if n == name)
    if name == "up/shape":
        return np.array([1, 4, 15, 2], np.int32)
    return (np.arange(np.prod(shape)) % 120).astype(dtype.lower()).reshape(shape)


def _network() -> bytes:
    """A convolution, a transposed one and a dense layer, no two numbers of which are alike."""
    s = schema()
    index = {name: i for i, (name, *_) in enumerate(_TENSORS)}
    buffers, tensors = [aligned_buffer(b"")], []
    for name, shape, dtype, scales, zero, content in _TENSORS:
        tensor = s.TensorT()
        tensor.name, tensor.shape, tensor.type = name, np.array(shape, np.int32), getattr(s.TensorType, dtype)
        tensor.buffer = len(buffers) if content else 0
        if content:
            buffers.append(aligned_buffer(_content(name).tobytes()))
        if scales:
            tensor.quantization = s.QuantizationParametersT()
            tensor.quantization.scale = np.array(scales, np.float32)
            tensor.quantization.zeroPoint = np.full(len(scales), zero, np.int64)
        tensors.append(tensor)
    graph, model = s.SubGraphT(), s.ModelT()
    graph.tensors, graph.operators = tensors, []
    graph.inputs, graph.outputs = np.array([0], np.int32), np.array([len(tensors) - 1], np.int32)
    model.version, model.subgraphs, model.buffers, model.operatorCodes = 3, [graph], buffers, []
    for place, (op, inputs, output) in enumerate(_OPERATORS):
        code, operator = s.OperatorCodeT(), s.OperatorT()
        code.builtinCode = code.deprecatedBuiltinCode = getattr(s.BuiltinOperator, op)
        code.version = 3
        operator.opcodeIndex = place
        operator.inputs = np.array([index[n] for n in inputs], np.int32)
        operator.outputs = np.array([index[output]], np.int32)
        operator.builtinOptions = _options(s, op)
        kind = type(operator.builtinOptions).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(s.BuiltinOptions, kind)
        graph.operators.append(operator)
        model.operatorCodes.append(code)
    return pack(model)


def _options(s: Any, op: str) -> Any:
    made = {"CONV_2D": s.Conv2DOptionsT, "TRANSPOSE_CONV": s.TransposeConvOptionsT}.get(
        op, s.FullyConnectedOptionsT
    )()
    kinds = s.ActivationFunctionType
    if op == "CONV_2D":
        made.padding, made.strideH, made.strideW = s.Padding.SAME, 2, 1
        made.dilationHFactor, made.dilationWFactor, made.fusedActivationFunction = 1, 3, kinds.RELU6
    elif op == "TRANSPOSE_CONV":
        made.padding, made.strideH, made.strideW = s.Padding.VALID, 1, 2
        made.fusedActivationFunction = kinds.RELU
    else:
        made.fusedActivationFunction = kinds.RELU_N1_TO_1
    return made
