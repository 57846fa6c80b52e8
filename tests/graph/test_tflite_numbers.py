"""Forms in which tflite files store numbers: int8, uint8, int16 activations, 4 bits, sparse, float16, dynamic range."""

from __future__ import annotations

from collections.abc import Callable
from types import SimpleNamespace
from typing import Any

import numpy as np
import pytest
from tflite_maker import File, agree, feeds_of, run_litert, run_onnx, sqnr

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.analysis import summary
from dlas.graph.formats.tflite import from_bytes
from dlas.graph.formats.tflite.constants import densify, unpack

IN = {"int8": (0.05, 3), "uint8": (0.05, 130), "int16": (2.0**-12, 0)}
OUT = {"int8": (0.06, -5), "uint8": (0.06, 120), "int16": (2.0**-11, 0)}
BIAS = {"int8": "int32", "uint8": "int32", "int16": "int64"}


def kernel(f: File, shape, dtype: str, axis: int, per_channel: bool = True) -> tuple[int, Any]:
    """Integer weights and their scales."""
    if dtype == "uint8":
        return f.constant(f.rng.integers(0, 256, shape).astype(np.uint8), (0.01, 128)), np.float32(0.01)
    scales = f.rng.uniform(0.002, 0.01, shape[axis]).astype(np.float32) if per_channel else np.float32(0.01)
    zeros = np.zeros(np.shape(scales), np.int64)
    return f.constant(f.rng.integers(-127, 128, shape).astype(np.int8), (scales, zeros, axis)), scales


def bias(f: File, count: int, dtype: str, scales) -> int:
    scale = np.broadcast_to(scales * np.float32(IN[dtype][0]), np.shape(scales) or ())
    values = (f.rng.standard_normal(count) / np.mean(scale) * 0.1).astype(BIAS[dtype])
    return f.constant(values, (scale, np.zeros(np.shape(scale), np.int64), 0))


def convolution(dtype, depthwise=False, per_channel=True, activation=0):
    def build(f: File) -> None:
        x = f.input((1, 8, 9, 4), dtype, IN[dtype])
        shape, axis = ((1, 3, 3, 4), 3) if depthwise else ((6, 3, 3, 4), 0)
        w, scales = kernel(f, shape, dtype, axis, per_channel)
        channels = shape[axis]
        y = f.output((1, 4, 5, channels), dtype, OUT[dtype])
        kind = "DepthwiseConv2D" if depthwise else "Conv2D"
        fields = {"depthMultiplier": 1} if depthwise else {}
        o = f.options(kind, padding=0, strideH=2, strideW=2, dilationHFactor=1, dilationWFactor=1,
                      fusedActivationFunction=activation, **fields)  # fmt: skip
        version = 4 if dtype == "int16" and not depthwise else 3
        f.add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [x, w, bias(f, channels, dtype, scales)], [y], o,
              version=version)  # fmt: skip

    return build


def dense(dtype):
    def build(f: File) -> None:
        x, (w, scales) = f.input((2, 12), dtype, IN[dtype]), kernel(f, (5, 12), dtype, 0, False)
        y = f.output((2, 5), dtype, OUT[dtype])
        f.add(
            "FULLY_CONNECTED", [x, w, bias(f, 5, dtype, scales)], [y], f.options("FullyConnected"), version=4
        )

    return build


def transposed(dtype):
    def build(f: File) -> None:
        x = f.input((1, 4, 5, 4), dtype, IN[dtype])
        w, scales = kernel(f, (6, 3, 3, 4), dtype, 0, dtype != "uint8")
        y = f.output((1, 8, 10, 6), dtype, OUT[dtype])
        o = f.options("TransposeConv", padding=0, strideH=2, strideW=2)
        f.add("TRANSPOSE_CONV", [f.ints(1, 8, 10, 6), w, x, bias(f, 6, dtype, scales)], [y], o, version=3)

    return build


def unary(
    kind, dtype, options="", out=None, shape=(2, 4, 5, 3), out_shape=None, constants=(), version=2, **fields
):
    def build(f: File) -> None:
        x = f.input(shape, dtype, IN[dtype])
        y = f.output(out_shape or shape, dtype, OUT[dtype] if out is None else out)
        given = [f.constant(np.asarray(c)) for c in constants]
        f.add(kind, [x, *given], [y], f.options(options, **fields) if options else None, version=version)

    return build


def binary(kind, dtype, options, out_dtype="", version=2, **fields):
    def build(f: File) -> None:
        a, b = f.input((2, 4, 5, 3), dtype, IN[dtype]), f.input((5, 3), dtype, IN[dtype])
        y = f.output((2, 4, 5, 3), out_dtype or dtype, None if out_dtype else OUT[dtype])
        f.add(kind, [a, b], [y], f.options(options, **fields) if options else None, version=version)

    return build


def requantised(source, target):
    def build(f: File) -> None:
        f.add("QUANTIZE", [f.input((3, 7), source, IN[source])], [f.output((3, 7), target, OUT[target])],
              f.options("Quantize"))  # fmt: skip

    return build


def joined(dtype):
    def build(f: File) -> None:
        a, b = f.input((2, 3), dtype, OUT[dtype]), f.input((2, 4), dtype, OUT[dtype])
        f.add("CONCATENATION", [a, b], [f.output((2, 7), dtype, OUT[dtype])], f.options("Concatenation", axis=1),
              version=2)  # fmt: skip

    return build


def same(kind, dtype, options="", **more):
    return unary(kind, dtype, options, out=IN[dtype], **more)


FIXED = {"int8": (1 / 256, -128), "uint8": (1 / 256, 0), "int16": (1 / 32768, 0)}
TURNED = {"int8": (1 / 128, 0), "uint8": (1 / 128, 128), "int16": (1 / 32768, 0)}
I32 = np.int32
WIDE = np.array([2, 3], I32)
EXACT: dict[str, Callable] = {  # elements are only moved or compared: equal to the last bit
    **{f"{name} {d}": make(d) for d in ("int8", "uint8", "int16") for name, make in {
        "transpose": lambda d: same("TRANSPOSE", d, "Transpose", shape=(2, 3, 4), out_shape=(4, 2, 3),
                                    constants=[np.array([2, 0, 1], I32)], version=4 if d == "int16" else 2),
        "reshape": lambda d: same("RESHAPE", d, "Reshape", shape=(2, 6), out_shape=(3, 4),
                                  constants=[np.array([3, 4], I32)], version=1),
        "concat": joined,
        "max pool": lambda d: same("MAX_POOL_2D", d, "Pool2D", shape=(1, 6, 6, 3), out_shape=(1, 3, 3, 3), padding=1,
                                   strideH=2, strideW=2, filterHeight=2, filterWidth=2, version=3),
        "relu": lambda d: same("RELU", d),
        "maximum": lambda d: binary("MAXIMUM", d, "MaximumMinimum") if d == "none" else same(
            "REDUCE_MAX", d, "Reducer", shape=(2, 4, 5), out_shape=(2, 5), constants=[np.array([1], I32)]),
        "slice": lambda d: same("SLICE", d, "Slice", shape=(4, 6), out_shape=(2, 3), version=2 if d != "int16" else 4,
                                constants=[np.array([1, 2], I32), np.array([2, 3], I32)]),
        "pad": lambda d: same("PAD", d, "Pad", shape=(2, 3), out_shape=(5, 4), version=2,
                              constants=[np.array([[1, 2], [0, 1]], I32)]),
    }.items()},
    **{f"{name} {d}": make(d) for d in ("int8", "uint8") for name, make in {
        "nearest": lambda d: same("RESIZE_NEAREST_NEIGHBOR", d, "ResizeNearestNeighbor", shape=(1, 3, 4, 2),
                                  out_shape=(1, 5, 7, 2), constants=[np.array([5, 7], I32)]),
        "less": lambda d: binary("LESS", d, "Less", "bool"),
        "equal": lambda d: binary("EQUAL", d, "Equal", "bool"),
        "tile": lambda d: same("TILE", d, "Tile", shape=(2, 3), out_shape=(4, 9), constants=[WIDE], version=1),
        "reverse": lambda d: same("REVERSE_V2", d, "ReverseV2", shape=(2, 3), constants=[np.array([1], I32)],
                                  version=3) if d == "uint8" else same("RELU", d),
        "space to batch": lambda d: same("SPACE_TO_BATCH_ND", d, "SpaceToBatchND", shape=(1, 4, 6, 2),
                                         out_shape=(6, 3, 2, 2), constants=[WIDE, np.array([[0, 2], [0, 0]], I32)]),
        "mirror": lambda d: same("MIRROR_PAD", d, "MirrorPad", shape=(3, 3), out_shape=(5, 5), mode=1,
                                 constants=[np.array([[1, 1], [2, 0]], I32)]),
        "gather": lambda d: same("GATHER", d, "Gather", shape=(4, 3), out_shape=(2, 3), axis=0,
                                 constants=[np.array([3, 1], I32)]),
    }.items()},
}  # fmt: skip
NEAR: dict[str, Callable] = {  # the kernels round in integers: at most one step apart
    **{f"{name} {d}": make(d) for d in ("int8", "uint8", "int16") for name, make in {
        "conv": convolution,
        "depthwise": lambda d: convolution(d, True),
        "dense": dense,
        "add": lambda d: binary("ADD", d, "Add", potScaleInt16=False),
        "sub": lambda d: binary("SUB", d, "Sub", potScaleInt16=False),
        "mul": lambda d: binary("MUL", d, "Mul"),
        "logistic": lambda d: unary("LOGISTIC", d, out=FIXED[d]),
        "tanh": lambda d: unary("TANH", d, out=TURNED[d]),
        "average pool": lambda d: same("AVERAGE_POOL_2D", d, "Pool2D", shape=(1, 6, 6, 3), out_shape=(1, 3, 3, 3),
                                       padding=0, strideH=2, strideW=2, filterHeight=3, filterWidth=3, version=3),
        "leaky": lambda d: unary("LEAKY_RELU", d, "LeakyRelu", alpha=0.2),
        "mean": lambda d: unary("MEAN", d, "Reducer", shape=(2, 4, 5), out_shape=(2, 5),
                                constants=[np.array([1], I32)]),
    }.items()},
    **{f"{name} {d}": make(d) for d in ("int8", "uint8") for name, make in {
        "conv per tensor": lambda d: convolution(d, per_channel=False),
        "conv relu6": lambda d: convolution(d, activation=3),
        "transposed": transposed,
        "softmax": lambda d: unary("SOFTMAX", d, "Softmax", out=FIXED[d], beta=1.0),
        "sum": lambda d: unary("SUM", d, "Reducer", shape=(2, 4, 5), out_shape=(2, 5), out=(0.2, 0),
                               constants=[np.array([1], I32)]),
        "bilinear": lambda d: same("RESIZE_BILINEAR", d, "ResizeBilinear", shape=(1, 3, 4, 2), out_shape=(1, 5, 7, 2),
                                   constants=[np.array([5, 7], I32)], halfPixelCenters=True, version=3),
        "hard swish": lambda d: unary("HARD_SWISH", d, "HardSwish", version=1),
        "squared difference": lambda d: binary("SQUARED_DIFFERENCE", d, "SquaredDifference") if d == "int8" else
        requantised("uint8", "int8"),
        "l2": lambda d: unary("L2_NORMALIZATION", d, "L2Norm", out=TURNED[d]),
    }.items()},
    "elu int8": unary("ELU", "int8", version=1),
    "requantise int8 int16": requantised("int8", "int16"),
    "requantise int16 int8": requantised("int16", "int8"),
    "requantise int8 int8": requantised("int8", "int8"),
    "requantise int8 uint8": requantised("int8", "uint8"),
    "abs int8": unary("ABS", "int8", "Abs"),
    "rsqrt int8": lambda f: positive(f, "RSQRT"),
    "gelu int8": unary("GELU", "int8", "Gelu"),
    "exp int8": unary("EXP", "int8", "Exp", out=(2.0, -128)),
}  # fmt: skip
NO_REFERENCE = {"elu int8", "sum int8"}  # there is none, and one that wraps around instead of stopping at 127
COARSE = {  # steps of 2**-15: the kernels interpolate in tables
    "logistic int16": 8, "tanh int16": 12,
}  # fmt: skip


def positive(f: File, kind: str) -> None:
    x, y = f.input((40,), "int8", (0.05, -128)), f.output((40,), "int8", (0.02, -128))
    f.add(kind, [x], [y], version=2)


@pytest.mark.parametrize("name", EXACT)
def test_moved_integers_are_equal(name: str) -> None:
    file = File(8)
    EXACT[name](file)
    agree(file, steps=0)


@pytest.mark.parametrize("name", NEAR)
def test_integer_arithmetic_is_one_step_away_at_most(name: str) -> None:
    file = File(8)
    NEAR[name](file)
    feeds = feeds_of(file)
    if "rsqrt" in name:
        feeds = [np.maximum(feeds[0], -120)]
    agree(file, feeds, steps=COARSE.get(name, 1), reference=name not in NO_REFERENCE)


# Small weights


def dense_of(f: File, weights: int, bias: int = -1, x: int | None = None, units: int = 8) -> None:
    x = f.input((3, 16)) if x is None else x
    f.add(
        "FULLY_CONNECTED", [x, weights, bias], [f.output((3, units))], f.options("FullyConnected"), version=4
    )


def nibbles(levels: np.ndarray) -> bytes:
    flat = levels.reshape(-1).astype(np.uint8) & 15
    return (flat[::2] | flat[1::2] << 4).astype(np.uint8).tobytes()


def test_four_bit_weights_with_integer_activations() -> None:
    f = File(1)
    levels = f.rng.integers(-7, 8, (8, 16)).astype(np.int8)
    x = f.input((3, 16), "int8", IN["int8"])
    w = f.tensor((8, 16), quant=(0.02, 0), data=nibbles(levels), kind="INT4")
    y = f.output((3, 8), "int8", OUT["int8"])
    f.add("FULLY_CONNECTED", [x, w, -1], [y], f.options("FullyConnected"), version=7)
    model = agree(f, steps=1, default=False)
    assert any(np.array_equal(a, levels) for a in model.initializers.values())
    assert summary(model)["kind"] == "int4"


def test_four_bit_weights_with_float_activations() -> None:
    f, wide = File(1), File(1)
    levels = f.rng.integers(-7, 8, (8, 16)).astype(np.int8)
    scales = np.linspace(0.01, 0.04, 8).astype(np.float32)
    dense_of(f, f.tensor((8, 16), quant=(scales, np.zeros(8), 0), data=nibbles(levels), kind="INT4"))
    dense_of(wide, wide.constant(levels.astype(np.float32) * scales[:, None]))
    model = from_bytes(f.bytes(), "x")
    feeds = feeds_of(wide)
    assert sqnr(run_litert(wide.bytes(), feeds)[0], run_onnx(model, feeds)[0]) >= 120
    assert summary(model)["kind"] == "dynamic-range int4"


def test_packed_numbers() -> None:
    stored = np.array([0x1F, 0x80, 0x07], np.uint8)
    assert unpack(stored, 4, True, 5).tolist() == [-1, 1, 0, -8, 7]
    assert unpack(stored, 4, False, 6).tolist() == [15, 1, 0, 8, 7, 0]
    assert unpack(np.array([0b11100100], np.uint8), 2, True, 4).tolist() == [0, 1, -2, -1]


@pytest.mark.parametrize("per_channel", [False, True])
def test_dynamic_range(per_channel: bool) -> None:
    f, wide = File(2), File(2)
    levels = f.rng.integers(-127, 128, (6, 3, 3, 4)).astype(np.int8)
    scales = np.linspace(0.002, 0.02, 6).astype(np.float32) if per_channel else np.float32(0.01)
    for file, w in (
        (f, f.constant(levels, (scales, np.zeros(np.shape(scales)), 0))),
        (wide, wide.constant(levels * scales[:, None, None, None] if per_channel else levels * scales)),
    ):
        o = file.options("Conv2D", padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
        none = file.constant(np.zeros(6, np.float32))
        file.add("CONV_2D", [file.input((1, 6, 7, 4)), w, none], [file.output((1, 6, 7, 6))], o, version=5)
    model = from_bytes(f.bytes(), "x")
    feeds = feeds_of(wide)
    (got,) = run_onnx(model, feeds)
    assert sqnr(run_litert(wide.bytes(), feeds)[0], got) >= 120
    assert sqnr(run_litert(f.bytes(), feeds)[0], got) > 30  # LiteRT rounds the activations to int8
    assert summary(model)["kind"] == "dynamic-range int8"
    assert any("dynamic-range" in n for n in model.history[-1].notes)


def test_float16_weights_behind_dequantize_and_alone() -> None:
    f = File(3)
    half = f.rng.standard_normal((8, 16)).astype(np.float16)
    whole = f.tensor((8, 16))
    f.add("DEQUANTIZE", [f.constant(half)], [whole], f.options("Dequantize"), version=3)
    dense_of(f, whole)
    model = agree(f)
    assert summary(model)["kind"] == "float16 weights"
    alone = File(3)  # LiteRT has no such kernel, other runtimes do
    dense_of(alone, alone.constant(half))
    feeds = feeds_of(f)
    got, wanted = run_onnx(from_bytes(alone.bytes(), "x"), feeds)[0], run_onnx(model, feeds)[0]
    assert np.array_equal(got, wanted)


def test_bfloat16_constants() -> None:
    f = File(3)
    numbers = np.array([1.5, -2.0, 0.375, 3e5], np.float32)
    y = f.output((3, 4))
    stored = (numbers.view(np.uint32) >> 16).astype(np.uint16)
    f.add("MUL", [f.input((3, 4)), f.tensor((4,), data=stored, kind="BFLOAT16")], [y], f.options("Mul"))
    feeds = feeds_of(f)
    kept = (stored.astype(np.uint32) << 16).view(np.float32)
    assert np.array_equal(run_onnx(from_bytes(f.bytes(), "x"), feeds)[0], feeds[0] * kept)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (convolution("int8"), "int8 per-channel"),
        (convolution("int8", per_channel=False), "int8 per-tensor"),
        (convolution("uint8"), "uint8"),
        (convolution("int16"), "int16x8"),
    ],
)
def test_kinds(make: Callable, kind: str) -> None:
    f = File(1)
    make(f)
    assert summary(from_bytes(f.bytes(), "x"))["kind"] == kind


# Sparse weights


def sparse(f: File, dense: np.ndarray, block: int = 0) -> int:
    """A constant stored by rows, each a list of the columns (or blocks of columns) that are not zero."""
    kinds = f.kinds
    size = max(block, 1)
    blocks = dense.reshape(dense.shape[0], -1, size)
    rows = [np.flatnonzero(row.any(1)) for row in blocks]
    segments = np.cumsum([0, *(len(r) for r in rows)]).astype(np.int32)
    indices = np.concatenate(rows).astype(np.uint8)
    values = np.concatenate([blocks[n][row].reshape(-1) for n, row in enumerate(rows)])

    def level(**fields):
        made = kinds.DimensionMetadataT()
        for name, value in fields.items():
            setattr(made, name, value)
        return made

    outer, inner = kinds.Int32VectorT(), kinds.Uint8VectorT()
    outer.values, inner.values = segments, indices
    table = kinds.SparsityParametersT()
    table.traversalOrder = np.array([0, 1, *([2] if block else [])], np.int32)
    if block:
        table.blockMap = np.array([1], np.int32)
    table.dimMetadata = [
        level(format=kinds.DimensionType.DENSE, denseSize=dense.shape[0]),
        level(format=kinds.DimensionType.SPARSE_CSR, arraySegments=outer, arrayIndices=inner,
              arraySegmentsType=kinds.SparseIndexVector.Int32Vector,
              arrayIndicesType=kinds.SparseIndexVector.Uint8Vector),
        *([level(format=kinds.DimensionType.DENSE, denseSize=block)] if block else []),
    ]  # fmt: skip
    return f.tensor(dense.shape, dense.dtype.name, data=values, sparsity=table)


def thinned(f: File, block: int) -> np.ndarray:
    dense = f.rng.standard_normal((8, 16)).astype(np.float32)
    keep = f.rng.uniform(size=(8, 16 // max(block, 1))) < 0.3
    keep[3] = False
    return dense * np.repeat(keep, max(block, 1), 1)


@pytest.mark.parametrize("block", [0, 4])
@pytest.mark.parametrize("densified", [False, True])
def test_sparse_weights(block: int, densified: bool) -> None:
    f = File(4)
    dense = thinned(f, block)
    w = sparse(f, dense, block)
    if densified:
        whole = f.tensor(dense.shape)
        f.add("DENSIFY", [w], [whole], f.options("Densify"))
        w = whole
    dense_of(f, w, f.weights(8))
    model = agree(f) if densified else from_bytes(f.bytes(), "x")
    assert any(np.array_equal(a, dense) for a in model.initializers.values())


@pytest.mark.parametrize(
    "change",
    [
        lambda t: setattr(t, "traversalOrder", np.array([0, 0], np.int32)),
        lambda t: setattr(t, "traversalOrder", np.array([0], np.int32)),
        lambda t: setattr(t, "blockMap", np.array([7], np.int32)),
        lambda t: setattr(t.dimMetadata[0], "denseSize", 2**30),
        lambda t: t.dimMetadata[1].arraySegments.values.__setitem__(2, 2**30),
        lambda t: t.dimMetadata[1].arraySegments.values.__setitem__(2, -5),
        lambda t: t.dimMetadata[1].arrayIndices.values.__setitem__(0, 200),
        lambda t: setattr(t, "dimMetadata", []),
    ],
)
def test_inconsistent_sparsity_is_refused(change: Callable) -> None:
    f = File(4)
    w = sparse(f, thinned(f, 0))
    dense_of(f, w)
    change(f.tensors[w].sparsity)
    with pytest.raises(ModelError, match=r"sparse|damaged"):
        from_bytes(f.bytes(), "x")


def test_sparse_tensor_that_would_fill_the_memory_is_refused() -> None:
    f = File(4)
    w = sparse(f, thinned(f, 0))
    f.tensors[w].shape = np.array([2**15, 2**15], np.int32)
    f.tensors[w].sparsity.dimMetadata[0].denseSize = 2**15
    dense_of(f, w)
    with pytest.raises(ModelError, match="out of proportion"):
        from_bytes(f.bytes(), "x")


def test_levels_in_another_order() -> None:
    levels = [SimpleNamespace(format=0, denseSize=size) for size in (3, 2)]
    table = SimpleNamespace(traversalOrder=[1, 0], blockMap=[], dimMetadata=levels)
    assert densify(table, (2, 3), np.arange(6), "t").tolist() == [[0, 2, 4], [1, 3, 5]]


def test_kinds_of_tensors_and_operators_are_refused_all_at_once() -> None:
    f = File()
    x, s = f.input((2, 3)), f.tensor((1,), kind="STRING")
    mid = f.tensor((2, 3))
    f.add("HASHTABLE_LOOKUP", [x, s], [mid])
    f.add("WHILE", [mid], [f.output((2, 3))])
    f.add("BITCAST", [x], [f.output((2, 3), "int32")])
    with pytest.raises(UnsupportedError) as caught:
        from_bytes(f.bytes(), "net")
    text = caught.value.message
    for part in ("HASHTABLE_LOOKUP (1)", "WHILE (1)", "STRING (1)", "BITCAST"):
        assert part in text
