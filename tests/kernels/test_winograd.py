"""Winograd's convolution: close to the reference, and only where it is the faster way."""

from __future__ import annotations

from collections.abc import Iterator

import numpy as np
import pytest
from conv_cases import acted, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def _node(
    shape: tuple[int, ...],
    filters: int,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    *,
    groups: int = 1,
    seed: int = 0,
    residual: bool = False,
    bias: bool = True,
    act: int = 0,
    **more: int,
) -> tuple[Node, list[np.ndarray | None], np.ndarray]:
    rng = np.random.default_rng(seed)
    x = rng.standard_normal(shape, dtype=np.float32)
    ins = shape[1] // groups
    w = rng.standard_normal((filters, ins, 3, 3), dtype=np.float32) / np.float32(3 * ins**0.5)
    b = rng.standard_normal(filters, dtype=np.float32) if bias else None
    y = conv2d(x, w, b, pads=pads, groups=groups)
    add = rng.standard_normal(y.shape, dtype=np.float32) if residual else None
    attributes = {"kernel_shape": [3, 3], "strides": [1, 1], "pads": list(pads), "dilations": [1, 1]}
    attributes |= {"group": groups, "act": act, "act_low": -0.5, "act_high": 0.7, **more}
    operands = (
        Operand(x.shape),
        Operand.of(w),
        None if b is None else Operand.of(b),
        None if add is None else Operand(add.shape),
    )
    expected = acted(y if add is None else y + add, act, -0.5, 0.7)
    return Node("Conv", "n", attributes, operands, (Operand(y.shape),)), [x, w, b, add], expected


def _cases(
    count: int, *, grouped: bool = False
) -> Iterator[tuple[Node, list[np.ndarray | None], np.ndarray]]:
    rng = np.random.default_rng(17)
    while count:
        height, width = (int(v) for v in rng.integers(1, 16, 2))
        pads = tuple(int(v) for v in rng.integers(0, 3, 4))
        if min(height + pads[0] + pads[2], width + pads[1] + pads[3]) < 3:
            continue
        count -= 1
        groups, channels, filters = 1, *(int(v) for v in rng.integers(1, 40, 2))
        if grouped:  # as many in as out on the way through one block, any whole blocks on the other
            groups, ins = int(rng.integers(2, 7)), int(rng.choice([2, 4, 8, 16, 16, 32, 48]))
            channels, filters = groups * ins, groups * (int(rng.choice([16, 32])) if ins > 16 else ins)
        yield _node(
            (int(rng.integers(1, 4)), channels, height, width),
            filters,
            pads,
            groups=groups,
            seed=count,
            residual=rng.random() < 0.3,
            bias=rng.random() < 0.7,
            act=int(rng.choice([0, 1, 2, 4])),
            tile=int(rng.choice([2, 4])),
        )


def test_it_is_close_to_the_reference() -> None:
    for node, arrays, expected in _cases(200):
        same_for_all_machines("winograd", node, arrays, [expected])


def test_groups_are_close_to_the_reference() -> None:
    for node, arrays, expected in _cases(220, grouped=True):
        same_for_all_machines("winograd", node, arrays, [expected])


@pytest.mark.parametrize("ins", [2, 4, 8, 16, 32])
def test_groups_do_not_see_each_other(ins: int) -> None:
    node, arrays, _ = _node((1, 3 * ins, 9, 6), 3 * ins, groups=3, tile=4)
    kernel, here = kernels.get("winograd")(), Context.here()
    before = Bench(kernel, node, arrays, here).run()[0]
    x = arrays[0]
    assert x is not None
    x[:, ins : 2 * ins] = np.nan
    after = Bench(kernel, node, arrays, here).run()[0]
    assert np.isnan(after[:, ins : 2 * ins]).all()
    for own in (slice(0, ins), slice(2 * ins, None)):
        assert before[:, own].tobytes() == after[:, own].tobytes()


@pytest.mark.parametrize("act", [0, 1])
@pytest.mark.parametrize("side", [8, 7, 3])  # 7 and 3: tiles that reach beyond the map
def test_what_is_no_number_stays_so(act: int, side: int) -> None:
    node, arrays, _ = _node((1, 32, side, side), 32, tile=4, act=act)
    assert arrays[0] is not None
    arrays[0][0, 3, 2, 2] = np.nan
    found = Bench(kernels.get("winograd")(), node, arrays, Context.here()).run()[0]
    assert np.isnan(found[:, :, 1:4, 1:4]).all()


def test_batches_and_several_panels() -> None:
    for tile in (2, 4):
        node, arrays, expected = _node((2, 70, 30, 29), 33, tile=tile, act=1)
        same_for_all_machines("winograd", node, arrays, [expected])
        node, arrays, expected = _node(
            (1, 130, 15, 15), 128, tile=tile, residual=True
        )  # threads share a panel
        same_for_all_machines("winograd", node, arrays, [expected])
        for groups in (3, 6, 12):
            node, arrays, expected = _node((2, 96, 27, 30), 96, groups=groups, tile=tile, act=1)
            same_for_all_machines("winograd", node, arrays, [expected])


@pytest.mark.parametrize(("tile", "bound"), [(2, 2e-6), (4, 1e-5)])
def test_the_error_stays_small_with_many_channels(tile: int, bound: float) -> None:
    node, arrays, expected = _node((1, 256, 8, 8), 64, tile=tile)
    found = Bench(kernels.get("winograd")(), node, arrays, Context.here()).run()[0]
    error = np.abs(found - expected).max() / np.abs(expected).max()
    assert 1e-8 < error < bound


def test_it_refuses_what_it_cannot_win() -> None:
    kernel, here = kernels.get("winograd")(), Context.here(isa="native")
    assert not kernel.exact
    if here.block == 16:
        assert kernel.refuses(_node((1, 64, 2, 2), 64)[0], here).startswith("tiles waste")
        assert not kernel.refuses(_node((1, 64, 14, 14), 64)[0], here)
        assert not kernel.refuses(_node((1, 64, 14, 14), 64, groups=8)[0], here)
        assert kernel.refuses(_node((1, 64, 14, 14), 64, groups=32)[0], here).startswith("tiles waste")
    assert "tiles of 2 and 4" in kernel.refuses(_node((1, 4, 8, 8), 4, tile=6)[0], here)
    shapes = [(2, 3, 3), (4, 1, 1)]
    if here.block > 4:  # of blocks of 4 these are whole ones
        shapes += [(3, 8, 4), (2, 24, 20)]
    for groups, ins, outs in shapes:
        node = _node((1, groups * ins, 8, 8), groups * outs, groups=groups, tile=4)[0]
        assert "neither are nor make up blocks" in kernel.refuses(node, here)
    strided = _node((1, 4, 8, 8), 4)[0]
    strided.attributes["strides"][0] = 2
    assert "3 x 3 with stride 1" in kernel.refuses(strided, here)


def test_the_halo_covers_the_last_tiles() -> None:
    kernel, here = kernels.get("winograd")(), Context.here()
    halo = kernel.forms(_node((1, 4, 7, 9), 4, (1, 1, 0, 2), tile=4)[0], here)[0].halo
    assert (halo.top, halo.left, halo.bottom, halo.right) == (1, 1, 0 + 2, 2 + 2)
