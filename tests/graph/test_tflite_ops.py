"""Operators that edge models use, each in a file of its own, read and compared with LiteRT's own kernels."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tflite_maker import File, agree

IMAGE = (1, 9, 7, 4)


def unary(
    kind: str, options: str = "", shape=(2, 5, 6, 3), dtype="float32", out="", positive=False, **fields
):
    def build(f: File) -> list[np.ndarray]:
        x, y = f.input(shape, dtype), f.output(shape, out or dtype)
        f.add(kind, [x], [y], f.options(options, **fields) if options else None)
        if dtype == "bool":
            return [f.rng.integers(0, 2, shape).astype(bool)]
        given = f.rng.standard_normal(shape) * 3
        return [(np.abs(given) + 0.1 if positive else given).astype(dtype)]

    return build


def binary(kind: str, options: str = "", a=(2, 5, 6, 3), b=(2, 5, 6, 3), dtype="float32", out="", **fields):
    def build(f: File) -> list[np.ndarray]:
        shape = np.broadcast_shapes(a, b)
        inputs = [f.input(a, dtype), f.input(b, dtype)]
        f.add(
            kind, inputs, [f.output(shape, out or dtype)], f.options(options, **fields) if options else None
        )
        if dtype == "bool":
            return [f.rng.integers(0, 2, s).astype(bool) for s in (a, b)]
        if np.dtype(dtype).kind in "iu":
            x, y = (f.rng.integers(-20, 20, s) for s in (a, b))
            if kind in ("DIV", "FLOOR_DIV", "FLOOR_MOD"):
                y = np.where(y == 0, 3, y)
            if kind == "POW":
                x, y = x % 5, np.abs(y) % 6
            if kind == "RIGHT_SHIFT":
                x, y = x * 1000, np.abs(y)
            return [x.astype(dtype), y.astype(dtype)]
        x, y = (f.rng.standard_normal(s).astype(dtype) * 2 for s in (a, b))
        if kind in ("EQUAL", "NOT_EQUAL", "GREATER_EQUAL", "LESS_EQUAL"):
            x, y = np.round(x), np.round(y)
        if kind == "POW":
            x = np.abs(x) + 0.1
        if kind in ("DIV", "FLOOR_DIV", "FLOOR_MOD"):
            y = np.where(np.abs(y) < 0.1, 0.5, y).astype(dtype)
        return [x, y]

    return build


def reduced(kind: str, axes, keep=False, shape=(2, 5, 6, 3), dtype="float32"):
    def build(f: File) -> None:
        x = f.input(shape, dtype)
        gone = {a % len(shape) for a in axes}
        out = [1 if a in gone else d for a, d in enumerate(shape) if keep or a not in gone]
        f.add(kind, [x, f.ints(*axes)], [f.output(out, dtype)], f.options("Reducer", keepDims=keep))

    return build


def moved(kind: str, shape, constants, out, options="", dtype="float32", feeds=None, version=1, **fields):
    def build(f: File):
        x = f.input(shape, dtype)
        given = [f.constant(np.asarray(c)) for c in constants]
        table = f.options(options, **fields) if options else None
        f.add(kind, [x, *given], [f.output(out, dtype)], table, version=version)
        return feeds

    return build


def i32(*values) -> np.ndarray:
    return np.array(values, np.int32)


def strided(shape, begin, end, steps, out, dtype="float32", **masks):
    return moved(
        "STRIDED_SLICE", shape, [i32(*begin), i32(*end), i32(*steps)], out, "StridedSlice", dtype, **masks
    )


def gather_nd(f: File) -> None:
    x = f.input((3, 4, 5))
    f.add("GATHER_ND", [x, f.constant(i32([0, 1], [2, 3], [1, 0]))], [f.output((3, 5))])


def gather_nd_computed(f: File) -> list[np.ndarray]:
    x, n = f.input((3, 4, 5)), f.input((2, 2, 3), "int32")
    f.add("GATHER_ND", [x, n], [f.output((2, 2))])
    return [
        f.rng.standard_normal((3, 4, 5)).astype(np.float32),
        f.rng.integers(0, 3, (2, 2, 3)).astype(np.int32),
    ]


def gather(x, indices, axis, batch, out):
    def build(f: File) -> list[np.ndarray]:
        tensors = [f.input(x), f.input(indices, "int32")]
        f.add("GATHER", tensors, [f.output(out)], f.options("Gather", axis=axis, batchDims=batch))
        return [
            f.rng.standard_normal(x).astype(np.float32),
            f.rng.integers(0, x[axis], indices).astype(np.int32),
        ]

    return build


def scatter(dtype):
    def build(f: File) -> list[np.ndarray]:
        n, u = f.input((4, 1), "int32"), f.input((4, 3), dtype)
        f.add("SCATTER_ND", [n, u, f.ints(6, 3)], [f.output((6, 3), dtype)], f.options("ScatterNd"))
        return [i32([1], [4], [1], [0]), (f.rng.standard_normal((4, 3)) * 4).astype(dtype)]

    return build


def sparse_to_dense(f: File) -> list[np.ndarray]:
    n, v = f.input((3, 2), "int32"), f.input((3,))
    default = f.constant(np.float32(-1))
    f.add("SPARSE_TO_DENSE", [n, f.ints(4, 5), v, default], [f.output((4, 5))], f.options("SparseToDense"))
    return [i32([0, 1], [2, 0], [3, 4]), np.array([5, 6, 7], np.float32)]


def segment_sum(f: File) -> None:
    x = f.input((5, 3))
    f.add("SEGMENT_SUM", [x, f.ints(0, 0, 1, 2, 2)], [f.output((3, 3))], f.options("SegmentSum"))


def unsorted(kind, dtype="float32", options="UnsortedSegmentSum"):
    def build(f: File) -> list[np.ndarray]:
        x, n = f.input((5, 3), dtype), f.input((5,), "int32")
        f.add(kind, [x, n, f.constant(np.int32(4))], [f.output((4, 3), dtype)], f.options(options))
        return [(f.rng.standard_normal((5, 3)) * 3).astype(dtype), i32(2, 0, 2, -1, 0)]

    return build


def update_slice(shape, size, begin):
    def build(f: File) -> list[np.ndarray]:
        x, u, n = f.input(shape), f.input(size), f.input((len(shape),), "int32")
        f.add("DYNAMIC_UPDATE_SLICE", [x, u, n], [f.output(shape)], f.options("DynamicUpdateSlice"))
        return [f.rng.standard_normal(s).astype(np.float32) for s in (shape, size)] + [i32(*begin)]

    return build


def top_k(shape, count, dtype="float32"):
    def build(f: File) -> None:
        x = f.input(shape, dtype)
        out = (*shape[:-1], count)
        outputs = [f.output(out, dtype), f.output(out, "int32")]
        f.add("TOPK_V2", [x, f.constant(np.int32(count))], outputs, f.options("TopKV2"))

    return build


def one_hot(axis, dtype="float32"):
    def build(f: File) -> list[np.ndarray]:
        x = f.input((2, 3), "int32")
        out = [2, 3]
        out.insert(axis if axis >= 0 else 2, 5)
        numbers = [f.constant(np.array(v, dtype)) for v in (1, 0)]
        f.add(
            "ONE_HOT",
            [x, f.constant(np.int32(5)), *numbers],
            [f.output(out, dtype)],
            f.options("OneHot", axis=axis),
        )
        return [i32([0, 4, -1], [2, 7, 1])]

    return build


def reverse_sequence(time, batch):
    def build(f: File) -> list[np.ndarray]:
        shape = (3, 5, 3, 2)
        x, n = f.input(shape), f.input((3,), "int32")
        f.add(
            "REVERSE_SEQUENCE",
            [x, n],
            [f.output(shape)],
            f.options("ReverseSequence", seqDim=time, batchDim=batch),
        )
        return [f.rng.standard_normal(shape).astype(np.float32), i32(3, 1, 2)]

    return build


def where(f: File) -> list[np.ndarray]:
    f.add("WHERE", [f.input((3, 4), "bool")], [f.output((1, 2), "int64")], f.options("Where"))
    return [f.rng.integers(0, 2, (3, 4)).astype(bool)]


def unique(f: File) -> list[np.ndarray]:
    x = f.input((6,))
    outputs = [f.output((1,)), f.output((6,), "int32")]
    f.add("UNIQUE", [x], outputs, f.options("Unique", idxOutType=f.kinds.TensorType.INT32))
    return [np.array([3, 1, 3, 2, 1, 9], np.float32)]


def select(kind, condition, a, b):
    def build(f: File) -> list[np.ndarray]:
        c, x, y = f.input(condition, "bool"), f.input(a), f.input(b)
        out = np.broadcast_shapes(a, b) if kind == "SELECT" else np.broadcast_shapes(condition, a, b)
        f.add(kind, [c, x, y], [f.output(out)], f.options("Select" if kind == "SELECT" else "SelectV2"))
        choices = [f.rng.standard_normal(s).astype(np.float32) for s in (a, b)]
        return [f.rng.integers(0, 2, condition).astype(bool), *choices]

    return build


def embedding(f: File) -> list[np.ndarray]:
    f.add("EMBEDDING_LOOKUP", [f.input((4,), "int32"), f.weights(6, 3)], [f.output((4, 3))])
    return [i32(5, 0, 2, 2)]


def fill(f: File) -> None:
    f.add("FILL", [f.ints(2, 3), f.input(())], [f.output((2, 3))])


def range_(f: File) -> list[np.ndarray]:
    one = f.constant(np.int32(1))
    x = f.input((), "int32")
    f.add("RANGE", [f.constant(np.int32(2)), x, one], [f.output((1,), "int32")])
    return [np.array(9, np.int32)]


def shape_arithmetic(f: File) -> None:
    """The shape of a reshape that the file works out itself."""
    x = f.input((2, 3, 4))
    shape, part, pack = f.tensor((3,), "int32"), f.tensor((), "int32"), f.tensor((2,), "int32")
    product, y = f.tensor((), "int32"), f.output((2, 12))
    f.add("SHAPE", [x], [shape], f.options("Shape", outType=f.kinds.TensorType.INT32))
    first = f.options("StridedSlice", shrinkAxisMask=1)
    f.add("STRIDED_SLICE", [shape, f.ints(0), f.ints(1), f.ints(1)], [part], first)
    f.add("MUL", [f.constant(np.int32(4)), f.constant(np.int32(3))], [product], f.options("Mul"))
    f.add("PACK", [part, product], [pack], f.options("Pack", valuesCount=2))
    f.add("RESHAPE", [x, pack], [y], f.options("Reshape"))


def broadcast_args(f: File) -> None:
    x, shape = f.input((3, 1)), f.tensor((3,), "int32")
    f.add("BROADCAST_ARGS", [f.ints(3, 1), f.ints(2, 1, 4)], [shape])
    f.add("BROADCAST_TO", [x, shape], [f.output((2, 3, 4))], f.options("BroadcastTo"), version=2)


def set_diag(rows, columns):
    def build(f: File) -> None:
        x, d = f.input((2, rows, columns)), f.input((2, min(rows, columns)))
        f.add("MATRIX_SET_DIAG", [x, d], [f.output((2, rows, columns))], f.options("MatrixSetDiag"))

    return build


def conv_3d(padding, strides, dilations, bias):
    def build(f: File) -> None:
        x, w = f.input((1, 5, 6, 7, 3)), f.weights(2, 3, 2, 3, 4)
        kernel = (2, 3, 2)
        out = [
            -(-n // s) if padding == 0 else (n - (k - 1) * d - 1) // s + 1
            for n, k, s, d in zip((5, 6, 7), kernel, strides, dilations, strict=True)
        ]
        o = f.options("Conv3D", padding=padding, strideD=strides[0], strideH=strides[1], strideW=strides[2],
                      dilationDFactor=dilations[0], dilationHFactor=dilations[1], dilationWFactor=dilations[2],
                      fusedActivationFunction=1 if bias else 0)  # fmt: skip
        f.add("CONV_3D", [x, w, f.weights(4)] if bias else [x, w], [f.output((1, *out, 4))], o)

    return build


def conv_3d_transposed(padding, out, strides):
    def build(f: File) -> None:
        x, w = f.input((1, 3, 4, 2, 4)), f.weights(2, 3, 2, 5, 4)
        o = f.options("Conv3D", padding=padding, strideD=strides[0], strideH=strides[1], strideW=strides[2],
                      dilationDFactor=1, dilationHFactor=1, dilationWFactor=1)  # fmt: skip
        f.add("CONV_3D_TRANSPOSE", [f.ints(1, *out, 5), w, x, f.weights(5)], [f.output((1, *out, 5))], o)

    return build


def transposed_with_bias(f: File) -> None:
    x, w = f.input((1, 5, 6, 3)), f.weights(4, 3, 3, 3)
    o = f.options("TransposeConv", padding=0, strideH=2, strideW=2, fusedActivationFunction=1)
    f.add(
        "TRANSPOSE_CONV", [f.ints(1, 10, 12, 4), w, x, f.weights(4)], [f.output((1, 10, 12, 4))], o, version=4
    )


def pool(kind, padding):
    def build(f: File) -> None:
        x = f.input(IMAGE)
        out = (5, 4) if padding == 0 else (4, 3)
        o = f.options("Pool2D", padding=padding, strideH=2, strideW=2, filterHeight=3, filterWidth=3)
        f.add(kind, [x], [f.output((1, *out, 4))], o)

    return build


def resize(kind, size, align, half):
    def build(f: File) -> None:
        o = f.options(kind, alignCorners=align, halfPixelCenters=half)
        name = "RESIZE_BILINEAR" if kind == "ResizeBilinear" else "RESIZE_NEAREST_NEIGHBOR"
        f.add(name, [f.input(IMAGE), f.ints(*size)], [f.output((1, *size, 4))], o, version=3)

    return build


def matmul(a, b, out, x=False, y=False):
    def build(f: File) -> None:
        f.add(
            "BATCH_MATMUL",
            [f.input(a), f.input(b)],
            [f.output(out)],
            f.options("BatchMatMul", adjX=x, adjY=y),
        )

    return build


def split_v(f: File) -> None:
    x = f.input((2, 7, 3))
    outputs = [f.output((2, n, 3)) for n in (2, 4, 1)]
    f.add(
        "SPLIT_V", [x, f.ints(2, -1, 1), f.constant(np.int32(1))], outputs, f.options("SplitV", numSplits=3)
    )


def unpack(f: File) -> None:
    f.add(
        "UNPACK",
        [f.input((2, 3, 4))],
        [f.output((2, 4)) for _ in range(3)],
        f.options("Unpack", num=3, axis=1),
    )


def pack(f: File) -> None:
    f.add(
        "PACK",
        [f.input((2, 4)), f.input((2, 4))],
        [f.output((2, 2, 4))],
        f.options("Pack", valuesCount=2, axis=1),
    )


def arg(kind, options):
    def build(f: File) -> None:
        f.add(kind, [f.input((2, 5, 4)), f.constant(np.int32(1))], [f.output((2, 4), "int32")],
              f.options(options, outputType=f.kinds.TensorType.INT32))  # fmt: skip

    return build


def cumsum(exclusive, reverse, dtype="float32"):
    def build(f: File) -> None:
        x = f.input((3, 4, 2), dtype)
        o = f.options("Cumsum", exclusive=exclusive, reverse=reverse)
        f.add("CUMSUM", [x, f.constant(np.int32(1))], [f.output((3, 4, 2), dtype)], o)

    return build


def slice_computed(f: File) -> list[np.ndarray]:
    x, n = f.input((4, 6)), f.input((2,), "int32")
    f.add("SLICE", [x, n, f.ints(2, 3)], [f.output((2, 3))], f.options("Slice"))
    return [f.rng.standard_normal((4, 6)).astype(np.float32), i32(1, 2)]


def strided_computed(f: File) -> list[np.ndarray]:
    x, n, m = f.input((4, 6)), f.input((2,), "int32"), f.input((2,), "int32")
    o = f.options("StridedSlice", shrinkAxisMask=1, endMask=2)
    f.add("STRIDED_SLICE", [x, n, m, f.ints(1, 2)], [f.output((2,))], o)
    return [f.rng.standard_normal((4, 6)).astype(np.float32), i32(-1, 2), i32(0, 0)]


def dilate(f: File) -> None:
    f.add("DILATE", [f.input((2, 3, 4)), f.ints(1, 2, 3), f.constant(np.float32(-2))], [f.output((2, 5, 10))],
          f.options("Dilate"))  # fmt: skip


def spectrum(kind, shape, points, squeezed=False):
    def build(f: File) -> None:
        rest = [points[0], points[1] // 2 + 1]
        wide = f.tensor((*shape[:-2], *rest), kind="COMPLEX64")
        f.add("RFFT2D", [f.input(shape), f.ints(*points)], [wide], f.options("Rfft2d"))
        out = [*shape[:-2], *rest]
        if squeezed:
            out.remove(1)
            narrow = f.tensor(out, kind="COMPLEX64")
            f.add("SQUEEZE", [wide], [narrow], f.options("Squeeze", squeezeDims=[len(shape) - 2]))
            wide = narrow
        f.add(kind, [wide], [f.output(out)])

    return build


CASES: dict[str, Callable] = {
    **{k.lower(): unary(k, o) for k, o in [
        ("ABS", "Abs"), ("CEIL", ""), ("COS", "Cos"), ("ELU", ""), ("EXP", "Exp"), ("FLOOR", ""), ("LOGISTIC", ""),
        ("NEG", "Neg"), ("RELU", ""), ("RELU6", ""), ("RELU_N1_TO_1", ""), ("RELU_0_TO_1", ""), ("ROUND", ""),
        ("SIN", ""), ("SQUARE", "Square"), ("TANH", ""), ("HARD_SWISH", "HardSwish"), ("ZEROS_LIKE", "ZerosLike"),
        ("SIGN", "Sign"), ("LOG_SOFTMAX", "LogSoftmax"), ("SOFTMAX", "Softmax"), ("GELU", "Gelu"),
        ("L2_NORMALIZATION", "L2Norm"),
    ]},
    **{k.lower(): unary(k, positive=True) for k in ("LOG", "SQRT", "RSQRT")},
    "softmax beta": unary("SOFTMAX", "Softmax", beta=0.7),
    "leaky": unary("LEAKY_RELU", "LeakyRelu", alpha=0.3),
    "gelu tanh": unary("GELU", "Gelu", approximate=True),
    "logical not": unary("LOGICAL_NOT", "LogicalNot", dtype="bool"),
    "abs int": unary("ABS", "Abs", dtype="int32"),
    "neg int": unary("NEG", "Neg", dtype="int32"),
    "sign int": unary("SIGN", "Sign", dtype="int32"),
    "fake quant": unary("FAKE_QUANT", "FakeQuant", min=-2.3, max=4.1, numBits=8),
    "fake quant narrow bits": unary("FAKE_QUANT", "FakeQuant", min=-1.0, max=0.5, numBits=4),
    "lrn": unary("LOCAL_RESPONSE_NORMALIZATION", "LocalResponseNormalization", IMAGE, radius=1, bias=1.5, alpha=0.3,
                 beta=0.7),
    "bucketize": unary("BUCKETIZE", "Bucketize", out="int32", boundaries=np.array([-2, 0, 0.5, 3], np.float32)),
    **{k.lower(): binary(k, o) for k, o in [
        ("ADD", "Add"), ("SUB", "Sub"), ("MUL", "Mul"), ("DIV", "Div"), ("MAXIMUM", "MaximumMinimum"),
        ("MINIMUM", "MaximumMinimum"), ("POW", "Pow"), ("SQUARED_DIFFERENCE", "SquaredDifference"),
        ("FLOOR_DIV", "FloorDiv"), ("FLOOR_MOD", "FloorMod"), ("ATAN2", "ATan2"), ("ADD_N", "AddN"),
        ("STABLEHLO_ADD", ""), ("STABLEHLO_MULTIPLY", ""), ("STABLEHLO_MAXIMUM", ""), ("STABLEHLO_MINIMUM", ""),
    ]},
    **{f"{k.lower()} spread": binary(k, o, (2, 1, 6, 3), (5, 1, 3)) for k, o in [
        ("ADD", "Add"), ("MAXIMUM", "MaximumMinimum"), ("FLOOR_DIV", "FloorDiv")]},
    **{f"{k.lower()} int": binary(k, o, dtype="int32") for k, o in [
        ("ADD", "Add"), ("SUB", "Sub"), ("MUL", "Mul"), ("DIV", "Div"), ("MAXIMUM", "MaximumMinimum"),
        ("MINIMUM", "MaximumMinimum"), ("POW", "Pow"), ("SQUARED_DIFFERENCE", "SquaredDifference"),
        ("FLOOR_DIV", "FloorDiv"), ("FLOOR_MOD", "FloorMod"), ("BITWISE_XOR", "BitwiseXor"),
        ("RIGHT_SHIFT", "RightShift"), ("ADD_N", "AddN")]},
    "add int relu": binary("ADD", "Add", dtype="int32", fusedActivationFunction=1),
    **{k.lower(): binary(k, o, out="bool") for k, o in [
        ("EQUAL", "Equal"), ("NOT_EQUAL", "NotEqual"), ("GREATER", "Greater"), ("GREATER_EQUAL", "GreaterEqual"),
        ("LESS", "Less"), ("LESS_EQUAL", "LessEqual")]},
    **{f"{k.lower()} int": binary(k, o, dtype="int32", out="bool") for k, o in [
        ("EQUAL", "Equal"), ("NOT_EQUAL", "NotEqual"), ("LESS", "Less")]},
    **{k.lower(): binary(k, o, dtype="bool") for k, o in [("LOGICAL_AND", "LogicalAnd"), ("LOGICAL_OR", "LogicalOr")]},
    "xor": binary("BITWISE_XOR", "BitwiseXor", dtype="int32"),
    **{f"{k.lower()} {axes} {keep}": reduced(k, axes, keep) for k in
       ("SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")
       for axes, keep in [((1, 2), True), ((-1,), False), ((0, 3), False)]},
    **{f"{k.lower()} {keep}": reduced(k, (1, 3), keep, dtype="bool") for k in ("REDUCE_ANY", "REDUCE_ALL")
       for keep in (True, False)},
    **{f"{k.lower()} int": reduced(k, (1, 2), dtype="int32") for k in ("SUM", "MEAN", "REDUCE_MAX", "REDUCE_PROD")},
    "sum of nothing": reduced("SUM", (), True),
    "argmax": arg("ARG_MAX", "ArgMax"),
    "argmin": arg("ARG_MIN", "ArgMin"),
    "gather": gather((4, 5, 3), (2, 2), 1, 0, (4, 2, 2, 3)),
    "gather batch": gather((4, 5, 3), (4, 2), 1, 1, (4, 2, 3)),
    "gather batch far": gather((4, 2, 5, 3), (4, 2, 3), 2, 1, (4, 2, 2, 3, 3)),
    "gather nd": gather_nd,
    "gather nd computed": gather_nd_computed,
    "scatter": scatter("float32"),
    "scatter int": scatter("int32"),
    "sparse to dense": sparse_to_dense,
    "segment sum": segment_sum,
    **{k.lower(): unsorted(k, options=o) for k, o in [
        ("UNSORTED_SEGMENT_SUM", "UnsortedSegmentSum"), ("UNSORTED_SEGMENT_PROD", "UnsortedSegmentProd"),
        ("UNSORTED_SEGMENT_MAX", "UnsortedSegmentMax"), ("UNSORTED_SEGMENT_MIN", "UnsortedSegmentMin")]},
    "unsorted int": unsorted("UNSORTED_SEGMENT_MAX", "int32", "UnsortedSegmentMax"),
    "update slice": update_slice((4, 5, 3), (2, 3, 3), (1, 1, 0)),
    "update slice pushed in": update_slice((4, 5), (2, 3), (3, -4)),
    "update slice whole": update_slice((4, 5), (4, 5), (1, 1)),
    "top k": top_k((2, 3, 8), 4),
    "top k int": top_k((9,), 3, "int32"),
    "one hot": one_hot(-1),
    "one hot first": one_hot(0),
    "one hot int": one_hot(1, "int32"),
    "one hot bool": one_hot(-1, "bool"),
    "reverse": moved("REVERSE_V2", (2, 3, 4), [i32(1)], (2, 3, 4), "ReverseV2"),
    "reverse sequence": reverse_sequence(1, 0),
    "reverse sequence far": reverse_sequence(1, 2),
    "cumsum": cumsum(False, False),
    "cumsum exclusive": cumsum(True, True, "int32"),
    "where": where,
    "unique": unique,
    "select same": select("SELECT", (2, 3, 4), (2, 3, 4), (2, 3, 4)),
    "select rows": select("SELECT", (2,), (2, 3, 4), (2, 3, 4)),
    "select v2": select("SELECT_V2", (2, 1, 4), (3, 1), (2, 3, 4)),
    "embedding": embedding,
    "fill": fill,
    "range": range_,
    "shape arithmetic": shape_arithmetic,
    "broadcast args": broadcast_args,
    "tile": moved("TILE", (2, 3, 4), [i32(1, 2, 3)], (2, 6, 12), "Tile"),
    "tile int": moved("TILE", (2, 3), [i32(2, 1)], (4, 3), "Tile", "int32"),
    "matrix diag": moved("MATRIX_DIAG", (2, 4), [], (2, 4, 4), "MatrixDiag"),
    "matrix set diag": set_diag(3, 3),
    "matrix set diag wide": set_diag(3, 5),
    "matrix set diag tall": set_diag(5, 3),
    "space to batch": moved("SPACE_TO_BATCH_ND", (2, 5, 6, 3), [i32(2, 3), i32([1, 2], [0, 3])], (12, 4, 3, 3),
                            "SpaceToBatchND"),
    "space to batch one axis": moved("SPACE_TO_BATCH_ND", (2, 6, 3), [i32(2), i32([0, 0])], (4, 3, 3),
                                     "SpaceToBatchND"),
    "batch to space": moved("BATCH_TO_SPACE_ND", (12, 4, 3, 3), [i32(2, 3), i32([1, 2], [0, 3])], (2, 5, 6, 3),
                            "BatchToSpaceND"),
    "space to depth": moved("SPACE_TO_DEPTH", (1, 4, 6, 3), [], (1, 2, 3, 12), "SpaceToDepth", blockSize=2),
    "depth to space": moved("DEPTH_TO_SPACE", (1, 2, 3, 12), [], (1, 4, 6, 3), "DepthToSpace", blockSize=2),
    "mirror reflect": moved("MIRROR_PAD", (2, 4, 3), [i32([0, 0], [3, 1], [1, 2])], (2, 8, 6), "MirrorPad", mode=0),
    "mirror symmetric": moved("MIRROR_PAD", (2, 4, 3), [i32([1, 0], [4, 1], [1, 2])], (3, 9, 6), "MirrorPad", mode=1),
    "pad": moved("PAD", (2, 4, 3), [i32([0, 0], [3, 1], [1, 2])], (2, 8, 6), "Pad"),
    "padv2": moved("PADV2", (2, 4, 3), [i32([0, 0], [3, 1], [1, 2]), np.float32(7)], (2, 8, 6), "PadV2"),
    "pad int": moved("PAD", (2, 3), [i32([0, 1], [2, 0])], (3, 5), "Pad", "int32"),
    "expand dims": moved("EXPAND_DIMS", (2, 4), [i32(1)], (2, 1, 4), "ExpandDims"),
    "squeeze": moved("SQUEEZE", (2, 1, 4, 1), [], (2, 4, 1), "Squeeze", squeezeDims=[1]),
    "transpose": moved("TRANSPOSE", (2, 3, 4), [i32(2, 0, 1)], (4, 2, 3), "Transpose"),
    "broadcast": moved("BROADCAST_TO", (3, 1), [i32(2, 3, 4)], (2, 3, 4), "BroadcastTo", version=2),
    "slice": moved("SLICE", (4, 6, 3), [i32(1, 2, 0), i32(2, -1, 3)], (2, 4, 3), "Slice"),
    "slice computed": slice_computed,
    "strided": strided((5, 6), (1, 5), (4, 0), (2, -2), (2, 3)),
    "strided masks": strided((5, 6), (1, 3), (4, 2), (1, -1), (4, 4), beginMask=1, endMask=2),
    "strided ellipsis": strided((3, 4, 5, 2), (1, 0, 1), (2, 0, 2), (1, 1, 1), (4, 5), ellipsisMask=2,
                                shrinkAxisMask=5),
    "strided new axis": strided((3, 4), (0, 0, 1), (0, 2, 3), (1, 1, 1), (1, 2, 2), newAxisMask=1),
    "strided all masks": strided((3, 4, 5), (0, 0, 0, 2, 1), (0, 3, 0, 3, 9), (1, 1, 1, 1, 2), (1, 3, 1, 2),
                                 newAxisMask=1 | 4, shrinkAxisMask=8, beginMask=2, endMask=16),
    "strided offset": strided((8, 6), (1, 2), (4, 3), (1, 1), (4, 3), offset=True),
    "strided fewer axes": strided((3, 4, 5), (-1,), (0,), (1,), (4, 5), shrinkAxisMask=1),
    "strided computed": strided_computed,
    "split v": split_v,
    "unpack": unpack,
    "pack": pack,
    "conv 3d": conv_3d(1, (1, 1, 1), (1, 1, 1), False),
    "conv 3d same": conv_3d(0, (2, 1, 2), (1, 1, 1), True),
    "conv 3d dilated": conv_3d(1, (1, 1, 1), (2, 1, 3), True),
    "conv 3d transposed": conv_3d_transposed(1, (4, 6, 3), (1, 1, 1)),
    "conv 3d transposed same": conv_3d_transposed(0, (6, 8, 4), (2, 2, 2)),
    "transposed bias": transposed_with_bias,
    "l2 pool same": pool("L2_POOL_2D", 0),
    "l2 pool": pool("L2_POOL_2D", 1),
    "average pool": pool("AVERAGE_POOL_2D", 0),
    "max pool": pool("MAX_POOL_2D", 0),
    **{f"{kind} {size} {align} {half}": resize(kind, size, align, half)
       for kind in ("ResizeBilinear", "ResizeNearestNeighbor") for size in [(18, 14), (5, 4), (13, 11), (1, 3)]
       for align, half in [(False, False), (True, False), (False, True)]},
    "matmul": matmul((2, 3, 4), (2, 4, 5), (2, 3, 5)),
    "matmul spread": matmul((2, 1, 3, 4), (5, 4, 2), (2, 5, 3, 2)),
    "matmul turned": matmul((2, 4, 3), (2, 5, 4), (2, 3, 5), True, True),
    "dilate": dilate,
    "spectrum": spectrum("COMPLEX_ABS", (2, 1, 64), (1, 64)),
    "spectrum squeezed": spectrum("COMPLEX_ABS", (3, 1, 50), (1, 64), squeezed=True),
    "spectrum of an image": spectrum("REAL", (2, 6, 40), (8, 32)),
    "spectrum of an image, other part": spectrum("IMAG", (2, 6, 40), (4, 32)),
}  # fmt: skip


# LiteRT has no reference kernel for these, or (LRN) one that leaves out the last neighbour.
NO_REFERENCE = {"ceil", "elu", "round", "segment sum", "lrn"}


@pytest.mark.parametrize("name", CASES)
def test_operator_as_litert_runs_it(name: str) -> None:
    file = File(3)
    feeds = CASES[name](file)
    agree(file, feeds, reference=name not in NO_REFERENCE)
