"""Pools and reductions against the NumPy references and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import cases_for, check, contexts, needs_native, node_of
from onnx_oracle import run_node

from dlas.core.errors import ShapeError
from dlas.kernels.kernel import ACTIVATIONS, Context
from dlas.kernels.layers.pooling.arg_extreme import ArgExtreme
from dlas.kernels.layers.pooling.average_pool import AveragePool
from dlas.kernels.layers.pooling.global_pool import GlobalPool
from dlas.kernels.layers.pooling.max_pool import MaxPool
from dlas.kernels.layers.pooling.reduce import Reduce
from dlas.kernels.reference.pooling import average_pool2d, max_pool2d

pytestmark = needs_native
CASES = cases_for(200)


@pytest.fixture(scope="module")
def pairs():
    return contexts()


@pytest.fixture
def rng():
    return np.random.default_rng(6)


def windows(rng, cases):
    """Random inputs and attributes whose windows fit."""
    found = 0
    while found < cases:
        x = rng.normal(size=rng.integers(1, [3, 36, 12, 20])).astype(np.float32)
        kernel = rng.integers(1, 6, 2)
        attributes = {
            "strides": rng.integers(1, 5, 2).tolist(),
            "pads": [int(rng.integers(0, k)) for k in (*kernel, *kernel)],
            "dilations": rng.integers(1, 3, 2).tolist(),
            "ceil_mode": bool(rng.integers(2)),
        }
        try:
            max_pool2d(x, kernel.tolist(), **attributes)
        except ShapeError:
            continue
        found += 1
        yield x, kernel.tolist(), attributes


def test_max_pool(pairs, rng):
    for x, kernel, attributes in windows(rng, CASES):
        y = max_pool2d(x, kernel, **attributes)
        given = attributes | {"ceil_mode": int(attributes["ceil_mode"]), "kernel_shape": kernel}
        assert check(MaxPool(), pairs, "MaxPool", [x], [y], tolerance=0, **given) == 2 * len(pairs)


def test_average_pool(pairs, rng):
    for case, (x, kernel, attributes) in enumerate(windows(rng, CASES)):
        with np.errstate(invalid="ignore", divide="ignore"):
            y = average_pool2d(x, kernel, count_include_pad=bool(case % 2), **attributes)
        if not np.isfinite(y).all():
            continue  # a window that lies in the padding alone
        given = attributes | {
            "ceil_mode": int(attributes["ceil_mode"]), "kernel_shape": kernel, "count_include_pad": case % 2
        }  # fmt: skip
        check(AveragePool(), pairs, "AveragePool", [x], [y], **given)


def test_pools_fuse_an_activation(pairs, rng):
    x = rng.normal(size=(2, 19, 7, 9)).astype(np.float32)
    y = np.maximum(average_pool2d(x, (3, 3)), 0)
    check(AveragePool(), pairs, "AveragePool", [x], [y], kernel_shape=[3, 3], act=ACTIVATIONS["Relu"])


def test_infinities_win_or_lose(pairs):
    x = np.full((1, 3, 4, 4), -np.inf, np.float32)
    x[0, 1, 2, 2] = np.inf
    y = max_pool2d(x, (2, 2), strides=(2, 2))
    check(MaxPool(), pairs, "MaxPool", [x], [y], kernel_shape=[2, 2], strides=[2, 2])


def test_global_pools(pairs, rng):
    for case in range(CASES):
        x = rng.normal(size=rng.integers(1, [3, 40, 12, 20])).astype(np.float32)
        mean, highest = x.mean((2, 3), keepdims=True), x.max((2, 3), keepdims=True)
        check(GlobalPool(), pairs, "GlobalAveragePool", [x], [mean])
        if case % 2:
            check(GlobalPool(), pairs, "GlobalMaxPool", [x], [highest], tolerance=0)
            continue
        axes = np.array([-1, 2])
        assert check(GlobalPool(), pairs, "ReduceMean", [x, axes], [mean], (1,)) == 3 * len(pairs)
        check(GlobalPool(), pairs, "ReduceMax", [x], [highest[..., 0, 0]], axes=[2, 3], keepdims=0)


def test_pools_refuse_what_they_cannot_do(rng):
    one = Context.here()
    x = rng.normal(size=(1, 2, 3, 4)).astype(np.float32)
    twice = [((1, 2, 2, 3), "float32"), ((1, 2, 2, 3), "int64")]
    assert "indices" in MaxPool().refuses(node_of("MaxPool", [x], outputs=twice), one)
    flat = node_of("AveragePool", [x[0]], outputs=[((2, 2, 2), "float32")])
    assert "(N, C, H, W)" in AveragePool().refuses(flat, one)
    rows = node_of("ReduceMean", [x], outputs=[((1, 2, 1, 4), "float32")], attributes={"axes": [2]})
    assert "axes 2 and 3, not [2]" in GlobalPool().refuses(rows, one)


REDUCTIONS = {
    "ReduceSum": np.sum,
    "ReduceMean": np.mean,
    "ReduceMax": np.max,
    "ReduceMin": np.min,
    "ReduceProd": np.prod,
    "ReduceSumSquare": lambda x, axis, keepdims: np.square(x).sum(axis, keepdims=keepdims),
    "ReduceL1": lambda x, axis, keepdims: np.abs(x).sum(axis, keepdims=keepdims),
    "ReduceL2": lambda x, axis, keepdims: np.sqrt(np.square(x).sum(axis, keepdims=keepdims)),
}


@pytest.mark.parametrize("op", REDUCTIONS)
def test_reduce_over_any_axes(pairs, rng, op):
    for case in range(CASES // 2):
        rank = int(rng.integers(1, 6))
        x = rng.normal(size=rng.integers(1, 8, rank)).astype(np.float32)
        if case % 5 == 0:
            x = rng.normal(size=(3, 70, 300) if case % 10 else (2, 300, 3)).astype(np.float32)
            x = x / 30 if op == "ReduceProd" else x
        axes = rng.permutation(x.ndim)[: rng.integers(1, x.ndim + 1)]
        keep = bool(rng.integers(2))
        y = np.asarray(REDUCTIONS[op](x.astype(np.float64), tuple(axes), keepdims=keep), np.float32)
        check(Reduce(), pairs, op, [x, axes - x.ndim], [y], (1,), tolerance=5e-6, keepdims=int(keep))
    x = rng.normal(size=(3, 4)).astype(np.float32)
    y = np.asarray(REDUCTIONS[op](x.astype(np.float64), None, keepdims=False), np.float32)
    check(Reduce(), pairs, op, [x], [y], keepdims=0)


def test_arg_extremes(pairs, rng):
    for case in range(CASES):
        x = rng.integers(0, 4, rng.integers(1, 9, int(rng.integers(1, 5)))).astype(np.float32)
        attributes = {
            "axis": int(rng.integers(-x.ndim, x.ndim)), "keepdims": case % 2, "select_last_index": case // 2 % 2
        }  # fmt: skip
        for op in ("ArgMax", "ArgMin"):
            (y,) = run_node(op, {"x": x}, **attributes)
            check(ArgExtreme(), pairs, op, [x], [y], **attributes)
