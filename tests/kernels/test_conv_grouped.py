"""Grouped convolutions: groups of less than a block, and of any size."""

from __future__ import annotations

import itertools

import numpy as np
import pytest
from grouped_cases import ISAS, Case, check, context_of, needs_native, plain, random_cases

from dlas.kernels.kernel import Node, kernels
from dlas.kernels.layers.conv.gspc import vector_passes
from dlas.kernels.layout import storage, to_layout
from dlas.kernels.single import Bench

pytestmark = needs_native


def small_groups(seed: int):
    """Groups of 1, 2, 4 and 8 channels more often than others; never depthwise, never one group."""
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
        ins, outs = (int(v) for v in rng.choice([1, 2, 4, 8, 3, 5, 6, 9], 2))
        if rng.integers(0, 2):
            outs = ins
        if ins * outs > 1:
            yield int(rng.integers(2, 7)), ins, outs


@pytest.mark.parametrize("isa", ISAS)
def test_gspc_equals_the_reference_on_random_shapes(isa: str):
    # Some are whole blocks where blocks are narrow, which another kernel computes.
    for seed, case in enumerate(random_cases(260, 1, small_groups(2))):
        if not kernels.get("gspc")().refuses(plain(case), context_of(isa)):
            check("gspc", case, isa, seed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 7, 14, 20, 28, 32, 33])
def test_gspc_cuts_rows_of_any_width(isa: str, width: int):
    check("gspc", Case(4, 3, 3, (2, width)), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(
    ("groups", "ins", "outs"), [(3, 26, 26), (5, 10, 12), (2, 17, 33), (2, 40, 3), (9, 1, 6)]
)
def test_gspc_takes_groups_that_straddle_blocks(isa: str, groups: int, ins: int, outs: int):
    check("gspc", Case(groups, ins, outs, (5, 9), residual=True, act=1), isa)


def refusal(name: str, node: Node) -> str:
    return kernels.get(name)().refuses(node, context_of(ISAS[0]))


def test_gspc_says_who_does_what_it_does_not():
    case = Case(4, 3, 3, (5, 5))  # three channels are no whole block of any instruction set
    assert refusal("gspc", plain(case)) == ""
    assert "one group" in refusal("gspc", plain(case, groups=1))
    assert "depthwise" in refusal("gspc", plain(case, ins=1, outs=1))
    assert "whole blocks of" in refusal("gspc", plain(case, ins=16, outs=32))


@pytest.mark.parametrize(
    ("outs", "ins", "groups", "expected"),
    [
        (64, 4, 16, 16),  # four blocks, each permuted four times
        (64, 64, 1, 256),
        (48, 8, 6, 24),
        (72, 24, 3, 24 + 40 + 24 + 24 + 24),  # the second block straddles two groups
        (5, 3, 5, 3),
    ],
)
def test_passes_count_what_a_block_of_outputs_reads(outs: int, ins: int, groups: int, expected: int):
    assert vector_passes(outs, ins, groups, 16) == expected


def any_groups(seed: int):
    """Groups of any size, one group and depthwise included."""
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
        yield int(rng.choice([1, 1, 2, 3, 4])), int(rng.integers(1, 7)), int(rng.integers(1, 18))


@pytest.mark.parametrize("isa", ISAS)
def test_pixel_form_equals_the_reference_on_random_shapes(isa: str):
    for seed, case in enumerate(random_cases(200, 5, any_groups(6))):
        check("gspc-pixel", case, isa, seed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 7, 14, 15, 16, 17, 28, 31, 33])
@pytest.mark.parametrize("residual", [False, True])
def test_pixel_form_takes_rows_of_any_width(isa: str, width: int, residual: bool):
    check("gspc-pixel", Case(2, 3, 5, (6, width), residual=residual, act=1), isa)


@pytest.mark.parametrize("isa", ISAS)
def test_pixel_form_cuts_large_inputs_into_bands(isa: str):
    check("gspc-pixel", Case(1, 40, 2, (60, 50), batch=2), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("name", ["gspc", "gspc-pixel", "depthwise"])
def test_a_residual_may_be_overwritten_in_place(name: str, isa: str):
    ins = 1 if name == "depthwise" else 3
    for width in (3, 7, 18, 33):
        case = Case(5, ins, ins, (6, width), residual=True, act=1)
        arrays = case.arrays()
        kernel = kernels.get(name)()
        assert 3 in kernel.in_place
        bench = Bench(kernel, case.node(*arrays), [arrays[0], None, None, arrays[3]], context_of(isa))
        bench._inputs[3] = bench._outputs[0]
        laid_out = storage(arrays[3].shape, "float32", bench.form.inputs[3], block=context_of(isa).block)
        bench._outputs[0][...] = to_layout(arrays[3], laid_out)
        assert np.allclose(bench.run()[0], case.expected(*arrays), atol=2e-5)
