"""Operators of LiteRT as nodes of the engine, which is the form that accelerators take.

LiteRT's tensors are channels-last; a node's are in ONNX order. Multipliers, shifts and bounds are those of the engine.
"""

from __future__ import annotations

import math
from dataclasses import replace
from typing import Any

import numpy as np

from dlas.core.errors import ShapeError
from dlas.graph.formats.tflite.padding import explicit_pads, transposed_pads
from dlas.kernels.kernel import Node, Operand
from dlas.runtime.delegate.bridge import Operator, Tensor
from dlas.runtime.engine._quantized_factors import Grid, bounds, weighted

ENGINE = {"CONV_2D": "QConv", "FULLY_CONNECTED": "QDense", "TRANSPOSE_CONV": "QConvTranspose"}
"""Operators that are converted, and what the engine calls them."""
_ACTIVATIONS: dict[int, tuple[float | None, float | None]] = {
    0: (None, None),
    1: (0.0, None),
    2: (-1.0, 1.0),
    3: (0.0, 6.0),
}
_BYTES = ("int8", "uint8")


def macs(operator: Operator) -> int:
    """Multiply-accumulates, counted dense."""
    weight = operator.weight.shape
    if operator.op == "TRANSPOSE_CONV":
        return math.prod(operator.x.shape) * math.prod(weight[:3])
    if operator.op == "DEPTHWISE_CONV_2D":
        return math.prod(operator.y.shape) * math.prod(weight[1:3])
    return math.prod(operator.y.shape) * math.prod(weight[1:])


def refusal(operator: Operator) -> str:
    """Why an operator has no such node, or an empty string."""
    x, weight, bias, y = operator.x, operator.weight, operator.bias, operator.y
    if operator.op not in ENGINE:
        return "it is depthwise"
    if x.dtype not in _BYTES or y.dtype != x.dtype:
        return f"it computes {x.dtype} to {y.dtype}, not integers of 8 bits"
    if weight.dtype != x.dtype:
        return f"its weights are {weight.dtype}"
    if weight.data is None:
        return "its weights are not constant"
    if bias is not None and (bias.dtype != "int32" or bias.data is None):
        return f"its bias is {bias.dtype}" if bias.dtype != "int32" else "its bias is not constant"
    if len(x.scales) != 1 or len(y.scales) != 1 or not weight.scales:
        return "its tensors have no scale, or several"
    if len(weight.scales) > 1 and (weight.axis or len(weight.scales) != weight.shape[0]):
        return "its weights do not have one scale per output channel"
    if weight.dtype == "int8" and any(weight.zero_points):
        return "its weights have a zero point"
    if len(set(weight.zero_points)) > 1:
        return "its weights have several zero points"
    if operator.activation not in _ACTIVATIONS:
        return "its activation is no bound"
    return _shape_refusal(operator)


def _shape_refusal(operator: Operator) -> str:
    x, weight, y = operator.x, operator.weight, operator.y
    if operator.op == "FULLY_CONNECTED":
        if operator.weights_format:
            return "its weights are shuffled"
        return "" if len(weight.shape) == 2 else "its weights are no matrix"
    if len(x.shape) != 4 or len(weight.shape) != 4 or len(y.shape) != 4 or not operator.padding:
        return "it is no convolution of images"
    return ""


def result_shape(operator: Operator, x: tuple[int, ...]) -> tuple[int, ...]:
    """Shape of the result for an input of the shape ``x``, both channels last.

    A transposed convolution keeps the height and width that the file gives it.
    """
    weight, y = operator.weight.shape, operator.y.shape
    if operator.op == "FULLY_CONNECTED":
        if operator.keep_dims:
            return (*x[:-1], weight[0])
        return (math.prod(x) // weight[1], weight[0])
    if operator.op == "TRANSPOSE_CONV":
        return (x[0], *y[1:])
    size = []
    for length, kernel, stride, dilation in zip(
        x[1:3], weight[1:3], operator.strides, operator.dilations, strict=True
    ):
        reach = 1 if operator.padding == "SAME" else (kernel - 1) * dilation + 1
        size.append((length - reach) // stride + 1)
    return (x[0], *size, weight[0])


def resized(operator: Operator, x: tuple[int, ...]) -> Operator:
    """The operator for an input of another shape.

    Raises:
        ShapeError: Its weights do not take such an input.
    """
    if not _takes(operator, x):
        raise ShapeError(f"{operator.op} {operator.y.name!r} does not take an input of shape {list(x)}")
    y = replace(operator.y, shape=result_shape(operator, x))
    return replace(operator, x=replace(operator.x, shape=x), y=y)


def _takes(operator: Operator, x: tuple[int, ...]) -> bool:
    if operator.op == "FULLY_CONNECTED":
        return bool(x) and math.prod(x) % operator.weight.shape[1] == 0
    if len(x) != 4 or x[3] != operator.x.shape[3]:
        return False
    if operator.op == "TRANSPOSE_CONV":
        return x[1:] == operator.x.shape[1:]
    return min(result_shape(operator, x)) > 0


def engine_node(operator: Operator, rounding: str) -> Node:
    """The node of an operator that :func:`refusal` says nothing against.

    Args:
        operator: Its weights are constant.
        rounding: Of the accelerator, ``double`` or ``single``.
    """
    op, x, y = ENGINE[operator.op], _grid(operator.x), _grid(operator.y)
    low, high = bounds(y, _ACTIVATIONS[operator.activation], rounding)
    attributes: dict[str, Any] = {
        "x_zero_point": x.zero_point, "y_zero_point": y.zero_point, "act_min": low, "act_max": high,
        "rounding": rounding,
    }  # fmt: skip
    more, _ = weighted(op, x, np.array(operator.weight.scales, np.float32), y, rounding)
    attributes |= more
    if operator.op != "FULLY_CONNECTED":
        attributes |= _window(operator)
    bias = None if operator.bias is None else operator.bias.data
    inputs = (_operand(operator, operator.x), Operand.of(_weights(operator)))
    return Node(
        op,
        operator.y.name,
        attributes,
        (*inputs, None if bias is None else Operand.of(bias)),
        (_operand(operator, operator.y),),
    )


def into(operator: Operator, x: np.ndarray) -> np.ndarray:
    """What the node takes, of the bytes of LiteRT's input."""
    given = x.view(operator.x.dtype)
    if operator.op == "FULLY_CONNECTED":
        return given.reshape(-1, operator.weight.shape[1])
    return given.reshape(operator.x.shape).transpose(0, 3, 1, 2)


def back(operator: Operator, found: np.ndarray) -> np.ndarray:
    """A result of the node in LiteRT's order, flat bytes."""
    if operator.op != "FULLY_CONNECTED":
        found = found.transpose(0, 2, 3, 1)
    return np.ascontiguousarray(found).reshape(-1).view(np.uint8)


def _grid(tensor: Tensor) -> Grid:
    return Grid(tensor.scales[0], tensor.zero_points[0], tensor.dtype)


def _operand(operator: Operator, tensor: Tensor) -> Operand:
    shape = tensor.shape
    if operator.op == "FULLY_CONNECTED":
        width = operator.weight.shape[0 if tensor is operator.y else 1]
        return Operand((math.prod(shape) // width, width), tensor.dtype)
    return Operand((shape[0], shape[3], shape[1], shape[2]), tensor.dtype)


def _weights(operator: Operator) -> np.ndarray:
    """Weights less their zero point in ONNX order: int8, or int16 where they need it."""
    stored = operator.weight.data
    assert stored is not None
    centred = stored.astype(np.int16) - operator.weight.zero_points[0]
    fits = centred.min(initial=0) >= -128 and centred.max(initial=0) <= 127
    axes = {"CONV_2D": (0, 3, 1, 2), "TRANSPOSE_CONV": (3, 0, 1, 2)}.get(operator.op, (0, 1))
    return np.ascontiguousarray(centred.astype(np.int8 if fits else np.int16).transpose(axes))


def _window(operator: Operator) -> dict[str, Any]:
    size, kernel = operator.x.shape[1:3], operator.weight.shape[1:3]
    strides, dilations = operator.strides, operator.dilations
    window: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations}
    if operator.op == "CONV_2D":
        pads = explicit_pads(operator.padding, size, kernel, strides, dilations)
        return window | {"pads": tuple(pads), "group": operator.x.shape[3] // operator.weight.shape[3]}
    # What the pads do not say about the size of the result, its operand says.
    pads, _ = transposed_pads(operator.padding, size, kernel, strides, dilations, operator.y.shape[1:3])
    return window | {"pads": tuple(pads), "group": 1}
