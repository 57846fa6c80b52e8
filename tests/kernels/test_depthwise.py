"""Depthwise convolutions."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from grouped_cases import ISAS, Case, check, context_of, needs_native, plain, random_cases

from dlas.kernels.kernel import kernels

pytestmark = needs_native


def channels(seed: int):
    """Groups of one channel each."""
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
        yield int(rng.integers(1, 40)), 1, 1


@pytest.mark.parametrize("isa", ISAS)
def test_depthwise_equals_the_reference_on_random_shapes(isa: str):
    for seed, case in enumerate(random_cases(200, 3, channels(4))):
        check("depthwise", case, isa, seed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 7, 14, 28, 31, 56])
@pytest.mark.parametrize("stride", [1, 2])
def test_depthwise_cuts_rows_of_any_width(isa: str, width: int, stride: int):
    check("depthwise", Case(33, 1, 1, (4, width), strides=(stride, stride)), isa)


def test_depthwise_refuses_a_multiplier():
    kernel, context = kernels.get("depthwise")(), context_of(ISAS[0])
    assert kernel.refuses(plain(Case(8, 1, 1, (5, 5))), context) == ""
    assert kernel.refuses(plain(Case(8, 1, 2, (5, 5))), context) == "groups of 1 to 2 channels are not 1 to 1"
