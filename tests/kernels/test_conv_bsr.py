"""Convolution with block sparse weights on random geometry against the reference, on every machine."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import random_convolutions, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def _layer(
    rng: np.random.Generator, channels: int, size: int, sparsity: float, groups: int = 1
) -> tuple[Node, np.ndarray, np.ndarray]:
    """A 3x3 convolution whose blocks of 16 output channels are 0 with probability ``sparsity``."""
    x = rng.standard_normal((1, channels, size, size), dtype=np.float32)
    w = rng.standard_normal((channels, channels // groups, 3, 3), dtype=np.float32)
    zero = rng.random((channels // 16, *w.shape[1:])) < sparsity
    w[np.repeat(zero, 16, axis=0)] = 0
    attributes = {
        "pads": [1] * 4,
        "strides": [1, 1],
        "dilations": [1, 1],
        "group": groups,
        "kernel_shape": [3, 3],
    }
    y = conv2d(x, w, pads=[1] * 4, groups=groups)
    return Node("Conv", "n", attributes, (Operand(x.shape), Operand.of(w)), (Operand(y.shape),)), x, y


def test_bsr_equals_the_reference_on_random_geometry() -> None:
    rng, tried = np.random.default_rng(0), 0
    for node, arrays, expected in random_convolutions(rng, 700, sparsity=0.97):
        widest = Context(1, "x86-64-v4")
        if node.attributes["group"] > 1 or kernels.get("bsr")().refuses(node, widest):
            continue
        tried += 1
        same_for_all_machines("bsr", node, arrays, [expected])
    assert tried >= 200


@pytest.mark.parametrize("groups", [1, 2])
def test_whole_blocks(groups: int) -> None:
    node, x, y = _layer(np.random.default_rng(1), 64, 15, 0.7, groups)
    same_for_all_machines("bsr", node, [x, None], [y])


def test_it_is_taken_where_blocks_are_zero_and_refused_where_none_is() -> None:
    here = Context(1, "x86-64-v4")
    for sparsity, taken in ((0.0, False), (0.3, True), (0.9, True)):
        node, _, _ = _layer(np.random.default_rng(2), 64, 16, sparsity)
        bsr, dense = kernels.get("bsr")(), kernels.get("spatial-pack")()
        reason = bsr.refuses(node, here)
        assert (not reason) == taken
        if taken:
            costs = [k.cost(node, k.forms(node, here)[0], here) for k in (bsr, dense)]
            assert costs[0] < costs[1]
        else:
            assert "0% of its blocks" in reason
