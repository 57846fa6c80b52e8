"""The convolution of images, against the reference."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import random_convolutions, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.layout import Layout
from dlas.kernels.reference.conv import conv2d

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def test_it_equals_the_reference() -> None:
    kernel, here, taken = kernels.get("first-layer")(), Context.here(), 0
    for node, arrays, expected in random_convolutions(np.random.default_rng(31), 360):
        if not kernel.refuses(node, here):
            same_for_all_machines("first-layer", node, arrays, [expected])
            taken += 1
    assert taken >= 200


@pytest.mark.parametrize(
    ("size", "kernel", "strides", "pads", "filters"),
    [
        ((3, 75, 75), (7, 7), (2, 2), (3, 3, 3, 3), 64),  # several bands of rows
        ((1, 49, 10), (10, 4), (2, 2), (4, 1, 5, 1), 64),
        ((3, 40, 41), (11, 11), (4, 4), (0, 0, 0, 0), 96),
        ((2, 6, 300), (1, 9), (1, 3), (0, 4, 0, 4), 20),
        ((1, 3, 2), (5, 5), (1, 1), (4, 4, 4, 4), 6),  # more padding than image
    ],
)
def test_first_layers_of_known_networks(size, kernel, strides, pads, filters) -> None:
    rng = np.random.default_rng(5)
    x = rng.standard_normal((1, *size), dtype=np.float32)
    w = rng.standard_normal((filters, size[0], *kernel), dtype=np.float32)
    y = conv2d(x, w, strides=strides, pads=pads)
    attributes = {"kernel_shape": list(kernel), "strides": list(strides), "pads": list(pads)}
    attributes |= {"dilations": [1, 1], "group": 1, "act": 1}
    node = Node("Conv", "n", attributes, (Operand(x.shape), Operand.of(w), None, None), (Operand(y.shape),))
    same_for_all_machines("first-layer", node, [x, w, None, None], [np.maximum(y, 0)])


def test_it_says_what_it_is_not_for() -> None:
    kernel, here = kernels.get("first-layer")(), Context.here()
    refused = {}
    for node, _, _ in random_convolutions(np.random.default_rng(2), 40):
        reason = kernel.refuses(node, here)
        assert bool(reason) == (node.attributes["group"] > 1)
        refused[reason] = node
    assert "it has no groups, the node has 2" in refused
    wide = Node(
        "Conv",
        "n",
        {"group": 1, "strides": [1, 1], "pads": [0] * 4, "dilations": [1, 1], "kernel_shape": [1, 1]},
        (Operand((1, 9, 4, 4)), Operand.of(np.ones((2, 9, 1, 1), np.float32))),
        (Operand((1, 2, 4, 4)),),
    )
    assert "at most 8 input channels" in kernel.refuses(wide, here)
    form = kernel.forms(wide, here)[0]
    assert (form.inputs[0], form.outputs[0]) == (Layout.PLAIN, Layout.BLOCKED)
