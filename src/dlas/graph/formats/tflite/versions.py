"""Which version an operator of a tflite file carries, and the oldest runtime that knows it.

A runtime refuses operator versions above those it knows, so each operator gets the smallest version whose kernel takes
its tensors. The rules and the table are those of TensorFlow Lite's own converter (its ``op_version.cc`` and
``runtime_version.cc``), for the operators that the writer emits.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from dlas.graph.formats.tflite.builder import Cell

_INT8_UNVERSIONED = {
    "RESHAPE", "QUANTIZE", "LEAKY_RELU", "PRELU", "HARD_SWISH", "ELU", "RELU_N1_TO_1", "GATHER_ND", "DIV", "POW",
    "SELECT_V2", "DEPTH_TO_SPACE",
}  # fmt: skip
_INT8_FROM = {"CONV_2D": 3, "DEPTHWISE_CONV_2D": 3, "FULLY_CONNECTED": 4, "TILE": 3, "REVERSE_V2": 3}
_BEYOND_4_AXES = {"SLICE": 5, "PAD": 4, "PADV2": 4, "TRANSPOSE": 4, "STRIDED_SLICE": 4}
_BROADCAST_BEYOND_4_AXES = {"SUB": 3, "MAXIMUM": 3, "MINIMUM": 3, "DIV": 2}

# Oldest runtime per operator version, from version 1 on.
_RUNTIMES = {
    "ABS": "1.13.0 2.4.0 2.5.0 2.6.0 2.12.0",
    "ADD": "1.5.0 1.14.0 2.4.0 2.6.0 2.13.0",
    "ARG_MAX": "1.9.0 1.14.0 2.9.0",
    "ARG_MIN": "1.9.0 1.14.0 2.9.0",
    "AVERAGE_POOL_2D": "1.5.0 1.14.0 2.3.0",
    "BATCH_MATMUL": "2.3.0 2.3.0 2.4.0 2.5.0",
    "BROADCAST_TO": "2.5.0 2.5.0 2.5.0",
    "CAST": "1.5.0 2.7.0",
    "CEIL": "1.14.0",
    "CONCATENATION": "1.5.0 1.14.0 2.3.0 2.14.0",
    "CONV_2D": "1.5.0 1.14.0 1.14.0 2.3.0 2.4.0 2.9.0",
    "COS": "1.14.0",
    "CUMSUM": "2.4.0",
    "DEPTHWISE_CONV_2D": "1.5.0 1.12.0 1.14.0 2.2.0 2.3.0 2.3.0",
    "DEPTH_TO_SPACE": "2.1.0 2.5.0",
    "DEQUANTIZE": "1.13.1 1.14.0 1.15.0 2.2.0 2.7.0",
    "DIV": "1.6.0 2.3.0",
    "ELU": "1.14.0",
    "EQUAL": "1.14.0 1.14.0",
    "EXP": "1.7.0 2.12.0",
    "FLOOR": "1.9.0",
    "FULLY_CONNECTED": "1.5.0 1.10.0 1.14.0 1.14.0 2.0.0 2.1.0 2.3.0 2.3.0 2.3.0 2.11.0 2.15.0 2.17.0",
    "GATHER": "1.6.0 1.14.0 1.15.0 2.4.0 2.5.0",
    "GATHER_ND": "1.14.0 2.3.0 2.5.0",
    "GELU": "2.9.0 2.9.0",
    "GREATER": "1.14.0 1.14.0",
    "GREATER_EQUAL": "1.14.0 1.14.0",
    "HARD_SWISH": "1.15.0",
    "LEAKY_RELU": "1.13.1",
    "LESS": "1.14.0 1.14.0",
    "LESS_EQUAL": "1.14.0 1.14.0",
    "LOG": "1.14.0 2.15.0",
    "LOGICAL_AND": "1.11.0",
    "LOGICAL_NOT": "1.11.0",
    "LOGICAL_OR": "1.11.0",
    "LOGISTIC": "1.14.0 1.14.0",
    "LOG_SOFTMAX": "1.14.0 1.14.0",
    "MAXIMUM": "1.14.0 1.14.0 2.3.0",
    "MAX_POOL_2D": "1.5.0 1.14.0 2.3.0",
    "MEAN": "1.6.0 1.14.0 2.4.0",
    "MINIMUM": "1.14.0 1.14.0 2.3.0",
    "MIRROR_PAD": "1.13.1 2.3.0",
    "MUL": "1.5.0 1.14.0 1.15.0",
    "NEG": "1.9.0",
    "NOT_EQUAL": "1.14.0 1.14.0",
    "PACK": "1.11.0 1.14.0",
    "PAD": "1.5.0 1.14.0 2.4.0 2.6.0",
    "PADV2": "1.9.0 1.14.0 2.4.0 2.6.0",
    "POW": "1.10.0",
    "PRELU": "1.8.0",
    "QUANTIZE": "1.14.0 1.15.0 2.7.0",
    "REDUCE_MAX": "1.11.0 1.14.0 2.5.0",
    "REDUCE_MIN": "1.11.0 1.14.0 2.5.0",
    "REDUCE_PROD": "1.11.0 2.6.0",
    "RELU": "1.5.0 2.1.0",
    "RELU6": "1.5.0 1.14.0",
    "RELU_N1_TO_1": "1.5.0",
    "RESHAPE": "1.5.0",
    "RESIZE_BILINEAR": "1.7.0 1.14.0 2.2.0",
    "RESIZE_NEAREST_NEIGHBOR": "1.13.1 1.14.0 2.3.0",
    "REVERSE_V2": "1.14.0 2.2.0 2.5.0",
    "ROUND": "1.14.0",
    "RSQRT": "1.10.0 2.5.0",
    "SELECT_V2": "2.2.0",
    "SIGN": "2.11.0 2.12.0",
    "SIN": "1.9.0",
    "SLICE": "1.14.0 1.14.0 1.14.0 2.4.0 2.5.0",
    "SOFTMAX": "1.5.0 1.14.0",
    "SPACE_TO_DEPTH": "1.5.0 1.14.0",
    "SPLIT": "1.5.0 1.14.0 1.14.0",
    "SQRT": "1.10.0",
    "SQUARED_DIFFERENCE": "1.13.1 2.5.0",
    "STRIDED_SLICE": "1.6.0 1.14.0 2.1.0 2.2.0",
    "SUB": "1.6.0 1.14.0 2.3.0",
    "SUM": "1.10.0 1.15.0",
    "TANH": "1.14.0 1.14.0",
    "TILE": "1.10.1 2.2.0 2.8.0",
    "TOPK_V2": "1.7.0 1.14.0",
    "TRANSPOSE": "1.6.0 1.14.0 1.15.0 2.3.0 2.4.0 2.12.0",
    "TRANSPOSE_CONV": "1.9.0 2.2.0 2.3.0 2.13.0",
    "UNIDIRECTIONAL_SEQUENCE_LSTM": "1.13.1 1.14.0 2.3.0",
}


def operator_version(
    kind: str, inputs: Sequence[Cell | None], outputs: Sequence[Cell], options: Any = None
) -> int:
    """Smallest version of an operator that takes these tensors.

    Args:
        kind: Name of the builtin.
        inputs: Its input tensors; None for one left out.
        outputs: Its output tensors.
        options: Its options object, or None.
    """
    used = [c for c in (*inputs, *outputs) if c is not None]
    first = next((c for c in inputs if c is not None), used[0])
    weights = inputs[1] if len(inputs) > 1 else None
    if kind in _SPECIAL:
        return _SPECIAL[kind](first, weights, inputs, outputs, options)
    version = 1
    if kind not in _INT8_UNVERSIONED and any(c.dtype == "int8" for c in used):
        version = _INT8_FROM.get(kind, 2)
    if kind in ("TRANSPOSE", "STRIDED_SLICE", "REVERSE_V2") and first.dtype == "bool":
        version = 2 if kind == "REVERSE_V2" else 3
    if max(len(c.shape) for c in used) > 4:
        version = max(version, _BEYOND_4_AXES.get(kind, 1))
        if len({c.shape for c in inputs if c is not None}) > 1:
            version = max(version, _BROADCAST_BEYOND_4_AXES.get(kind, 1))
    return version


def oldest_runtime(operators: Iterable[tuple[str, int]]) -> str:
    """The oldest TensorFlow Lite release whose kernels know all these ``(builtin, version)``."""
    oldest = "1.5.0"
    for kind, version in operators:
        known = _RUNTIMES.get(kind, "").split()
        if 0 < version <= len(known):
            oldest = max(oldest, known[version - 1], key=_order)
    return oldest


def _order(release: str) -> tuple[int, ...]:
    return tuple(int(part) for part in release.split("."))


def _hybrid(first: Cell, weights: Cell | None) -> bool:
    return first.dtype == "float32" and weights is not None and weights.dtype == "int8"


def _per_channel(cell: Cell | None) -> bool:
    return cell is not None and cell.quant is not None and cell.quant.axis is not None


def _conv(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if weights is not None and first.shape[-1] != weights.shape[-1]:
        return 6
    if _hybrid(first, weights):
        return 5 if _per_channel(weights) else 2
    return 3 if first.dtype == "int8" else 1


def _depthwise(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if _hybrid(first, weights):
        return 6 if _per_channel(weights) else 4
    dilated = options is not None and max(options.dilationHFactor, options.dilationWFactor) > 1
    return 3 if first.dtype == "int8" else 2 if dilated else 1


def _dense(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if _hybrid(first, weights) and _per_channel(weights):
        return 12
    if len(inputs) < 3 or inputs[2] is None:
        return 6
    if options is not None and options.keepNumDims:
        return 5
    if _hybrid(first, weights):
        return 9 if options is not None and options.asymmetricQuantizeInputs else 3
    return 4 if first.dtype == "int8" else 1


def _transposed(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if options is not None and options.fusedActivationFunction:
        return 4
    if len(inputs) > 3 and inputs[3] is not None:
        return 3
    return 2 if weights is not None and weights.dtype == "int8" else 1


def _dequantize(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if first.dtype == "float16":
        return 3
    if first.dtype != "int8":
        return 1
    return 5 if _per_channel(first) else 2


def _multiply(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    quants = [None if c is None else c.quant for c in (*inputs, *outputs)]
    if len(quants) == 3 and all(q is not None for q in quants):
        a, b, y = (float(q.scale[0]) for q in quants if q is not None)
        if a * b / y >= 1.0:
            return 3
    return 2 if first.dtype == "int8" else 1


def _resize(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    nearest = hasattr(options, "alignCorners") and type(options).__name__.startswith("ResizeNearest")
    if options is not None and (options.halfPixelCenters or (nearest and options.alignCorners)):
        return 3
    return 2 if first.dtype == "int8" else 1


def _absolute(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    return {"int32": 5, "int8": 2, "uint8": 2}.get(first.dtype, 1)


def _rectify(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    return 2 if first.dtype in ("int8", "uint8") else 1


def _split(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    dtype = weights.dtype if weights is not None else ""
    return {"int32": 3, "int8": 2}.get(dtype, 1)


def _sign(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    return 2 if first.dtype == "int32" else 1


def _gather(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    if options is not None and options.batchDims:
        return 5
    return {"bool": 3, "int8": 2}.get(first.dtype, 1)


def _lstm(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    return 2 if _hybrid(first, inputs[2]) else 1


def _broadcast(first: Cell, weights: Cell | None, inputs: Any, outputs: Any, options: Any) -> int:
    return 2  # the builtin's number belonged to another operator before


_SPECIAL = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _depthwise,
    "FULLY_CONNECTED": _dense,
    "TRANSPOSE_CONV": _transposed,
    "DEQUANTIZE": _dequantize,
    "MUL": _multiply,
    "RESIZE_BILINEAR": _resize,
    "RESIZE_NEAREST_NEIGHBOR": _resize,
    "ABS": _absolute,
    "RELU": _rectify,
    "SPLIT": _split,
    "SIGN": _sign,
    "GATHER": _gather,
    "UNIDIRECTIONAL_SEQUENCE_LSTM": _lstm,
    "BROADCAST_TO": _broadcast,
}
