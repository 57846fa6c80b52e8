"""Dense convolutions on the blocked layout."""

from __future__ import annotations

import itertools
from dataclasses import replace

import numpy as np
import pytest
from grouped_cases import ISAS, Case, check, context_of, needs_native, plain, random_cases

from dlas.core.errors import UnsupportedError
from dlas.kernels.kernel import kernels
from dlas.kernels.single import Bench

pytestmark = needs_native


def channels(seed: int):
    """One group of any size, or a few groups of 16 to 32 channels: whole blocks for every instruction set."""
    rng = np.random.default_rng(seed)
    for _ in itertools.count():
        if rng.integers(0, 4):
            yield 1, int(rng.integers(1, 40)), int(rng.integers(1, 80))
        else:
            yield int(rng.integers(2, 4)), 16, int(rng.choice([16, 32]))


@pytest.mark.parametrize("isa", ISAS)
def test_spatial_pack_equals_the_reference_on_random_shapes(isa: str):
    for seed, case in enumerate(random_cases(200, 7, channels(8), most=10)):
        check("spatial-pack", replace(case, strides=(case.strides[0], min(case.strides[1], 2))), isa, seed)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("width", [1, 2, 3, 4, 5, 6, 7, 9, 14, 20, 28, 31, 32])
@pytest.mark.parametrize(
    ("outs", "stride"), [(16, 1), (32, 1), (48, 1), (64, 1), (16, 2), (32, 2), (48, 2), (64, 2)]
)
def test_spatial_pack_cuts_rows_of_any_width(isa: str, width: int, outs: int, stride: int):
    """One to four blocks of outputs at a time; short rows are taken several at once."""
    size = (5, width * stride - stride + 1)
    check("spatial-pack", Case(1, 5, outs, size, strides=(1, stride), residual=True, act=1), isa)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("act", [1, 3])
@pytest.mark.parametrize("size", [(1, 1), (3, 5), (4, 4), (13, 1)])
def test_spatial_pack_joins_the_rows_of_small_windows(isa: str, size: tuple[int, int], act: int):
    one = Case(1, 20, 64, size, kernel=(1, 1), pads=(0, 0, 0, 0), batch=2, residual=True, act=act)
    check("spatial-pack", one, isa)
    check("spatial-pack", replace(one, kernel=(3, 1), pads=(1, 0, 1, 0)), isa)
    check(
        "spatial-pack", replace(one, kernel=(3, 1), pads=(2, 0, 2, 0), strides=(2, 1), dilations=(2, 1)), isa
    )
    check("spatial-pack", replace(one, kernel=(1, 1), pads=(1, 1, 0, 0)), isa)


def test_spatial_pack_refuses_parts_of_blocks_and_long_strides():
    kernel, context = kernels.get("spatial-pack")(), context_of(ISAS[0])
    case = Case(1, 3, 5, (9, 9))
    assert kernel.refuses(plain(case), context) == ""
    assert "are not whole blocks" in kernel.refuses(plain(case, groups=2), context)
    assert "stride along the row is 3" in kernel.refuses(plain(case, strides=(1, 3)), context)


@pytest.mark.parametrize("name", ["spatial-pack", "gspc", "gspc-pixel", "depthwise"])
def test_an_output_without_pixels_is_refused(name: str):
    ins = 1 if name == "depthwise" else 3
    case = Case(1 if name == "spatial-pack" else 2, ins, ins, (3, 3), pads=(0, 0, 0, 0), kernel=(4, 3))
    x, w, b, _ = case.arrays()
    with pytest.raises(UnsupportedError, match="an output without pixels"):
        Bench(kernels.get(name)(), case.node(x, w, b, None), [x, None, None], context_of(ISAS[0]))
