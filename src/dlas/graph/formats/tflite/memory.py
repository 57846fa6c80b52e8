"""Memory that the computed tensors of a tflite file take on a microcontroller, and the operators it must link."""

from __future__ import annotations

import math
from collections import Counter

import numpy as np

from dlas.graph.formats.tflite.flat import Network

ALIGNMENT = 16  # of every tensor in TensorFlow Lite Micro's arena

# Builtin -> the function of MicroMutableOpResolver that registers it.
MICRO = {
    kind: f"Add{name}"
    for kind, name in {
        "ABS": "Abs", "ADD": "Add", "ADD_N": "AddN", "ARG_MAX": "ArgMax", "ARG_MIN": "ArgMin",
        "AVERAGE_POOL_2D": "AveragePool2D", "BATCH_MATMUL": "BatchMatMul", "BATCH_TO_SPACE_ND": "BatchToSpaceNd",
        "BROADCAST_ARGS": "BroadcastArgs", "BROADCAST_TO": "BroadcastTo", "CAST": "Cast", "CEIL": "Ceil",
        "CONCATENATION": "Concatenation", "CONV_2D": "Conv2D", "COS": "Cos", "CUMSUM": "CumSum",
        "DEPTHWISE_CONV_2D": "DepthwiseConv2D", "DEPTH_TO_SPACE": "DepthToSpace", "DEQUANTIZE": "Dequantize",
        "DIV": "Div", "ELU": "Elu", "EQUAL": "Equal", "EXP": "Exp", "EXPAND_DIMS": "ExpandDims", "FILL": "Fill",
        "FLOOR": "Floor", "FLOOR_DIV": "FloorDiv", "FLOOR_MOD": "FloorMod", "FULLY_CONNECTED": "FullyConnected",
        "GATHER": "Gather", "GATHER_ND": "GatherNd", "GREATER": "Greater", "GREATER_EQUAL": "GreaterEqual",
        "HARD_SWISH": "HardSwish", "IF": "If", "L2_NORMALIZATION": "L2Normalization", "L2_POOL_2D": "L2Pool2D",
        "LEAKY_RELU": "LeakyRelu", "LESS": "Less", "LESS_EQUAL": "LessEqual", "LOG": "Log",
        "LOGICAL_AND": "LogicalAnd", "LOGICAL_NOT": "LogicalNot", "LOGICAL_OR": "LogicalOr", "LOGISTIC": "Logistic",
        "LOG_SOFTMAX": "LogSoftmax", "MAXIMUM": "Maximum", "MAX_POOL_2D": "MaxPool2D", "MEAN": "Mean",
        "MINIMUM": "Minimum", "MIRROR_PAD": "MirrorPad", "MUL": "Mul", "NEG": "Neg", "NOT_EQUAL": "NotEqual",
        "PACK": "Pack", "PAD": "Pad", "PADV2": "PadV2", "PRELU": "Prelu", "QUANTIZE": "Quantize",
        "REDUCE_MAX": "ReduceMax", "RELU": "Relu", "RELU6": "Relu6", "RESHAPE": "Reshape",
        "RESIZE_BILINEAR": "ResizeBilinear", "RESIZE_NEAREST_NEIGHBOR": "ResizeNearestNeighbor", "ROUND": "Round",
        "RSQRT": "Rsqrt", "SELECT_V2": "SelectV2", "SHAPE": "Shape", "SIN": "Sin", "SLICE": "Slice",
        "SOFTMAX": "Softmax", "SPACE_TO_BATCH_ND": "SpaceToBatchNd", "SPACE_TO_DEPTH": "SpaceToDepth",
        "SPLIT": "Split", "SPLIT_V": "SplitV", "SQRT": "Sqrt", "SQUARE": "Square",
        "SQUARED_DIFFERENCE": "SquaredDifference", "SQUEEZE": "Squeeze", "STRIDED_SLICE": "StridedSlice",
        "SUB": "Sub", "SUM": "Sum", "SVDF": "Svdf", "TANH": "Tanh", "TRANSPOSE": "Transpose",
        "TRANSPOSE_CONV": "TransposeConv", "UNIDIRECTIONAL_SEQUENCE_LSTM": "UnidirectionalSequenceLSTM",
        "UNPACK": "Unpack", "WHILE": "While", "ZEROS_LIKE": "ZerosLike",
    }.items()
}  # fmt: skip
_LAYERS = ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED", "TRANSPOSE_CONV")


def operators(network: Network) -> Counter[str]:
    """Builtins of a network with their number, by name."""
    return Counter(dict(sorted(Counter(op.kind for op in network.operations).items())))


def micro_refusals(network: Network) -> tuple[str, ...]:
    """Why TensorFlow Lite Micro cannot run a network; empty when nothing is known against it."""
    missing = sorted({op.kind for op in network.operations} - MICRO.keys())
    reasons = [f"TensorFlow Lite Micro has no {kind}" for kind in missing]
    for op in network.operations:
        if op.kind not in _LAYERS:
            continue
        x, weight = (
            network.tensors[i] for i in (op.inputs[:2] if op.kind != "TRANSPOSE_CONV" else op.inputs[2:0:-1])
        )
        if x.dtype == "uint8":
            reasons.append("TensorFlow Lite Micro computes in int8, not in uint8")
        elif x.dtype == "float32" and weight.dtype == "int8":
            reasons.append("TensorFlow Lite Micro has no kernels for int8 weights with float activations")
    if any(t.dtype == "float16" for t in network.tensors):
        reasons.append("TensorFlow Lite Micro has no kernels for float16")
    return tuple(dict.fromkeys(reasons))


def arena_bytes(network: Network) -> int:
    """Bytes of the arena that the computed tensors need when those not needed at once share memory.

    Greedy placement by size, as TensorFlow Lite Micro's own planner does it: the largest tensor first, each at the
    lowest address that is free for as long as it lives. Inputs live from the start, outputs to the end. What kernels
    ask for as scratch and the interpreter for its own tables comes on top.
    """
    spans = _lifetimes(network)
    sizes = {i: _aligned(network, i) for i in spans}
    placed: list[tuple[int, int, int, int]] = []  # offset, end, first, last
    for i in sorted(spans, key=lambda i: (-sizes[i], i)):
        first, last = spans[i]
        offset = 0
        for start, end, since, until in sorted(placed):
            together = since <= last and first <= until
            if together and offset < end and start < offset + sizes[i]:
                offset = end
        placed.append((offset, offset + sizes[i], first, last))
    return max((end for _, end, _, _ in placed), default=0)


def _lifetimes(network: Network) -> dict[int, tuple[int, int]]:
    """First and last step in which each computed tensor is in use."""
    end = len(network.operations)
    spans: dict[int, tuple[int, int]] = dict.fromkeys(network.inputs, (0, 0))
    for step, op in enumerate(network.operations):
        for i in op.outputs:
            spans[i] = (step, step)
        for i in op.inputs:
            if i in spans:
                spans[i] = (spans[i][0], step)
    for i in network.outputs:
        if i in spans:
            spans[i] = (spans[i][0], end)
    return spans


def _aligned(network: Network, i: int) -> int:
    tensor = network.tensors[i]
    size = math.prod(tensor.shape) * np.dtype(tensor.dtype).itemsize
    return -(-size // ALIGNMENT) * ALIGNMENT
