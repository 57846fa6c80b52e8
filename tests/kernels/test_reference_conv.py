"""Convolution and pooling references against ONNX Runtime on random geometry, and what they refuse."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from onnx_oracle import near, run_node

from dlas.core.errors import ShapeError
from dlas.kernels.reference.conv import conv2d, conv_transpose2d
from dlas.kernels.reference.pooling import average_pool2d, global_average_pool, max_pool2d


def test_conv_equals_onnxruntime_on_random_geometry():
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 200:
        groups = int(rng.choice([1, 1, 2, 3, 5]))
        per_group, per_filter = int(rng.integers(1, 6)), int(rng.integers(1, 6))
        kernel = [int(v) for v in rng.integers(1, 6, 2)]
        strides, dilations = ([int(v) for v in rng.integers(1, 6 - t, 2)] for t in (0, 2))
        pads = [int(v) for v in rng.integers(0, 4, 4)]
        size = [int(v) for v in rng.integers(1, 13, 2)]
        reach = [(kernel[a] - 1) * dilations[a] + 1 - pads[a] - pads[2 + a] for a in (0, 1)]
        if any(size[a] < reach[a] for a in (0, 1)):
            continue
        tried += 1
        x = _normal(rng, int(rng.integers(1, 4)), groups * per_group, *size)
        w = _normal(rng, groups * per_filter, per_group, *kernel)
        b = _normal(rng, groups * per_filter) if rng.random() < 0.7 else None
        attributes = {"strides": strides, "pads": pads, "dilations": dilations}
        found = conv2d(x, w, b, **attributes, groups=groups)
        near(found, run_node("Conv", {"x": x, "w": w, "b": b}, group=groups, **attributes)[0])


def test_transposed_conv_equals_onnxruntime_on_random_geometry():
    rng = np.random.default_rng(1)
    tried = 0
    while tried < 200:
        groups = int(rng.choice([1, 1, 2, 3]))
        per_group, per_filter = int(rng.integers(1, 5)), int(rng.integers(1, 5))
        kernel = [int(v) for v in rng.integers(1, 5, 2)]
        strides, dilations = ([int(v) for v in rng.integers(1, 5 - t, 2)] for t in (0, 2))
        pads = [int(v) for v in rng.integers(0, 3, 4)]
        extra = [int(rng.integers(0, strides[a])) for a in (0, 1)]
        size = [int(v) for v in rng.integers(1, 8, 2)]
        grown = [
            (size[a] - 1) * strides[a] + (kernel[a] - 1) * dilations[a] + 1 + extra[a] - pads[a] - pads[2 + a]
            for a in (0, 1)
        ]
        if min(grown) < 1:
            continue
        tried += 1
        x = _normal(rng, int(rng.integers(1, 3)), groups * per_group, *size)
        w = _normal(rng, groups * per_group, per_filter, *kernel)
        b = _normal(rng, groups * per_filter) if rng.random() < 0.7 else None
        attributes = {"strides": strides, "pads": pads, "dilations": dilations, "output_padding": extra}
        found = conv_transpose2d(x, w, b, **attributes, groups=groups)
        near(found, run_node("ConvTranspose", {"x": x, "w": w, "b": b}, group=groups, **attributes)[0])


@pytest.mark.parametrize("op", ["MaxPool", "AveragePool"])
def test_pooling_equals_onnxruntime_on_random_geometry(op):
    rng = np.random.default_rng(2)
    tried = 0
    while tried < 200:
        kernel = [int(v) for v in rng.integers(1, 6, 2)]
        strides, dilations = ([int(v) for v in rng.integers(1, 6 - 2 * t, 2)] for t in (0, 1))
        pads = [int(rng.integers(0, kernel[a % 2])) for a in range(4)]
        size = [int(v) for v in rng.integers(1, 13, 2)]
        # No window may see padding alone.
        if any(size[a] < (kernel[a] - 1) * dilations[a] + 1 for a in (0, 1)):
            continue
        tried += 1
        x = _normal(rng, int(rng.integers(1, 4)), int(rng.integers(1, 4)), *size)
        ceil, counted = bool(rng.integers(2)), bool(rng.integers(2))
        given = {"strides": strides, "pads": pads, "dilations": dilations}
        asked = {"kernel_shape": kernel, "ceil_mode": int(ceil), **given}
        if op == "MaxPool":
            found = max_pool2d(x, kernel, **given, ceil_mode=ceil)
        else:
            asked["count_include_pad"] = int(counted)
            found = average_pool2d(x, kernel, **given, ceil_mode=ceil, count_include_pad=counted)
        near(found, run_node(op, {"x": x}, **asked)[0])


def test_max_pool_keeps_int8():
    x = np.random.default_rng(3).integers(-128, 128, (2, 3, 7, 9)).astype(np.int8)
    found = max_pool2d(x, (3, 2), strides=(2, 1), pads=(1, 0, 1, 1))
    expected = run_node("MaxPool", {"x": x}, kernel_shape=[3, 2], strides=[2, 1], pads=[1, 0, 1, 1])[0]
    assert found.dtype == np.int8
    np.testing.assert_array_equal(found, expected)


def test_global_average_pool():
    x = _normal(np.random.default_rng(4), 2, 5, 7, 3)
    near(global_average_pool(x), run_node("GlobalAveragePool", {"x": x})[0])


def test_conv_adds_in_64_bits():
    x = np.array([1e8, 1.0, -1e8], np.float32).reshape(1, 3, 1, 1)
    assert conv2d(x, np.ones((1, 3, 1, 1), np.float32)).item() == 1.0


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"groups": 3}, "groups = 3 does not divide the 4 channels"),
        ({"groups": 4}, "groups = 4 does not divide the 6 filters"),
        ({"groups": 1}, "w has 2 channels per group"),
        ({"groups": 0}, "groups"),
        ({"strides": (0, 1)}, "strides"),
        ({"strides": (1,)}, "strides"),
        ({"strides": (1.5, 1)}, "strides"),
        ({"dilations": (1, 0)}, "dilations"),
        ({"dilations": (9, 1)}, "does not fit"),
        ({"pads": (0, -1, 0, 0)}, "pads"),
        ({"pads": (0, 0)}, "pads"),
    ],
)
def test_conv_names_what_does_not_fit(change, named):
    x, w = np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 2, 3, 3), np.float32)
    given = {"groups": 2, **change}
    with pytest.raises(ShapeError, match=named.replace("(", r"\(")):
        conv2d(x, w, **given)


@pytest.mark.parametrize(
    ("x", "w", "b", "named"),
    [
        (np.zeros((4, 5, 5), np.float32), np.zeros((6, 4, 3, 3), np.float32), None, "x has the shape"),
        (np.zeros((1, 4, 5, 5), np.int8), np.zeros((6, 4, 3, 3), np.float32), None, "x is int8"),
        (np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 4, 3), np.float32), None, "w has the shape"),
        (np.zeros((1, 4, 5, 5), np.float32), np.zeros((6, 4, 0, 3), np.float32), None, "size 0"),
        (
            np.zeros((1, 4, 5, 5), np.float32),
            np.zeros((6, 4, 3, 3), np.float32),
            np.zeros(5, np.float32),
            "b has",
        ),
        ([[1.0]], np.zeros((6, 4, 3, 3), np.float32), None, "x is a list"),
    ],
)
def test_conv_refuses_arrays_that_do_not_fit(x, w, b, named):
    with pytest.raises(ShapeError, match=named):
        conv2d(x, w, b)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"output_padding": (2, 0)}, "output_padding"),
        ({"pads": (5, 5, 5, 5)}, "cut everything off"),
        ({"groups": 3}, "groups = 3"),
        ({"strides": (0, 1)}, "strides"),
    ],
)
def test_transposed_conv_names_what_does_not_fit(change, named):
    x, w = np.zeros((1, 4, 3, 3), np.float32), np.zeros((4, 2, 3, 3), np.float32)
    with pytest.raises(ShapeError, match=named):
        conv_transpose2d(x, w, **{"strides": (2, 2), **change})


def test_transposed_conv_refuses_other_channels():
    with pytest.raises(ShapeError, match="w has 3 input channels"):
        conv_transpose2d(np.zeros((1, 4, 3, 3), np.float32), np.zeros((3, 2, 3, 3), np.float32))


@pytest.mark.parametrize("pool", [max_pool2d, average_pool2d])
@pytest.mark.parametrize(
    ("given", "named"),
    [
        ({"pads": (3, 0, 0, 0)}, "pads"),
        ({"strides": (0, 1)}, "strides"),
        ({"dilations": (5, 1)}, "does not fit"),
    ],
)
def test_pooling_names_what_does_not_fit(pool, given, named):
    with pytest.raises(ShapeError, match=named):
        pool(np.zeros((1, 1, 5, 5), np.float32), (3, 3), **given)


def test_pooling_refuses_other_dtypes_and_empty_means():
    with pytest.raises(ShapeError, match="int32"):
        max_pool2d(np.zeros((1, 1, 4, 4), np.int32), (2, 2))
    with pytest.raises(ShapeError, match="something to average"):
        global_average_pool(np.zeros((1, 2), np.float32))


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_every_combination_of_zero_pads_is_the_plain_sum():
    x, w = np.ones((1, 1, 4, 4), np.float32), np.ones((1, 1, 2, 2), np.float32)
    for pads in itertools.product((0, 1), repeat=4):
        y = conv2d(x, w, pads=pads)
        assert y.shape == (1, 1, 3 + pads[0] + pads[2], 3 + pads[1] + pads[3])
        assert y.sum() == 4 * (3 + pads[0] + pads[2] - 0.5 * (pads[0] + pads[2])) * (
            3 + pads[1] + pads[3] - 0.5 * (pads[1] + pads[3])
        )
