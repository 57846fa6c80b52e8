"""Softmax and normalisations against the NumPy references and ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import cases_for, check, contexts, needs_native, node_of
from onnx_oracle import run_node

from dlas.kernels.kernel import ACTIVATIONS, Context
from dlas.kernels.layers.normalisation.batch_norm import BatchNorm
from dlas.kernels.layers.normalisation.lrn import Lrn
from dlas.kernels.layers.normalisation.normalise import Normalise
from dlas.kernels.layers.normalisation.softmax import Softmax
from dlas.kernels.reference.normalisation import (
    batch_norm,
    instance_norm,
    layer_norm,
    local_response_norm,
    log_softmax,
    softmax,
)
from dlas.kernels.single import Bench

pytestmark = needs_native
CASES = cases_for(200)


@pytest.fixture(scope="module")
def pairs():
    return contexts()


@pytest.fixture
def rng():
    return np.random.default_rng(8)


def floats(rng, *shape):
    return rng.normal(size=shape).astype(np.float32)


def test_softmax_along_any_axis(pairs, rng):
    for case in range(CASES):
        x = floats(rng, *rng.integers(1, 40 if case % 7 == 0 else 9, int(rng.integers(1, 5)))) * (
            20 if case % 3 else 1
        )
        axis = int(rng.integers(-x.ndim, x.ndim))
        check(Softmax(), pairs, "Softmax", [x], [softmax(x, axis)], axis=axis)
        check(Softmax(), pairs, "LogSoftmax", [x], [log_softmax(x, axis)], axis=axis)
    x = floats(rng, 3, 2000)
    check(Softmax(), pairs, "Softmax", [x], [softmax(x)])


@pytest.mark.parametrize("axis", [0, 1])
def test_softmax_of_what_is_not_finite(pairs, axis):
    x = np.zeros((5, 5), np.float32)
    x[0, 0], x[1, 1], x[2, 2], x[3, :] = np.nan, np.inf, -np.inf, -np.inf
    for op in ("Softmax", "LogSoftmax"):
        (y,) = run_node(op, {"x": x}, axis=axis)
        for one, _ in pairs:
            node = node_of(op, [x], outputs=[(x.shape, "float32")], attributes={"axis": axis})
            (found,) = Bench(Softmax(), node, [x], one).run()
            np.testing.assert_array_equal(np.isnan(found), np.isnan(y))


def test_layer_and_rms_norm(pairs, rng):
    for case in range(CASES):
        x = floats(rng, *rng.integers(1, 40 if case % 4 == 0 else 6, int(rng.integers(1, 5)))) + 3
        axis = int(rng.integers(-x.ndim, x.ndim))
        shape = x.shape[axis:]
        scale, bias = floats(rng, *shape), floats(rng, *shape)
        if case % 5 == 0:
            bias = None
        y = layer_norm(x, scale, bias, axis=axis, epsilon=1e-3)
        check(
            Normalise(),
            pairs,
            "LayerNormalization",
            [x, scale, bias],
            [y],
            (1, 2),
            tolerance=1e-5,
            axis=axis,
            epsilon=1e-3,
        )
        axes = tuple(range(axis % x.ndim, x.ndim))
        square = np.square(x.astype(np.float64)).mean(axes, keepdims=True)
        y = (x / np.sqrt(square + 1e-5) * scale).astype(np.float32)
        check(Normalise(), pairs, "RMSNormalization", [x, scale], [y], (1,), tolerance=1e-5, axis=axis)


def test_instance_and_group_norm(pairs, rng):
    for _ in range(CASES):
        groups = int(rng.integers(1, 4))
        shape = (
            int(rng.integers(1, 3)),
            groups * int(rng.integers(1, 4)),
            *rng.integers(2, 7, int(rng.integers(1, 3))),
        )
        x = floats(rng, *shape)
        scale, bias = floats(rng, shape[1]), floats(rng, shape[1])
        y = np.maximum(instance_norm(x, scale, bias), 0)
        check(
            Normalise(),
            pairs,
            "InstanceNormalization",
            [x, scale, bias],
            [y],
            (1, 2),
            tolerance=1e-5,
            act=ACTIVATIONS["Relu"],
        )
        (y,) = run_node("GroupNormalization", {"x": x, "s": scale, "b": bias}, num_groups=groups)
        check(
            Normalise(),
            pairs,
            "GroupNormalization",
            [x, scale, bias],
            [y],
            (1, 2),
            tolerance=1e-5,
            num_groups=groups,
        )


def test_batch_norm(pairs, rng):
    for case in range(CASES):
        shape = (
            tuple(int(s) for s in rng.integers(1, [3, 36, 6, 8])) if case % 3 else (3, 5, 7)[: 2 + case % 2]
        )
        x = floats(rng, *shape)
        line = [floats(rng, shape[1]) for _ in range(3)] + [np.abs(floats(rng, shape[1])) + np.float32(0.1)]
        y = batch_norm(x, *line, epsilon=1e-3)
        check(
            BatchNorm(),
            pairs,
            "BatchNormalization",
            [x, *line],
            [y],
            (1, 2, 3, 4),
            tolerance=1e-5,
            epsilon=1e-3,
        )
        y = np.clip(y, -0.5, 0.5)
        clip = {"act": ACTIVATIONS["Clip"], "act_low": -0.5, "act_high": 0.5}
        check(
            BatchNorm(),
            pairs,
            "BatchNormalization",
            [x, *line],
            [y],
            (1, 2, 3, 4),
            tolerance=1e-5,
            epsilon=1e-3,
            **clip,
        )


def test_local_response_norm(pairs, rng):
    for case in range(CASES):
        x = floats(rng, *rng.integers(1, [3, 20, 6, 8][: 2 + case % 3])) * 10
        size, alpha, beta, bias = int(rng.integers(1, 8)), 0.01, float(rng.choice([0.5, 0.75, 1.3])), 1.5
        y = local_response_norm(x, size=size, alpha=alpha, beta=beta, bias=bias)
        check(Lrn(), pairs, "LRN", [x], [y], size=size, alpha=alpha, beta=beta, bias=bias)


def test_scales_that_the_network_computes_are_refused(rng):
    x, scale = floats(rng, 2, 4, 3), floats(rng, 4)
    node = node_of("InstanceNormalization", [x, scale, scale], outputs=[(x.shape, "float32")])
    assert "computed by the network" in Normalise().refuses(node, Context.here())
