"""From int8 weights back to the levels they were made of."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.compress.method import compress_model
from dlas.compress.qdq import QdqWriter
from dlas.core.errors import OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import by_name
from dlas.kernels.formats.recovery import METHODS, fit, recover, tops
from dlas.testing import models


def integers(grid: Grid, channels: int = 40, size: int = 60, seed: int = 0) -> np.ndarray:
    """Levels of filters that reach the largest one."""
    found = np.random.default_rng(seed).choice(grid.integers, (channels, size))
    found[:, 0] = grid.top
    return found


@pytest.mark.parametrize("method", METHODS)
@pytest.mark.parametrize("halves", ["up", "even", "down"])
def test_every_filter_of_127ths_is_explained(method: str, halves: str) -> None:
    grid = by_name(method)
    levels = integers(grid)
    exact = levels * (127 / grid.top)
    up, down = np.floor(np.abs(exact) + 0.5), np.ceil(np.abs(exact) - 0.5)
    codes = np.sign(exact) * {"up": up, "down": down, "even": np.rint(np.abs(exact))}[halves]
    found = fit(codes, grid)
    assert found.fits.all()
    assert np.array_equal(found.integers, levels)
    np.testing.assert_allclose(found.factor, 127 / grid.top)
    assert found.distance.max() <= 0.5 + 1e-9


@pytest.mark.parametrize("top", [1, 2, 3, 4, 6, 8])
def test_filters_without_the_largest_level(top: int) -> None:
    """A converter scales each filter to 127 whatever its largest level is: the ratios stay."""
    grid = by_name("apot")
    levels = integers(grid)
    levels = np.where(np.abs(levels) > top, 0, levels)
    levels[:, 0] = top
    codes = np.sign(levels) * np.floor(np.abs(levels) * 127 / top + 0.5)
    found = fit(codes, grid)
    assert found.fits.all()
    assert np.allclose(found.integers * (top / found.top)[:, None], levels)


def test_other_filters_are_not_explained() -> None:
    codes = np.random.default_rng(1).integers(-127, 128, (30, 60))
    for method in METHODS:
        found = fit(codes, by_name(method))
        assert not found.fits.any()
        assert found.distance.min() > 0.5
    mixed = np.concatenate([codes[:1], np.zeros((1, 60), np.int64), np.full((1, 60), 2)])
    found = fit(mixed, by_name("apot"))
    assert found.fits.tolist() == [False, True, True]  # all zero; and rounding dust, one code everywhere
    assert found.factor[1] == 0
    assert (found.integers[2] == found.top[2]).all()


@pytest.mark.parametrize("method", ["int4", "apot", "msq"])
def test_tops_of_float_weights(method: str) -> None:
    grid = by_name(method)
    levels = integers(grid, 5, 8).reshape(5, 2, 4)
    scales = np.array([0.1, -2.0, 3e-4, 1.0, 7.0]).reshape(5, 1, 1)
    weight = (levels * scales).astype(np.float32)
    found = np.asarray(tops(weight, 0, grid))
    assert np.array_equal(found, np.full(5, grid.top))
    assert tops(weight + np.float32(0.01), 0, grid) == 127.0
    assert tops(np.zeros((2, 3), np.float32), 0, grid) == 127.0
    assert tops(levels.astype(np.float32) / 3, None, grid) == grid.top


def test_codes_count_from_their_zero_point() -> None:
    model = compress_model(models.residual(), "apot:repair=none,ends=same")
    graph = model.editable()
    writer = QdqWriter(graph.graph)
    for node in [n for n in graph.graph if n.op_type == "DequantizeLinear"]:
        codes, scale = (node.inputs[i].const_value.numpy() for i in (0, 1))  # type: ignore[union-attr]
        node.replace_input_with(0, writer.constant(codes + np.int8(5), "moved"))
        node.replace_input_with(2, writer.constant(np.full(scale.shape, 5, np.int8), "five"))
    plain, moved = recover(model), recover(Model(graph, "moved"))
    assert len(plain.layers) == 4
    for a, b in zip(plain.layers, moved.layers, strict=True):
        assert np.array_equal(a.integers, b.integers)
        assert np.array_equal(a.scale, b.scale)


def test_networks_that_are_not_on_levels_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no layer with int8 weights"):
        recover(models.residual())
    with pytest.raises(
        UnsupportedError, match=r"layer '.+' has \d+ of 8 filters off the levels, the nearest by"
    ):
        recover(models.residual_quantized())
    with pytest.raises(UnsupportedError, match="no msq network"):
        recover(models.residual_quantized(), "msq")
    with pytest.raises(OptionError, match="apot, msq, po2, int4"):
        recover(models.residual_quantized(), "int3")
