"""Kernels that only move elements: bytes equal to NumPy's or ONNX Runtime's."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import cases_for, check, contexts, needs_native, node_of
from onnx_oracle import run_node

from dlas.kernels.kernel import Context, Form
from dlas.kernels.layers.elementwise.cast import Cast
from dlas.kernels.layers.elementwise.where import Where
from dlas.kernels.layers.shape.concat import Concat
from dlas.kernels.layers.shape.depth_to_space import DepthToSpace
from dlas.kernels.layers.shape.expand import Expand
from dlas.kernels.layers.shape.gather import Gather
from dlas.kernels.layers.shape.pad import Pad
from dlas.kernels.layers.shape.reorder import Reorder
from dlas.kernels.layers.shape.reshape import Reshape
from dlas.kernels.layers.shape.resize import Resize
from dlas.kernels.layers.shape.slice import Slice
from dlas.kernels.layers.shape.split import Split
from dlas.kernels.layers.shape.transpose import Transpose
from dlas.kernels.layout import Halo, Layout, storage, to_layout
from dlas.kernels.single import Bench

pytestmark = needs_native
CASES = cases_for(200)


@pytest.fixture(scope="module")
def pairs():
    return contexts()


@pytest.fixture
def rng():
    return np.random.default_rng(5)


def sized(rng, rank=4, most=9, channels=40):
    shape = rng.integers(1, most, rank)
    if rank == 4:
        shape[1] = rng.choice([1, 3, 4, 8, 16, 17, 32, channels])
        if shape[1] == shape[2] == shape[3]:
            shape[2] += 1  # `to_layout` of the tests cannot tell plain from nhwc there
    return tuple(int(s) for s in shape)


def values(rng, shape, dtype="float32"):
    return (rng.normal(size=shape) * 40).astype(dtype)


@pytest.mark.parametrize("dtype", ["float32", "int8"])
def test_reorder_changes_the_layout_and_nothing_else(pairs, rng, dtype):
    for _ in range(CASES):
        x = values(rng, sized(rng, most=21), dtype)
        assert check(Reorder(), pairs, "Reorder", [x], [x], tolerance=0) == 4 * len(pairs)


def test_reorder_leaves_the_frame_and_clears_spare_lanes(pairs, rng):
    for one, _ in pairs:
        x = values(rng, (2, one.block + 3, 5, 7))
        place = storage(x.shape, "float32", Layout.BLOCKED, halo=Halo(1, 2, 0, 1), block=one.block)
        buffer = np.full(place.size, 7.0, np.float32)
        source = storage(x.shape, "float32")
        node = node_of("Reorder", [x], outputs=[(x.shape, "float32")])
        Reorder().prepare(node, [source], [place], one).run([x], [place.view(buffer)])
        np.testing.assert_array_equal(place.view(buffer), to_layout(x, place))
        place.view(buffer)[...] = 7.0
        np.testing.assert_array_equal(buffer, 7.0)


def test_transpose(pairs, rng):
    for case in range(CASES):
        rank = int(rng.integers(1, 6)) if case % 2 else 4
        dtype = ["float32", "int64", "uint8", "float32", "int16"][case % 5]
        x = values(rng, sized(rng, rank, 9), dtype)
        perm = rng.permutation(rank).tolist()
        y = np.ascontiguousarray(x.transpose(perm))
        if y.ndim == 4 and len(set(y.shape[1:])) == 1:
            continue
        check(Transpose(), pairs, "Transpose", [x], [y], tolerance=0, perm=perm)
    x = values(rng, (1, 37, 65, 50))
    check(
        Transpose(), pairs, "Transpose", [x], [x.transpose(0, 2, 3, 1).copy()], tolerance=0, perm=[0, 2, 3, 1]
    )


def test_slice_with_any_bounds(pairs, rng):
    for case in range(CASES):
        x = values(
            rng,
            sized(rng, 4 if case % 2 else int(rng.integers(1, 5))),
            ["float32", "int64", "uint8"][case % 3],
        )
        axes = rng.permutation(x.ndim)[: rng.integers(1, x.ndim + 1)]
        steps = rng.choice([1, 1, 2, -1, -2, 3], len(axes))
        starts = rng.integers(-12, 12, len(axes))
        ends = rng.choice([-(2**60), -3, -1, 2, 5, 16, 2**60], len(axes))
        given = [x, *(a.astype(np.int64) for a in (starts, ends, axes, steps))]
        (y,) = run_node("Slice", dict(zip("xseat", given, strict=True)))
        if y.size and not (y.ndim == 4 and len(set(y.shape[1:])) == 1):
            check(Slice(), pairs, "Slice", given, [y], (1, 2, 3, 4), tolerance=0)
    x = values(rng, (1, 64, 3, 5))
    given = [x, *(np.array([v]) for v in (16, 41, 1, 1))]
    assert check(Slice(), pairs, "Slice", given, [x[:, 16:41]], (1, 2, 3, 4), tolerance=0) == 2 * len(pairs)


def test_concat_and_split(pairs, rng):
    blocked = 0
    for case in range(CASES):
        shape = sized(rng, 4 if case % 3 else 3)
        axis = int(rng.integers(-len(shape), len(shape)))
        parts = []
        for _ in range(int(rng.integers(1, 5))):
            own = list(shape)
            own[axis] = int(rng.choice([16, 32, 48])) if axis % len(shape) == 1 else int(rng.integers(1, 6))
            parts.append(values(rng, own, "uint8" if case % 5 == 0 else "float32"))
        whole = np.concatenate(parts, axis)
        if any(p.ndim == 4 and len(set(p.shape[1:])) == 1 for p in (*parts, whole)):
            continue
        blocked += check(Concat(), pairs, "Concat", parts, [whole], tolerance=0, axis=axis) > len(pairs)
        sizes = np.array([p.shape[axis] for p in parts], np.int64)
        check(Split(), pairs, "Split", [whole, sizes], parts, (1,), tolerance=0, axis=axis)
    assert blocked > CASES // 3


@pytest.mark.parametrize("mode", ["constant", "edge", "reflect", "wrap"])
def test_pad(pairs, rng, mode):
    for case in range(CASES // 3):
        x = values(rng, sized(rng, 4 if case % 3 else 2), ["float32", "float32", "int8"][case % 3])
        most = [min(3, s - 1) for s in x.shape]
        pads = [int(rng.integers(0, m + 1)) for m in most * 2]
        if case % 2 and x.ndim == 4:
            pads[0] = pads[1] = pads[4] = pads[5] = 0
        if mode == "constant" and case % 4 == 0:
            pads[-1] = 1 - x.shape[-1]
        given = [x, np.array(pads, np.int64), np.array(3, x.dtype)]
        (y,) = run_node("Pad", {"x": x, "p": given[1], "v": given[2]}, opset=19, mode=mode)
        if any(a.ndim == 4 and len(set(a.shape[1:])) == 1 for a in (x, y)):
            continue
        check(Pad(), pairs, "Pad", given, [y], (1, 2), tolerance=0, mode=mode)


def test_reshape_expand_and_tile(pairs, rng):
    for _ in range(CASES):
        x = values(rng, sized(rng, int(rng.integers(1, 5))), "int64")
        check(Reshape(), pairs, "Reshape", [x, np.array([-1])], [x.reshape(-1)], (1,), tolerance=0)
        ones = x[tuple(slice(0, 1) if rng.integers(2) else slice(None) for _ in x.shape)].copy()
        wide = np.broadcast_to(ones, (2, *x.shape)).copy()
        check(Expand(), pairs, "Expand", [ones, np.array(wide.shape)], [wide], (1,), tolerance=0)
        repeats = rng.integers(1, 4, x.ndim)
        check(Expand(), pairs, "Tile", [x, repeats], [np.tile(x, repeats)], (1,), tolerance=0)
    x = values(rng, (2, 19, 3, 4))
    assert check(Reshape(), pairs, "Identity", [x], [x], tolerance=0) == 2 * len(pairs)


def test_depth_to_space_and_back(pairs, rng):
    for case in range(CASES):
        size, (n, c, h, w) = int(rng.integers(1, 4)), rng.integers(1, 6, 4)
        x = values(rng, (n, c * size * size, h, w))
        mode = ("DCR", "CRD")[case % 2]
        (y,) = run_node("DepthToSpace", {"x": x}, blocksize=size, mode=mode)
        check(DepthToSpace(), pairs, "DepthToSpace", [x], [y], tolerance=0, blocksize=size, mode=mode)
        (back,) = run_node("SpaceToDepth", {"x": y}, blocksize=size)
        check(DepthToSpace(), pairs, "SpaceToDepth", [y], [back], tolerance=0, blocksize=size)


def test_gather_by_constant_and_computed_indices(pairs, rng):
    for case in range(CASES):
        x = values(rng, sized(rng, int(rng.integers(1, 5))), ["float32", "int64", "uint8"][case % 3])
        axis = int(rng.integers(-x.ndim, x.ndim))
        size = x.shape[axis]
        if case % 2:
            indices = rng.integers(-size, size, rng.integers(1, 4, int(rng.integers(0, 3))))
        else:
            indices = np.arange(size)[:: int(rng.choice([1, 2, -1]))]
        indices = np.asarray(indices, [np.int64, np.int32][case // 2 % 2])
        for constant in ((1,), ()):
            expected = np.take(x, indices, axis)
            check(Gather(), pairs, "Gather", [x, indices], [expected], constant, tolerance=0, axis=axis)


def test_gather_refuses_indices_outside():
    x, outside = np.zeros((3, 2), np.float32), np.array([0, 3])
    one = Context.here()
    constant = node_of("Gather", [x, outside], (1,), outputs=[((2, 2), "float32")])
    assert "outside" in Gather().refuses(constant, one)
    computed = node_of("Gather", [x, outside], outputs=[((2, 2), "float32")])
    with pytest.raises(RuntimeError, match="index 3 is outside an axis of 3"):
        Bench(Gather(), computed, [x, outside], one).run()


def test_where_and_cast(pairs, rng):
    dtypes = ("float32", "int8", "uint8", "int32", "int64", "bool")
    for case in range(CASES):
        shape = sized(rng, int(rng.integers(1, 5)))
        x = (rng.integers(0, 2, shape) * rng.integers(0, 100, shape)).astype(dtypes[case % 6])
        for dtype in dtypes:
            check(Cast(), pairs, "Cast", [x], [x.astype(dtype)], tolerance=0)
        given = [x[tuple(slice(0, 1) if rng.integers(2) else slice(None) for _ in shape)] for _ in range(3)]
        given[0] = given[0].astype(bool)
        given = [np.ascontiguousarray(g) for g in given]
        check(Where(), pairs, "Where", given, [np.where(*given)], tolerance=0)


MODES = ("half_pixel", "pytorch_half_pixel", "align_corners", "asymmetric", "half_pixel_symmetric")


@pytest.mark.parametrize("mode", ["nearest", "linear", "cubic"])
def test_resize_by_scales_and_by_sizes(pairs, rng, mode):
    for case in range(CASES // 2):
        x = rng.normal(size=sized(rng, most=7)).astype(np.float32)
        # Sizes whose quotients are no halves: there, rounding decides which neighbour is nearest.
        old, new = x.shape[2:], rng.integers(1, 15, 2)
        if case % 2:
            scales, sizes = None, np.array([*x.shape[:2], *new])
        else:
            scales, sizes = np.array([1, 1, *rng.choice([0.5, 1, 2, 3, 1.7], 2)], np.float32), None
            if min(int(s * f) for s, f in zip(old, scales[2:], strict=True)) < 1:
                continue
        attributes = {"mode": mode, "coordinate_transformation_mode": MODES[case % 5]}
        if mode == "nearest":
            attributes["nearest_mode"] = ("round_prefer_floor", "round_prefer_ceil", "floor", "ceil")[
                case % 4
            ]
        if mode == "cubic":
            attributes |= {"cubic_coeff_a": -0.5, "exclude_outside": case % 2}
        (y,) = run_node(
            "Resize", {"x": x, "roi": None, "scales": scales, "sizes": sizes}, opset=19, **attributes
        )
        check(Resize(), pairs, "Resize", [x, None, scales, sizes], [y], (2, 3), tolerance=1e-5, **attributes)


def test_what_only_the_network_knows_is_refused(rng):
    one = Context.here()
    x, one_number = values(rng, (1, 2, 3, 4)), np.array([1])
    for kernel, op in ((Slice(), "Slice"), (Pad(), "Pad"), (Resize(), "Resize")):
        node = node_of(op, [x, one_number], outputs=[(x.shape, "float32")])
        assert "computed by the network" in kernel.refuses(node, one)


def test_plain_maps_of_bytes_may_have_equal_sides(rng):
    x = values(rng, (1, 4, 4, 4), "int8")
    node = node_of("Reorder", [x], outputs=[(x.shape, "int8")])
    one = Context.here()
    place = storage(x.shape, "int8", Layout.NHWC)
    view = place.empty()
    assert Form((Layout.PLAIN,), (Layout.NHWC,)) in Reorder().forms(node, one)
    Reorder().prepare(node, [storage(x.shape, "int8")], [place], one).run([x], [view])
    np.testing.assert_array_equal(view, x.transpose(0, 2, 3, 1))
