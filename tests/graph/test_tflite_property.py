"""Operators with random shapes and attributes (fixed seeds): what dlas reads runs as LiteRT runs the file."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import pytest
from tflite_maker import File, agree

SEEDS = 6


def pick(f: File, *choices):
    return choices[int(f.rng.integers(len(choices)))]


def sizes(f: File, rank: int, low: int = 1, high: int = 7) -> list[int]:
    return [int(d) for d in f.rng.integers(low, high, rank)]


def out_size(n: int, k: int, s: int, d: int, padding: int) -> int:
    return -(-n // s) if padding == 0 else (n - (k - 1) * d - 1) // s + 1


def convolution(f: File) -> None:
    n, h, w, c = 1, *sizes(f, 2, 7, 14), int(f.rng.integers(1, 5))
    k, s, d = sizes(f, 2, 1, 4), sizes(f, 2, 1, 4), sizes(f, 2, 1, 3)
    if max(d) > 1:
        s = [1, 1]
    padding, bias = pick(f, 0, 1), pick(f, True, False)
    depthwise, groups = pick(f, True, False), 1
    out = [out_size(*v, padding) for v in zip((h, w), k, s, d, strict=True)]
    if depthwise:
        times = pick(f, 1, 2)
        shape, channels, fields = (1, *k, c * times), c * times, {"depthMultiplier": times}
    else:
        groups = pick(f, 1, 2)
        shape, channels, fields = (4, *k, c), 4, {}
        c *= groups
    o = f.options("DepthwiseConv2D" if depthwise else "Conv2D", padding=padding, strideH=s[0], strideW=s[1],
                  dilationHFactor=d[0], dilationWFactor=d[1], fusedActivationFunction=pick(f, 0, 1, 2, 3),
                  **fields)  # fmt: skip
    b = f.constant(f.rng.standard_normal(channels).astype(np.float32) * bias)
    f.add("DEPTHWISE_CONV_2D" if depthwise else "CONV_2D", [f.input((n, h, w, c)), f.weights(*shape), b],
          [f.output((n, *out, channels))], o, version=2 if depthwise else 6 if groups > 1 else 1)  # fmt: skip


def transposed(f: File) -> None:
    h, w, c = sizes(f, 3, 2, 6)
    k, s = sizes(f, 2, 1, 5), sizes(f, 2, 1, 4)
    padding = pick(f, 0, 1)
    out = [n * t if padding == 0 else (n - 1) * t + max(t, m) for n, t, m in zip((h, w), s, k, strict=True)]
    shape = (1, *out, 3)
    o = f.options("TransposeConv", padding=padding, strideH=s[0], strideW=s[1])
    f.add(
        "TRANSPOSE_CONV", [f.ints(*shape), f.weights(3, *k, c), f.input((1, h, w, c))], [f.output(shape)], o
    )


def pool(f: File) -> None:
    kind = pick(f, "AVERAGE_POOL_2D", "MAX_POOL_2D", "L2_POOL_2D")
    shape = (1, *sizes(f, 2, 5, 12), 3)
    k, s, padding = sizes(f, 2, 1, 5), sizes(f, 2, 1, 4), pick(f, 0, 1)
    out = [out_size(n, m, t, 1, padding) for n, m, t in zip(shape[1:3], k, s, strict=True)]
    o = f.options("Pool2D", padding=padding, strideH=s[0], strideW=s[1], filterHeight=k[0], filterWidth=k[1],
                  fusedActivationFunction=0 if kind == "L2_POOL_2D" else pick(f, 0, 1))  # fmt: skip
    f.add(kind, [f.input(shape)], [f.output((1, *out, 3))], o)


def volume(f: File) -> None:
    shape = sizes(f, 3, 4, 8)
    k, s, padding = sizes(f, 3, 1, 4), sizes(f, 3, 1, 3), pick(f, 0, 1)
    out = [out_size(n, m, t, 1, padding) for n, m, t in zip(shape, k, s, strict=True)]
    o = f.options("Conv3D", padding=padding, strideD=s[0], strideH=s[1], strideW=s[2], dilationDFactor=1,
                  dilationHFactor=1, dilationWFactor=1)  # fmt: skip
    f.add(
        "CONV_3D", [f.input((1, *shape, 2)), f.weights(*k, 2, 3), f.weights(3)], [f.output((1, *out, 3))], o
    )


def strided(f: File) -> None:
    rank = int(f.rng.integers(1, 5))
    shape = sizes(f, rank, 2, 7)
    masks = dict.fromkeys(("beginMask", "endMask", "shrinkAxisMask"), 0)
    begin, end, steps, index = [], [], [], []
    for axis, n in enumerate(shape):
        step = pick(f, 1, 1, 2, -1, -2)
        first, last = sorted(int(v) for v in f.rng.choice(np.arange(n + 1), 2, replace=False))
        first, last = (first, last) if step > 0 else (last - 1, first - 1 if first else -n - 1)
        kind = pick(f, "plain", "begin", "end", "shrink", "negative")
        if kind == "negative" and first > 0:
            first -= n
        if kind in ("begin", "end"):
            masks[f"{kind}Mask"] |= 1 << axis
        if kind == "shrink":
            masks["shrinkAxisMask"] |= 1 << axis
            step, last = 1, first + 1
        begin.append(first)
        end.append(last)
        steps.append(step)
        stop = None if kind == "end" or (step < 0 and last < -n) else last
        index.append(first if kind == "shrink" else slice(None if kind == "begin" else first, stop, step))
    out = np.zeros(shape)[tuple(index)].shape
    if 0 in out:
        begin, end, steps, masks, out = [0] * rank, shape, [1] * rank, {}, tuple(shape)
    f.add("STRIDED_SLICE", [f.input(shape), f.ints(*begin), f.ints(*end), f.ints(*steps)], [f.output(out)],
          f.options("StridedSlice", **masks))  # fmt: skip


def reduction(f: File) -> None:
    kind = pick(f, "SUM", "MEAN", "REDUCE_MAX", "REDUCE_MIN", "REDUCE_PROD")
    rank = int(f.rng.integers(1, 5))
    shape, keep = sizes(f, rank), pick(f, True, False)
    axes = [int(a) for a in f.rng.choice(rank, int(f.rng.integers(1, rank + 1)), replace=False)]
    out = [1 if a in axes else d for a, d in enumerate(shape) if keep or a not in axes]
    given = [a - rank if pick(f, True, False) else a for a in axes]
    f.add(kind, [f.input(shape), f.ints(*given)], [f.output(out)], f.options("Reducer", keepDims=keep))


def arithmetic(f: File) -> None:
    kind, options = pick(f, ("ADD", "Add"), ("SUB", "Sub"), ("MUL", "Mul"), ("MAXIMUM", "MaximumMinimum"),
                         ("SQUARED_DIFFERENCE", "SquaredDifference"))  # fmt: skip
    shape = sizes(f, int(f.rng.integers(1, 5)))
    a = [d if pick(f, True, True, False) else 1 for d in shape]
    b = [d if x == 1 or pick(f, True, False) else 1 for d, x in zip(shape, a, strict=True)]
    b = b[int(f.rng.integers(0, len(b))) :]
    out = np.broadcast_shapes(a, b)
    inputs = [f.input(a), f.weights(*b) if pick(f, True, False) else f.input(b)]
    f.add(kind, inputs, [f.output(out)], f.options(options))


def padding(f: File) -> None:
    kind = pick(f, "PAD", "PADV2", "MIRROR_PAD")
    rank = int(f.rng.integers(1, 5))
    shape = sizes(f, rank, 3, 7)
    pairs = f.rng.integers(0, 3, (rank, 2)).astype(np.int32)
    inputs = [f.input(shape), f.constant(pairs)]
    if kind == "PADV2":
        inputs.append(f.constant(np.float32(-2.5)))
    o = f.options("MirrorPad", mode=pick(f, 0, 1)) if kind == "MIRROR_PAD" else None
    f.add(kind, inputs, [f.output([n + int(p.sum()) for n, p in zip(shape, pairs, strict=True)])], o)


def resize(f: File) -> None:
    kind, name = pick(
        f, ("RESIZE_BILINEAR", "ResizeBilinear"), ("RESIZE_NEAREST_NEIGHBOR", "ResizeNearestNeighbor")
    )
    shape, size = (1, *sizes(f, 2, 2, 12), 2), sizes(f, 2, 1, 30)
    align, half = pick(f, (False, False), (True, False), (False, True))
    o = f.options(name, alignCorners=align, halfPixelCenters=half)
    f.add(kind, [f.input(shape), f.ints(*size)], [f.output((1, *size, 2))], o, version=3)


def moving(f: File) -> None:
    """Transposes, reshapes and a concatenation around a convolution, so that layouts meet."""
    h, w, c = sizes(f, 3, 3, 6)
    x, y = f.input((1, h, w, c)), f.tensor((1, h, w, 4))
    o = f.options("Conv2D", padding=0, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1)
    f.add("CONV_2D", [x, f.weights(4, 3, 3, c), f.weights(4)], [y], o)
    shape = [1, h, w, 4]
    for _ in range(3):
        if pick(f, True, False):
            perm = [int(a) for a in f.rng.permutation(4)]
            shape = [shape[a] for a in perm]
            z = f.tensor(shape)
            f.add("TRANSPOSE", [y, f.ints(*perm)], [z], f.options("Transpose"))
        else:
            axis = int(f.rng.integers(4))
            shape[axis] *= 2
            z = f.tensor(shape)
            f.add("CONCATENATION", [y, y], [z], f.options("Concatenation", axis=axis))
        y = z
    f.add("RESHAPE", [y, f.ints(-1)], [f.output([int(np.prod(shape))])], f.options("Reshape"))


def gathering(f: File) -> list[np.ndarray]:
    rank = int(f.rng.integers(1, 4))
    shape = sizes(f, rank, 2, 6)
    axis = int(f.rng.integers(rank))
    batch = int(f.rng.integers(0, axis + 1))
    index = [*shape[:batch], *sizes(f, int(f.rng.integers(0, 3)))]
    out = [*shape[:axis], *index[batch:], *shape[axis + 1 :]]
    inputs = [f.input(shape), f.input(index, "int32")]
    f.add("GATHER", inputs, [f.output(out)], f.options("Gather", axis=axis, batchDims=batch))
    return [
        f.rng.standard_normal(shape).astype(np.float32),
        f.rng.integers(0, shape[axis], index).astype(np.int32),
    ]


def blocks(f: File) -> None:
    shape, block = [int(f.rng.integers(1, 3)), *sizes(f, 3)], sizes(f, 2, 1, 4)
    before = sizes(f, 2, 0, 3)
    after = [-(n + b) % k for n, b, k in zip(shape[1:3], before, block, strict=True)]
    pads = np.array(list(zip(before, after, strict=True)), np.int32)
    small = [(n + b + a) // k for n, b, a, k in zip(shape[1:3], before, after, block, strict=True)]
    many = f.tensor((shape[0] * block[0] * block[1], *small, shape[3]))
    f.add("SPACE_TO_BATCH_ND", [f.input(shape), f.ints(*block), f.constant(pads)], [many])
    f.add("BATCH_TO_SPACE_ND", [many, f.ints(*block), f.constant(pads)], [f.output(shape)])


def splitting(f: File) -> None:
    rank = int(f.rng.integers(1, 5))
    shape, axis = sizes(f, rank, 2, 5), int(f.rng.integers(rank))
    count = pick(f, 1, 2, 3)
    parts = [shape] * count
    whole = [n * count if a == axis else n for a, n in enumerate(shape)]
    given = axis - rank if pick(f, True, False) else axis
    f.add("SPLIT", [f.constant(np.int32(given)), f.input(whole)], [f.output(p) for p in parts],
          f.options("Split", numSplits=count))  # fmt: skip


def product(f: File) -> None:
    m, k, n = sizes(f, 3)
    lead = sizes(f, int(f.rng.integers(0, 3)))
    right = [d if pick(f, True, False) else 1 for d in lead]
    x, y = pick(f, True, False), pick(f, True, False)
    a, b = [*lead, *((k, m) if x else (m, k))], [*right, *((n, k) if y else (k, n))]
    f.add(
        "BATCH_MATMUL",
        [f.input(a), f.input(b)],
        [f.output((*lead, m, n))],
        f.options("BatchMatMul", adjX=x, adjY=y),
    )


def dense(f: File) -> None:
    shape, depth, units = (
        sizes(f, int(f.rng.integers(1, 4))),
        int(f.rng.integers(2, 9)),
        int(f.rng.integers(1, 6)),
    )
    keep = pick(f, True, False)
    rows = int(np.prod(shape))
    out = [*shape, units] if keep else [rows, units]
    b = f.weights(units) if pick(f, True, False) else -1
    o = f.options("FullyConnected", keepNumDims=keep, fusedActivationFunction=pick(f, 0, 1, 3))
    f.add(
        "FULLY_CONNECTED",
        [f.input((*shape, depth)), f.weights(units, depth), b],
        [f.output(out)],
        o,
        version=5,
    )


def cumulative(f: File) -> None:
    shape = sizes(f, int(f.rng.integers(1, 4)))
    axis = int(f.rng.integers(-len(shape), len(shape)))
    o = f.options("Cumsum", exclusive=pick(f, True, False), reverse=pick(f, True, False))
    f.add("CUMSUM", [f.input(shape), f.constant(np.int32(axis))], [f.output(shape)], o)


def hot(f: File) -> list[np.ndarray]:
    shape = sizes(f, int(f.rng.integers(1, 3)))
    axis, depth = int(f.rng.integers(-1, len(shape) + 1)), int(f.rng.integers(1, 6))
    out = list(shape)
    out.insert(axis if axis >= 0 else len(shape), depth)
    numbers = [f.constant(np.float32(v)) for v in (2, -1)]
    f.add("ONE_HOT", [f.input(shape, "int32"), f.constant(np.int32(depth)), *numbers], [f.output(out)],
          f.options("OneHot", axis=axis))  # fmt: skip
    return [f.rng.integers(-1, depth + 1, shape).astype(np.int32)]


def integer_convolution(f: File) -> None:
    c, channels = sizes(f, 2, 1, 6)
    shape, k = (1, *sizes(f, 2, 4, 9), c), sizes(f, 2, 1, 4)
    padding = pick(f, 0, 1)
    scales = f.rng.uniform(0.001, 0.01, channels).astype(np.float32)
    step, zero = float(f.rng.uniform(0.01, 0.1)), int(f.rng.integers(-100, 100))
    w = f.constant(
        f.rng.integers(-127, 128, (channels, *k, c)).astype(np.int8), (scales, np.zeros(channels), 0)
    )
    b = f.constant(
        f.rng.integers(-500, 500, channels).astype(np.int32), (scales * step, np.zeros(channels), 0)
    )
    out = [out_size(n, m, 1, 1, padding) for n, m in zip(shape[1:3], k, strict=True)]
    o = f.options("Conv2D", padding=padding, strideH=1, strideW=1, dilationHFactor=1, dilationWFactor=1,
                  fusedActivationFunction=pick(f, 0, 1, 3))  # fmt: skip
    y = f.output(
        (1, *out, channels), "int8", (float(f.rng.uniform(0.03, 0.2)), int(f.rng.integers(-100, 100)))
    )
    f.add("CONV_2D", [f.input(shape, "int8", (step, zero)), w, b], [y], o, version=3)


MAKERS: dict[str, Callable] = {
    m.__name__: m
    for m in (convolution, transposed, pool, volume, strided, reduction, arithmetic, padding, resize, moving, gathering,
              blocks, splitting, product, dense, cumulative, hot, integer_convolution)
}  # fmt: skip


@pytest.mark.parametrize("seed", range(SEEDS))
@pytest.mark.parametrize("name", MAKERS)
def test_random_operator(name: str, seed: int) -> None:
    file = File([seed, sum(name.encode())])  # type: ignore[arg-type]
    feeds = MAKERS[name](file)
    agree(file, feeds, steps=1, least_db=115 if name == "resize" else 120)  # coordinates round
