"""Convolution with sparse weights on random geometry against the reference, on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import random_convolutions, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
NAMES = ["csr-direct", "csr-gemm"]


@pytest.mark.parametrize("name", NAMES)
@pytest.mark.parametrize("sparsity", [0.75, 0.95])
def test_csr_equals_the_reference_on_random_geometry(name: str, sparsity: float) -> None:
    tried = 0
    for node, arrays, expected in random_convolutions(np.random.default_rng(0), 150, sparsity=sparsity):
        if not kernels.get(name)().refuses(node, Context(1)):
            same_for_all_machines(name, node, arrays, [expected])
            tried += 1
    assert tried > 120


def _layer(
    rng: np.random.Generator, outs: int, ins: int, size: tuple[int, int], kernel: int, sparsity: float
) -> tuple[Node, np.ndarray]:
    x = rng.standard_normal((1, ins, *size), dtype=np.float32)
    w = rng.standard_normal((outs, ins, kernel, kernel), dtype=np.float32)
    w[rng.random(w.shape) < sparsity] = 0
    attributes = {
        "pads": [kernel // 2] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": [kernel, kernel],
    }
    y = Operand((1, outs, *size))
    return Node("Conv", "n", attributes, (Operand(x.shape), Operand.of(w)), (y,)), x


@pytest.mark.parametrize("name", NAMES)
def test_channels_come_in_passes_that_add_up(name: str) -> None:
    node, x = _layer(np.random.default_rng(1), 20, 500, (9, 21), 3, 0.6)
    expected = conv2d(x, node.operand(1).constant, pads=[1, 1, 1, 1])
    same_for_all_machines(name, node, [x, None], [expected])


@pytest.mark.parametrize("name", NAMES)
def test_weights_that_are_all_zero_give_the_bias(name: str) -> None:
    x, w, b = np.ones((1, 3, 4, 5), np.float32), np.zeros((2, 3, 3, 3), np.float32), np.float32([1, -2])
    attributes = {
        "pads": [1] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": [3, 3],
        "act": 1,
    }
    node = Node(
        "Conv",
        "n",
        attributes,
        (Operand(x.shape), Operand.of(w), Operand.of(b)),
        (Operand((1, 2, 4, 5)),),
    )
    expected = np.broadcast_to(np.float32([1, 0])[None, :, None, None], (1, 2, 4, 5))
    same_for_all_machines(name, node, [x, None, None], [expected])


def test_dense_weights_are_refused() -> None:
    node, _ = _layer(np.random.default_rng(2), 4, 8, (6, 6), 3, 0.2)
    for name in NAMES:
        assert "of its weights are 0" in kernels.get(name)().refuses(node, Context(1))


@pytest.mark.parametrize(("sparsity", "sparse"), [(0.4, False), (0.65, True), (0.9, True)])
@pytest.mark.parametrize(("channels", "size"), [(128, 28), (64, 32), (256, 14)])
def test_the_estimate_takes_sparse_above_break_even(
    channels: int, size: int, sparsity: float, sparse: bool
) -> None:
    here = Context.here()
    node, _ = _layer(np.random.default_rng(3), channels, channels, (size, size), 3, sparsity)
    cost = {}
    for name in (*NAMES, "spatial-pack"):
        kernel = kernels.get(name)()
        if not kernel.refuses(node, here):
            cost[name] = kernel.cost(node, kernel.forms(node, here)[0], here)
    assert (min(cost, key=lambda n: cost[n]) != "spatial-pack") == sparse
