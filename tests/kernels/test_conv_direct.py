"""Convolution by its definition, against the reference."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from conv_cases import random_convolutions, same_for_all_machines
from onnx_oracle import near

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Operand, kernels
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def test_it_equals_the_reference() -> None:
    for node, arrays, expected in random_convolutions(np.random.default_rng(41), 200):
        same_for_all_machines("direct", node, arrays, [expected])


def test_weights_may_be_computed() -> None:
    for node, arrays, expected in random_convolutions(np.random.default_rng(42), 5):
        loose = tuple(None if o is None else Operand(o.shape) for o in node.inputs)
        found = Bench(kernels.get("direct")(), replace(node, inputs=loose), arrays, Context.here()).run()
        near(found[0], expected, 2e-5)


def test_wider_rows_cost_more_when_strided() -> None:
    kernel, here = kernels.get("direct")(), Context.here()
    node = next(random_convolutions(np.random.default_rng(1), 1))[0]
    times = []
    for stride in (1, 2):
        one = replace(node, attributes={**node.attributes, "strides": [1, stride]})
        times.append(kernel.cost(one, kernel.forms(one, here)[0], here))
    assert times[1] > times[0]
