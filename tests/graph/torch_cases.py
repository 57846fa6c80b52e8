# ruff: noqa: E501 - one case per line reads better than wrapped ones
"""One line per use of an operator, and the network that makes it."""

from __future__ import annotations

from collections.abc import Callable
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnxruntime
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.model import Model

F = np.float32
MS = "com.microsoft"


@dataclass
class Case:
    """An operator, its inputs in order, its attributes; ``opset``, ``domain`` and ``outputs`` have their own names."""

    op: str
    inputs: tuple[Any, ...]
    attributes: dict[str, Any] = field(default_factory=dict)
    opset: int = 21
    domain: str = ""
    outputs: int = 1

    @property
    def kind(self) -> str:
        return f"{self.domain}.{self.op}" if self.domain else self.op


@dataclass
class Given:
    """An array that is an input of the graph; a plain array is stored in it."""

    array: np.ndarray


def case(
    op: str, *inputs: Any, opset: int = 21, domain: str = "", outputs: int = 1, **attributes: Any
) -> Case:
    return Case(op, inputs, attributes, opset, domain, outputs)


_RANDOM = np.random.default_rng(7)


def w(*shape: int) -> np.ndarray:
    """Stored weights."""
    return _RANDOM.standard_normal(shape).astype(F)


def x(*shape: int) -> Given:
    """An input."""
    return Given(w(*shape))


def xp(*shape: int, low: float = 0.5, high: float = 2.0) -> Given:
    """An input within limits."""
    return Given(_RANDOM.uniform(low, high, shape).astype(F))


def xi(*shape: int, low: int = -9, high: int = 9, kind: Any = np.int64) -> Given:
    return Given(_RANDOM.integers(low, high, shape).astype(kind))


def i(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def s(value: float, kind: Any = F) -> np.ndarray:
    return np.array(value, kind)


def q(*shape: int, kind: Any = np.uint8) -> np.ndarray:
    limits = np.iinfo(kind)
    return _RANDOM.integers(limits.min, limits.max + 1, shape).astype(kind)


def xq(*shape: int, kind: Any = np.uint8) -> Given:
    return Given(q(*shape, kind=kind))


def xb(*shape: int) -> Given:
    return Given(_RANDOM.random(shape) > 0.5)


U8, I8 = np.uint8, np.int8
LSTM = {"hidden_size": 4, "outputs": 3}
GRU = {"hidden_size": 4, "outputs": 2}
HALVES = Given(np.array([0.5, 1.5, -0.5, 2.4, -2.5], F))
NAN = Given(np.array([np.nan, np.inf, -np.inf, 1], F))

CASES = [
    # element by element
    *[case(op, x(3, 4)) for op in ("Abs", "Atan", "Ceil", "Cos", "Cosh", "Erf", "Exp", "Floor", "Neg", "Sign", "Sin", "Sinh", "Tan", "Asinh")],
    *[case(op, xp(3, 4, low=-0.9, high=0.9)) for op in ("Acos", "Asin", "Atanh")],
    *[case(op, xp(3, 4, low=1.2)) for op in ("Acosh", "Log", "Reciprocal", "Sqrt")],
    *[case(op, x(2, 3, 4), w(3, 1)) for op in ("Add", "Mul", "Sub", "PRelu")],
    *[case(op, x(2, 3), xp(2, 1)) for op in ("Div", "Greater", "GreaterOrEqual", "Less", "LessOrEqual", "Equal")],
    *[case(op, xb(2, 3), xb(3)) for op in ("And", "Or", "Xor")],
    *[case(op, xi(2, 3, kind=np.int32), xi(3, kind=np.int32)) for op in ("BitwiseAnd", "BitwiseOr", "BitwiseXor", "Equal", "Add")],
    *[case(op, xi(2, 3), xi(3, low=1)) for op in ("Mod", "Div")],
    *[case(op, x(2, 3), w(3), x(2, 1)) for op in ("Min", "Max", "Sum", "Mean")],
    case("BitwiseNot", xi(2, 3, kind=I8)),
    case("BitShift", xq(2, 3), q(3) % 5, direction="LEFT"),
    case("BitShift", xq(2, 3), q(3) % 5, direction="RIGHT"),
    case("Not", xb(2, 3)),
    case("IsNaN", NAN),
    case("IsInf", NAN),
    case("IsInf", NAN, detect_negative=0),
    case("Round", HALVES),
    case("Identity", x(2, 3)),
    case("Mod", x(2, 3), xp(3), fmod=1),
    case("Pow", xp(3, 4), w(4)),
    case("Pow", xp(3, 4), s(2, np.int64)),
    case("Where", xb(3, 4), x(3, 1), w(4)),
    case("Clip", x(3, 4), s(-0.5), s(0.7)),
    case("Clip", x(3, 4), None, Given(s(0.7))),
    case("Cast", x(3, 4), to=TensorProto.FLOAT16),
    case("Cast", Given(4 * w(3, 4)), to=TensorProto.INT32),
    case("CastLike", xi(3, 4), w(1)),
    # activations
    *[case(op, Given(4 * w(3, 4))) for op in ("Celu", "Elu", "HardSigmoid", "HardSwish", "Gelu", "LeakyRelu", "Mish", "Relu", "Selu", "Sigmoid", "Softplus", "Softsign", "Tanh", "ThresholdedRelu", "Shrink")],
    *[case(op, Given(4 * w(3, 4)), alpha=0.3) for op in ("Celu", "Elu", "HardSigmoid", "LeakyRelu", "ThresholdedRelu")],
    case("Gelu", x(3, 4), approximate="tanh"),
    case("Shrink", x(3, 4), lambd=0.3, bias=0.1),
    case("Selu", x(3, 4), alpha=1.5, gamma=2.0),
    case("Swish", x(3, 4), opset=24),
    *[case(op, x(2, 3, 4), axis=a) for op in ("Softmax", "LogSoftmax", "Hardmax") for a in (-1, 1)],
    *[case(op, x(2, 3, 4), axis=1, opset=11) for op in ("Softmax", "LogSoftmax", "Hardmax")],
    case("Dropout", x(3, 4), s(0.3)),
    case("Dropout", x(3, 4), outputs=2),
    case("Gelu", x(3, 4), domain=MS),
    case("BiasGelu", x(3, 4), w(4), domain=MS),
    case("FastGelu", x(3, 4), w(4), domain=MS),
    case("QuickGelu", x(3, 4), domain=MS),
    # products
    case("MatMul", x(2, 4, 5), w(5, 3)),
    case("MatMul", x(5), w(2, 5, 3)),
    case("FusedMatMul", x(2, 4, 5), w(2, 3, 5), domain=MS, transB=1, alpha=0.5),
    case("Gemm", x(4, 5), w(3, 5), w(3), transB=1),
    case("Gemm", x(5, 4), w(5, 3), w(4, 1), alpha=0.5, beta=2.0, transA=1),
    case("Gemm", x(4, 5), w(5, 3)),
    case("Einsum", x(2, 3, 4), w(4, 5), equation="bij, jk -> bik"),
    case("Einsum", x(2, 3, 3), equation="...ii->...i"),
    case("Det", x(2, 3, 3)),
    # convolutions
    case("Conv", x(2, 3, 9), w(4, 3, 3), w(4), strides=[2], pads=[1, 2]),
    case("Conv", x(2, 4, 7, 9), w(6, 2, 3, 3), w(6), group=2, dilations=[2, 1]),
    case("Conv", x(1, 2, 5, 6, 7), w(3, 2, 2, 3, 2), pads=[1, 0, 1, 0, 1, 1]),
    case("Conv", x(1, 3, 8, 9), w(4, 3, 3, 2), auto_pad="SAME_UPPER", strides=[2, 2]),
    case("Conv", x(1, 3, 8, 9), w(4, 3, 3, 2), auto_pad="SAME_LOWER"),
    case("Conv", x(1, 3, 8, 9), w(4, 3, 3, 2), auto_pad="VALID"),
    case("ConvTranspose", x(2, 3, 5), w(3, 4, 3), w(4), strides=[2], pads=[1, 0], output_padding=[1]),
    case("ConvTranspose", x(2, 3, 4, 5), w(3, 4, 3, 3), w(4), strides=[2, 2], pads=[1, 1, 1, 1]),
    case("ConvTranspose", x(2, 4, 4, 5), w(4, 2, 3, 3), group=2, dilations=[2, 1]),
    case("ConvTranspose", x(1, 2, 3, 4, 3), w(2, 3, 2, 2, 3), strides=[2, 1, 2], output_padding=[1, 0, 0]),
    case("ConvTranspose", x(2, 3, 4, 5), w(3, 4, 3, 3), strides=[2, 2], auto_pad="SAME_UPPER"),
    case("ConvTranspose", x(2, 3, 4, 5), w(3, 4, 3, 3), strides=[2, 2], auto_pad="SAME_LOWER"),
    case("ConvTranspose", x(2, 3, 4, 5), w(3, 4, 3, 3), w(4), strides=[3, 2], output_shape=[10, 9]),
    case("ConvTranspose", x(2, 3, 4, 5), w(3, 4, 3, 3), w(4), strides=[3, 2], output_shape=[13, 12]),
    case("Col2Im", x(1, 12, 6), i(4, 4), i(2, 2), strides=[1, 2]),
    # pools
    *[case(op, x(2, 3, 5, 6)) for op in ("GlobalAveragePool", "GlobalMaxPool", "GlobalLpPool")],
    *[case(op, x(2, 3, 11), kernel_shape=[3], strides=[2]) for op in ("MaxPool", "AveragePool", "LpPool")],
    *[case(op, x(2, 3, 8, 10), kernel_shape=[3, 2], strides=[2, 3], pads=[1, 0, 0, 1]) for op in ("MaxPool", "AveragePool", "LpPool")],
    *[case(op, x(2, 3, 8, 10), kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1) for op in ("MaxPool", "AveragePool")],
    *[case(op, x(1, 2, 8, 9), kernel_shape=[3, 3], strides=[2, 2], auto_pad=a) for op in ("MaxPool", "AveragePool", "LpPool") for a in ("SAME_UPPER", "SAME_LOWER", "VALID")],
    *[case(op, x(1, 2, 9, 9), kernel_shape=[3, 2], dilations=[2, 3]) for op in ("MaxPool", "AveragePool", "LpPool")],
    *[case(op, x(1, 2, 4, 5, 6), kernel_shape=[2, 2, 2]) for op in ("MaxPool", "AveragePool")],
    case("AveragePool", x(2, 3, 7, 9), kernel_shape=[3, 3], pads=[0, 1, 2, 0], count_include_pad=1),
    case("AveragePool", x(2, 3, 7, 9), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 1, 1, 1], count_include_pad=1, ceil_mode=1),
    case("AveragePool", x(2, 3, 7, 9), kernel_shape=[2, 2], dilations=[2, 2], pads=[1, 1, 1, 1]),
    case("LpPool", x(2, 3, 7, 9), kernel_shape=[3, 3], p=3),
    case("LpPool", x(2, 3, 7, 9), kernel_shape=[3, 3], p=1, pads=[1, 1, 1, 1]),
    case("MaxPool", x(2, 3, 7, 9), kernel_shape=[3, 3], strides=[2, 2], pads=[1, 0, 1, 2], outputs=2),
    case("MaxPool", x(2, 3, 7, 9), kernel_shape=[2, 2], storage_order=1, outputs=2),
    case("MaxPool", xq(1, 2, 6, 6), kernel_shape=[2, 2], pads=[1, 1, 0, 0]),
    case("MaxPool", xq(1, 2, 6, 6, kind=I8), kernel_shape=[2, 2]),
    # normalisations
    case("BatchNormalization", x(2, 3, 4, 5), w(3), w(3), w(3), np.abs(w(3)) + F(0.5), epsilon=1e-3),
    case("InstanceNormalization", x(2, 3, 4, 5), w(3), w(3)),
    case("InstanceNormalization", x(2, 3, 7), w(3), w(3), epsilon=1e-2),
    case("GroupNormalization", x(2, 6, 4, 5), w(6), w(6), num_groups=3, opset=21),
    case("GroupNormalization", x(2, 6, 4, 5), w(3), w(3), num_groups=3, opset=18),
    case("LayerNormalization", x(2, 3, 4), w(4), w(4)),
    case("LayerNormalization", x(2, 3, 4), w(3, 4), axis=1, outputs=3),
    case("RMSNormalization", x(2, 3, 4), w(4), opset=23),
    case("MeanVarianceNormalization", x(2, 3, 4, 5)),
    case("LpNormalization", x(2, 3, 4), axis=1),
    case("LpNormalization", x(2, 3, 4), p=1),
    case("LRN", x(2, 6, 3, 3), size=3, alpha=0.1, beta=0.6, bias=1.2),
    case("LRN", x(2, 6, 3, 3), size=5),
    # reductions
    *[case(op, xp(2, 3, 4), i(*axes), keepdims=keep) for op in ("ReduceMean", "ReduceSum", "ReduceMax", "ReduceMin", "ReduceProd", "ReduceSumSquare", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceLogSumExp") for axes, keep in (((1,), 1), ((0, -1), 0), ((), 0))],
    *[case(op, xp(2, 3, 4), axes=[1], opset=11) for op in ("ReduceMean", "ReduceSum", "ReduceL2")],
    case("ReduceSum", x(2, 3), noop_with_empty_axes=1),
    case("ReduceSum", xi(2, 3, kind=np.int32), i(1)),
    case("ReduceMax", xi(2, 3, kind=I8), i(1)),
    case("ReduceMean", x(2, 3, 4), Given(i(1))),
    *[case(op, xi(3, 7), axis=1, keepdims=0, select_last_index=last) for op in ("ArgMax", "ArgMin") for last in (0, 1)],
    case("CumSum", x(3, 4), s(1, np.int64)),
    case("CumSum", x(3, 4), s(-2, np.int64), exclusive=1, reverse=1),
    case("TopK", x(3, 6), i(3), outputs=2),
    case("TopK", xi(5, 3), Given(i(2)), axis=0, largest=0, outputs=2),
    # recurrent layers
    case("RNN", x(5, 2, 3), w(1, 4, 3), w(1, 4, 4), w(1, 8), **GRU),
    case("RNN", x(5, 2, 3), w(2, 4, 3), w(2, 4, 4), w(2, 8), None, w(2, 2, 4), direction="bidirectional", activations=["Relu", "HardSigmoid"], activation_alpha=[0.3], clip=0.9, **GRU),
    case("GRU", x(5, 2, 3), w(1, 12, 3), w(1, 12, 4), w(1, 24), **GRU),
    case("GRU", x(5, 2, 3), w(1, 12, 3), w(1, 12, 4), w(1, 24), linear_before_reset=1, **GRU),
    case("GRU", x(5, 2, 3), w(2, 12, 3), w(2, 12, 4), w(2, 24), np.array([3, 5], np.int32), w(2, 2, 4), direction="bidirectional", linear_before_reset=1, **GRU),
    case("GRU", x(5, 2, 3), w(1, 12, 3), w(1, 12, 4), None, np.array([2, 4], np.int32), direction="reverse", **GRU),
    case("LSTM", x(5, 2, 3), w(1, 16, 3), w(1, 16, 4), w(1, 32), **LSTM),
    case("LSTM", x(5, 2, 3), w(1, 16, 3), w(1, 16, 4), w(1, 32), None, w(1, 2, 4), w(1, 2, 4), w(1, 12), direction="reverse", **LSTM),
    case("LSTM", x(5, 2, 3), w(2, 16, 3), w(2, 16, 4), w(2, 32), np.array([5, 2], np.int32), w(2, 2, 4), w(2, 2, 4), direction="bidirectional", **LSTM),
    case("LSTM", x(5, 2, 3), w(1, 16, 3), w(1, 16, 4), activations=["HardSigmoid", "Softsign", "LeakyRelu"], activation_alpha=[0.3, 0.2], activation_beta=[0.4], **LSTM),
    case("LSTM", x(5, 2, 3), w(1, 16, 3), w(1, 16, 4), input_forget=1, clip=2.0, **LSTM),
    case("LSTM", x(5, 2, 3), w(2, 16, 3), w(2, 16, 4), clip=0.2, direction="bidirectional", **LSTM),
    # resize
    *[case("Resize", x(1, 2, 5, 6), None, np.array([1, 1, 1.7, 0.6], F), mode=m, coordinate_transformation_mode=c) for m in ("nearest", "linear", "cubic") for c in ("half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel", "half_pixel_symmetric")],
    *[case("Resize", x(1, 2, 5, 6), None, None, i(1, 2, 9, 4), mode=m, coordinate_transformation_mode=c) for m in ("nearest", "linear", "cubic") for c in ("half_pixel", "align_corners")],
    *[case("Resize", x(1, 1, 5, 6), None, np.array([1, 1, 2, 2], F), nearest_mode=n) for n in ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")],
    case("Resize", x(1, 2, 5, 6), None, np.array([1, 1, 2, 0.5], F), mode="cubic", cubic_coeff_a=-0.5, exclude_outside=1),
    case("Resize", x(1, 2, 8, 8), None, np.array([1, 1, 0.6, 0.6], F), mode="linear", antialias=1),
    case("Resize", x(1, 2, 8, 8), None, np.array([1, 1, 0.6, 0.6], F), mode="cubic", antialias=1),
    case("Resize", x(1, 1, 4, 4), np.array([0, 0, 0.4, 0.6, 1, 1, 1.2, 1.7], F), None, i(1, 1, 3, 3), mode="linear", coordinate_transformation_mode="tf_crop_and_resize", extrapolation_value=9.0),
    case("Resize", x(1, 2, 5, 6), None, None, i(9, 9), axes=[2, 3], keep_aspect_ratio_policy="not_larger"),
    case("Resize", x(1, 2, 5, 6), None, None, i(9, 9), axes=[2, 3], mode="linear", keep_aspect_ratio_policy="not_smaller"),
    case("Resize", x(1, 2, 3, 4), np.zeros(0, F), Given(np.array([1, 1, 2, 3], F)), mode="linear"),
    case("Upsample", x(1, 2, 3, 4), np.array([1, 1, 2, 3], F), opset=9),
    case("Upsample", x(1, 2, 3, 4), np.array([1, 1, 2, 3], F), mode="linear", opset=9),
    case("Resize", x(1, 2, 3, 4), np.array([1, 1, 2, 3], F), opset=10),
    # look-ups
    case("Gather", x(3, 4), np.array([[0, -1], [2, 1]]), axis=1),
    case("Gather", w(5, 3), Given(i(0, 4, 4, 1, 2, 3))),
    case("GatherElements", x(2, 3), np.array([[0, -1, 1]]), axis=1),
    case("GatherND", x(2, 3, 4), np.array([[0, 1], [1, -1]])),
    case("GatherND", x(2, 3, 4), np.array([[[1]], [[0]]]), batch_dims=1),
    *[case("ScatterElements", x(3, 4), np.array([[0, -1], [2, 0]]), w(2, 2), axis=1, reduction=r) for r in ("none", "add", "mul", "max", "min")],
    case("Scatter", x(3, 4), np.array([[0, 1], [2, 0]]), w(2, 2), axis=1, opset=10),
    *[case("ScatterND", x(4, 3), np.array([[0], [-1], [0]]), w(3, 3), reduction=r) for r in ("add", "mul", "max", "min")],
    case("ScatterND", x(4, 3), np.array([[0, 1], [-1, 2]]), w(2)),
    case("OneHot", Given(np.array([[0, 2], [-1, 5]])), i(4), np.array([0.5, 3], F), axis=1),
    case("NonZero", Given(np.array([[1, 0, 2], [0, 0, 3]], F))),
    case("Compress", x(3, 4), np.array([True, False, True]), axis=1),
    case("Compress", x(3, 4), np.array([False, True, True])),
    case("ReverseSequence", x(4, 3, 2), i(2, 4, 1)),
    case("ReverseSequence", x(3, 4, 2), i(2, 4, 1), time_axis=1, batch_axis=0),
    *[case("GridSample", x(1, 2, 4, 5), xp(1, 3, 4, 2, low=-1.3, high=1.3), mode=m, padding_mode=p, align_corners=a) for m in ("linear", "nearest") for p, a in (("zeros", 0), ("border", 1), ("reflection", 0))],
    case("AffineGrid", x(2, 2, 3), i(2, 3, 4, 5), align_corners=1),
    case("NonMaxSuppression", xp(2, 9, 4, low=0, high=1), xp(2, 3, 9, low=0, high=1), s(4, np.int64), s(0.3), s(0.2)),
    case("NonMaxSuppression", xp(1, 9, 4, low=0, high=1), xp(1, 2, 9, low=0, high=1), s(9, np.int64), s(0.1), center_point_box=1),
    # moving and making elements
    case("Reshape", x(2, 3, 4), i(0, -1, 2)),
    case("Reshape", x(2, 3, 4), Given(i(6, 4))),
    case("Reshape", x(0, 3), i(3, 0), allowzero=1),
    case("Flatten", x(2, 3, 4), axis=-1),
    case("Flatten", x(2, 3, 4), axis=0),
    case("Squeeze", x(1, 3, 1, 2), i(0, -2)),
    case("Squeeze", x(1, 3, 1, 2)),
    case("Unsqueeze", x(3, 2), i(0, -1)),
    case("Transpose", x(2, 3, 4)),
    case("Transpose", x(2, 3, 4), perm=[1, 2, 0]),
    case("Concat", x(2, 3), w(2, 1), x(2, 2), axis=-1),
    case("Split", x(2, 7), i(1, 4, 2), axis=1, outputs=3),
    case("Split", x(2, 7), axis=1, num_outputs=3, outputs=3),
    case("Slice", x(5, 6), i(0, 1), i(2**62, -1), i(0, 1), i(2, 3)),
    case("Slice", x(5, 6), i(-1, 4), i(-(2**62), 0), i(0, 1), i(-2, -1)),
    case("Slice", x(5, 6), Given(i(1)), Given(i(4)), i(-1)),
    *[case("Pad", x(1, 2, 5, 6), i(0, 0, 1, 2, 0, 0, 3, 0), mode=m) for m in ("constant", "reflect", "edge", "wrap")],
    case("Pad", x(2, 5, 6), i(0, -1, 2, 0, 1, -2), s(0.5)),
    case("Pad", x(2, 5, 6), i(1, 2), Given(s(1.5)), i(-1)),
    case("Pad", x(2, 5, 6), Given(i(0, 1, 0, 0, 0, 2))),
    case("Expand", x(3, 1), i(2, 1, 4)),
    case("Tile", x(3, 2), i(2, 3)),
    case("Shape", x(2, 3, 4)),
    case("Shape", x(2, 3, 4), start=1, end=-1),
    case("Size", x(2, 3, 4)),
    case("Range", s(2), Given(s(9)), s(1.5)),
    case("Range", s(9, np.int64), Given(s(2, np.int64)), s(-3, np.int64)),
    case("ConstantOfShape", Given(i(2, 3)), value=helper.make_tensor("v", TensorProto.INT64, [1], [5])),
    case("ConstantOfShape", Given(i(2, 3))),
    case("EyeLike", x(3, 5), k=1),
    case("Trilu", x(2, 4, 5)),
    case("Trilu", x(2, 4, 5), s(-1, np.int64), upper=0),
    case("CenterCropPad", x(5, 7), i(8, 4)),
    case("CenterCropPad", x(3, 5, 7), i(4, 6), axes=[0, -1]),
    *[case("DepthToSpace", x(2, 8, 3, 4), blocksize=2, mode=m) for m in ("DCR", "CRD")],
    case("SpaceToDepth", x(2, 2, 6, 4), blocksize=2),
    # quantised
    case("QuantizeLinear", Given(3 * w(2, 3, 4)), s(0.05), s(3, I8)),
    case("QuantizeLinear", Given(3 * w(2, 3, 4)), np.array([0.05, 0.01, 0.1], F), np.array([3, 0, 200], U8), axis=1),
    case("QuantizeLinear", Given(3 * w(2, 3, 4)), s(0.001), s(-300, np.int16)),
    case("QuantizeLinear", Given(3 * w(2, 4)), np.abs(w(2, 2)) + F(0.1), np.zeros((2, 2), I8), axis=1, block_size=2),
    case("QuantizeLinear", Given(3 * w(2, 3)), Given(s(0.05))),
    case("DequantizeLinear", xq(2, 3, 4), s(0.05), s(3, U8)),
    case("DequantizeLinear", xq(2, 3, 4, kind=I8), np.array([0.05, 0.01, 0.1], F), np.array([3, 0, -7], I8), axis=1),
    case("DequantizeLinear", xi(2, 3, kind=np.int32), s(0.05)),
    case("DequantizeLinear", xq(2, 4, kind=I8), w(2, 2), axis=1, block_size=2),
    case("QuantizeLinear", Given(3 * w(2, 3)), s(0.05), s(3, U8), domain=MS),
    case("DequantizeLinear", xq(2, 3), s(0.05), s(3, U8), domain=MS),
    case("DynamicQuantizeLinear", x(3, 4), outputs=3),
    case("ConvInteger", xq(1, 2, 5, 6), q(3, 2, 3, 3, kind=U8), s(7, U8), s(100, U8), pads=[1, 0, 1, 0]),
    case("MatMulInteger", xq(2, 3, 4), q(4, 5, kind=I8), s(7, U8), q(5, kind=I8)),
    case("MatMulInteger", xq(3, 4), q(4, 5)),
    case("QLinearConv", xq(1, 4, 6, 7), s(0.1), s(120, U8), q(6, 2, 3, 3, kind=I8), np.abs(w(6)) * F(0.01) + F(0.01), np.zeros(6, I8), s(0.7), s(11, U8), np.arange(6, dtype=np.int32) * 9, group=2, pads=[1, 1, 1, 1], strides=[2, 1]),
    case("QLinearMatMul", xq(2, 3, 4), s(0.1), s(120, U8), q(4, 5, kind=I8), s(0.02), s(3, I8), s(0.4), s(11, U8)),
    case("QGemm", xq(3, 4), s(0.1), s(120, U8), q(5, 4, kind=I8), s(0.02), s(0, I8), np.arange(5, dtype=np.int32), s(0.3), s(11, U8), domain=MS, transB=1),
    case("QGemm", xq(3, 4), s(0.1), s(120, U8), q(4, 5, kind=I8), np.abs(w(5)), np.zeros(5, I8), None, domain=MS, alpha=0.5),
    *[case(op, xq(2, 3, 4), s(0.1), s(120, U8), q(3, 1), s(0.03), s(100, U8), s(r), s(50, U8), domain=MS) for op, r in (("QLinearAdd", 0.11), ("QLinearMul", 0.3))],
    case("QLinearGlobalAveragePool", xq(2, 3, 4, 5), s(0.1), s(120, U8), s(0.013), s(50, U8), domain=MS),
    case("QLinearAveragePool", xq(2, 3, 6, 6), s(0.1), s(120, U8), s(0.0917), s(100, U8), domain=MS, kernel_shape=[2, 2], pads=[1, 0, 0, 1]),
    case("QLinearConcat", s(0.1), s(100, U8), xq(2, 3), s(0.07), s(3, U8), xq(2, 1), s(0.13), s(90, U8), domain=MS, axis=1),
    case("QLinearSigmoid", xq(2, 30), s(0.05), s(120, U8), s(1 / 256), s(0, U8), domain=MS),
    case("QLinearLeakyRelu", xq(2, 30), s(0.05), s(120, U8), s(0.06), s(20, U8), domain=MS, alpha=0.2),
    case("QLinearSoftmax", xq(2, 9), s(0.05), s(120, U8), s(1 / 256), s(0, U8), domain=MS, axis=-1, opset_=13),
]  # fmt: skip

# What ONNX Runtime has no kernel for on the CPU; the ONNX suite checks them (test_torch_ops_onnx_cases).
NOT_IN_ONNX_RUNTIME: set[str] = {"BitCast", "CumProd"}
IDS = [f"{n}-{c.kind}" for n, c in enumerate(CASES)]


def named(given: Case) -> tuple[dict[str, np.ndarray], dict[str, np.ndarray], list[str]]:
    """Inputs, constants, and the names in the order of the operator."""
    inputs, constants, names = {}, {}, []
    for n, value in enumerate(given.inputs):
        name = "" if value is None else f"x{n}" if isinstance(value, Given) else f"c{n}"
        if isinstance(value, Given):
            inputs[name] = value.array
        elif value is not None:
            constants[name] = np.asarray(value)
        names.append(name)
    return inputs, constants, names


def model_of(given: Case) -> tuple[Model, dict[str, np.ndarray], bytes]:
    inputs, constants, names = named(given)
    outputs = [f"y{n}" for n in range(given.outputs)]
    attributes = {name.rstrip("_"): value for name, value in given.attributes.items()}
    node = helper.make_node(given.op, names, outputs, name="node", domain=given.domain, **attributes)
    graph = helper.make_graph(
        [node],
        "g",
        [
            helper.make_tensor_value_info(n, helper.np_dtype_to_tensor_dtype(a.dtype), a.shape)
            for n, a in inputs.items()
        ],
        [onnx.ValueInfoProto(name=n) for n in outputs],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    opsets = [helper.make_opsetid("", given.opset), helper.make_opsetid(MS, 1)]
    proto = helper.make_model(graph, opset_imports=opsets, ir_version=10)
    try:
        session = session_of(proto.SerializeToString())
    except (
        onnxruntime.capi.onnxruntime_pybind11_state.Fail
    ):  # it wants the outputs' types, and can tell shapes itself
        proto = onnx.shape_inference.infer_shapes(proto)
        session = session_of(proto.SerializeToString())
    for info, found in zip(proto.graph.output, session.get_outputs(), strict=True):
        info.type.tensor_type.elem_type = KINDS[found.type]
    return Model.from_proto(proto), inputs, proto.SerializeToString()


KINDS = {
    f"tensor({name})": kind
    for name, kind in {
        "float": 1, "uint8": 2, "int8": 3, "uint16": 4, "int16": 5, "int32": 6, "int64": 7, "bool": 9, "float16": 10,
    }.items()
}  # fmt: skip


def session_of(content: bytes) -> onnxruntime.InferenceSession:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 4
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(content, options)


def random_cases() -> list[Callable[[np.random.Generator], Case | None]]:
    """Makers of random cases; None where a draw is not valid."""
    return [convolution, transposed, pool, resize, recurrent, reduction, cut, pad, product, look_up]


def _normal(random: np.random.Generator, *shape: int) -> np.ndarray:
    return random.standard_normal(shape).astype(F)


def _pick(random: np.random.Generator, *choices: Any) -> Any:
    return choices[random.integers(len(choices))]


def _window(random: np.random.Generator, rank: int, dilated: bool = True) -> dict[str, Any]:
    """Attributes of a moving window; padding is smaller than the kernel."""
    kernel = random.integers(1, 4, rank)
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": random.integers(1, 4, rank)}
    if dilated:
        found["dilations"] = random.integers(1, 3, rank)
    auto = _pick(random, "NOTSET", "NOTSET", "SAME_UPPER", "SAME_LOWER", "VALID")
    if auto == "NOTSET":
        found["pads"] = random.integers(0, np.tile(kernel, 2))
    else:
        found["auto_pad"] = auto
        found["dilations"] = [1] * rank
    return {n: v if isinstance(v, str) else [int(k) for k in v] for n, v in found.items()}


def convolution(random: np.random.Generator) -> Case | None:
    rank, groups = int(random.integers(1, 4)), int(random.integers(1, 4))
    window, (a, b) = _window(random, rank), random.integers(1, 4, 2)
    weight = _normal(random, groups * b, a, *window["kernel_shape"])
    sizes = random.integers(6, 10 if rank < 3 else 8, rank)
    given = (
        Given(_normal(random, 2, groups * a, *sizes)),
        weight,
        _pick(random, None, _normal(random, groups * b)),
    )
    return case("Conv", *given[: 2 + (given[2] is not None)], group=groups, **window)


def transposed(random: np.random.Generator) -> Case | None:
    rank, groups = int(random.integers(1, 4)), int(random.integers(1, 3))
    window, (a, b) = _window(random, rank), random.integers(1, 4, 2)
    window["output_padding"] = [int(random.integers(n)) for n in window["strides"]]
    if "pads" in window:
        sizes = [
            (4 - 1) * n + (k - 1) * d + 1
            for n, k, d in zip(window["strides"], window["kernel_shape"], window["dilations"], strict=True)
        ]
        if any(n - window["pads"][m] - window["pads"][m + rank] < 1 for m, n in enumerate(sizes)):
            return None
    elif window["auto_pad"] != "VALID":  # what they mean for windows smaller than a step is not settled
        window["output_padding"] = [0] * rank
        if any(n > k for n, k in zip(window["strides"], window["kernel_shape"], strict=True)):
            return None
    weight = _normal(random, groups * a, b, *window["kernel_shape"])
    return case(
        "ConvTranspose",
        Given(_normal(random, 2, groups * a, *[4] * rank)),
        weight,
        _normal(random, groups * b),
        group=groups,
        **window,
    )


def pool(random: np.random.Generator) -> Case | None:
    op, rank = _pick(random, "MaxPool", "AveragePool", "LpPool"), int(random.integers(1, 4))
    window = _window(random, rank)
    if op != "LpPool":
        window["ceil_mode"] = int(random.integers(2)) if "pads" in window else 0
    if op == "AveragePool":
        window["count_include_pad"] = int(random.integers(2))
    return case(op, Given(_normal(random, 2, 2, *random.integers(6, 9, rank))), **window)


def resize(random: np.random.Generator) -> Case | None:
    mode = _pick(random, "nearest", "linear", "cubic")
    how = _pick(random, "half_pixel", "asymmetric", "align_corners", "pytorch_half_pixel")
    sizes = random.integers(2, 9, 2)
    return case(
        "Resize",
        Given(_normal(random, 1, 2, 5, 6)),
        None,
        None,
        i(1, 2, *sizes),
        mode=mode,
        coordinate_transformation_mode=how,
    )


def recurrent(random: np.random.Generator) -> Case | None:
    op, (steps, batch, size, hidden) = (
        _pick(random, "RNN", "GRU", "LSTM"),
        (int(n) for n in random.integers(1, 5, 4)),
    )
    gates = {"RNN": 1, "GRU": 3, "LSTM": 4}[op]
    direction = _pick(random, "forward", "reverse", "bidirectional")
    d = 2 if direction == "bidirectional" else 1
    optional = [
        _normal(random, d, 2 * gates * hidden),
        random.integers(1, steps + 1, batch).astype(np.int32),
        _normal(random, d, batch, hidden),
    ]
    if op == "LSTM":
        optional += [_normal(random, d, batch, hidden), _normal(random, d, 3 * hidden)]
    optional = [_pick(random, o, None) for o in optional]
    more = {"linear_before_reset": int(random.integers(2))} if op == "GRU" else {}
    weights = _normal(random, d, gates * hidden, size), _normal(random, d, gates * hidden, hidden)
    outputs = 3 if op == "LSTM" else 2
    return case(
        op,
        Given(_normal(random, steps, batch, size)),
        *weights,
        *optional,
        direction=direction,
        hidden_size=hidden,
        outputs=outputs,
        **more,
    )


def reduction(random: np.random.Generator) -> Case | None:
    op = _pick(random, *sorted({c.op for c in CASES if c.op.startswith("Reduce")}))
    rank = int(random.integers(1, 5))
    axes = random.permutation(rank)[: random.integers(1, rank + 1)] - rank * random.integers(2)
    value = np.abs(_normal(random, *random.integers(1, 5, rank))) + F(0.2)
    return case(op, Given(value), axes.astype(np.int64), keepdims=int(random.integers(2)))


def cut(random: np.random.Generator) -> Case | None:
    rank = int(random.integers(1, 5))
    axes = random.permutation(rank)[: random.integers(1, rank + 1)]
    first, last = random.integers(-8, 9, (2, len(axes)))
    steps = random.choice([-3, -2, -1, 1, 2, 3], len(axes))
    return case(
        "Slice",
        Given(_normal(random, *random.integers(1, 7, rank))),
        *(v.astype(np.int64) for v in (first, last, axes, steps)),
    )


def pad(random: np.random.Generator) -> Case | None:
    mode, rank = _pick(random, "constant", "constant", "edge", "reflect"), int(random.integers(1, 5))
    pads = random.integers(-2 if mode == "constant" else 0, 4, 2 * rank).astype(np.int64)
    return case("Pad", Given(_normal(random, *random.integers(5, 7, rank))), pads, s(0.25), mode=mode)


def product(random: np.random.Generator) -> Case | None:
    m, k, n, batch = random.integers(1, 7, 4)
    a = _pick(random, (m, k), (batch, m, k), (2, 1, m, k))
    b = _pick(random, (k, n), (batch, k, n), (k,))
    return case("MatMul", Given(_normal(random, *a)), _normal(random, *b))


def look_up(random: np.random.Generator) -> Case | None:
    rank, (rows, columns) = int(random.integers(1, 4)), random.integers(1, 4, 2)
    shape = random.integers(2, 6, rank)
    axis = int(random.integers(rank))
    index = random.integers(-shape[axis], shape[axis], (rows, columns))
    return case("Gather", Given(_normal(random, *shape)), index, axis=axis)
