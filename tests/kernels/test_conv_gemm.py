"""Convolution by gathered panels on random geometry against the reference, on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import random_convolutions, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def _node(x: np.ndarray, w: np.ndarray, pads: list[int], strides: list[int]) -> tuple[Node, np.ndarray]:
    y = conv2d(x, w, pads=pads, strides=strides)
    attributes = {
        "pads": pads,
        "strides": strides,
        "dilations": [1, 1],
        "group": 1,
        "kernel_shape": list(w.shape[2:]),
    }
    return Node("Conv", "n", attributes, (Operand(x.shape), Operand.of(w)), (Operand(y.shape),)), y


def test_im2col_equals_the_reference_on_random_geometry() -> None:
    for node, arrays, expected in random_convolutions(np.random.default_rng(0), 200):
        same_for_all_machines("im2col-gemm", node, arrays, [expected])


@pytest.mark.parametrize("outs", [3, 70])  # read in place, or packed
@pytest.mark.parametrize("size", [(7, 7), (12, 16)])
def test_pointwise(outs: int, size: tuple[int, int]) -> None:
    rng = np.random.default_rng(1)
    x = rng.standard_normal((2, 19, *size), dtype=np.float32)
    w = rng.standard_normal((outs, 19, 1, 1), dtype=np.float32)
    node, y = _node(x, w, [0, 0, 0, 0], [1, 1])
    same_for_all_machines("im2col-gemm", node, [x, w], [y])


def test_more_taps_than_a_panel_holds() -> None:
    rng = np.random.default_rng(2)
    x = rng.standard_normal((1, 600, 5, 12), dtype=np.float32)
    w = rng.standard_normal((9, 600, 3, 3), dtype=np.float32)
    node, y = _node(x, w, [1, 1, 1, 1], [1, 1])
    same_for_all_machines("im2col-gemm", node, [x, w], [y])


def test_columns_never_lie_in_memory_as_a_whole() -> None:
    x, w = np.ones((1, 64, 64, 64), np.float32), np.ones((8, 64, 3, 3), np.float32)
    node, y = _node(x, w, [1, 1, 1, 1], [1, 1])
    bench = Bench(kernels.get("im2col-gemm")(), node, [x, None], Context.here())
    assert bench.workspace <= 512 * 1024 + 4 * 64 * 66 * 66 + 4096 < 9 * x.nbytes
    assert np.array_equal(bench.run()[0], y)


def test_it_refuses_weights_that_are_computed() -> None:
    x, w = np.ones((1, 2, 4, 4), np.float32), np.ones((2, 2, 1, 1), np.float32)
    node, _ = _node(x, w, [0, 0, 0, 0], [1, 1])
    computed = Node("Conv", "n", node.attributes, (Operand(x.shape), Operand(w.shape)), node.outputs)
    assert "constant" in kernels.get("im2col-gemm")().refuses(computed, Context(1))
