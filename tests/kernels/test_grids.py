"""Level sets, codes and packing of every grid, against the published tables."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.formats import int4
from dlas.kernels.formats.grid import Grid
from dlas.kernels.formats.grids import apot, binary, by_name, msq, po2, qkeras_po2, ternary, uniform
from dlas.kernels.reference.shift_add import conv2d_shift_add, shift_products

FOUR_BITS = {
    "apot": ([0, 1, 2, 3, 4, 6, 8, 10], [0, 13, 25, 38, 51, 76, 102, 127]),
    "msq": ([0, 1, 2, 4, 5, 6, 8], [0, 16, 32, 64, 79, 95, 127]),
    "po2": ([1, 2, 4, 8, 16, 32, 64, 128], [1, 2, 4, 8, 16, 32, 64, 127]),
    "int4": ([0, 1, 2, 3, 4, 5, 6, 7], [0, 18, 36, 54, 73, 91, 109, 127]),
}
GRIDS = [
    *(by_name(n) for n in FOUR_BITS),
    *(po2(b) for b in (2, 3, 5)),
    *(apot(b) for b in (3, 5, 6, 7)),
    *(uniform(b) for b in (2, 3, 5, 8)),
    *(uniform(b, signed=False) for b in (2, 3, 4)),
    *(apot(b, signed=False) for b in (2, 4)),
    po2(zero=True),
    po2(hardware=False),
    po2(rounding="log"),
    ternary(),
    binary(),
]


@pytest.mark.parametrize("name", FOUR_BITS)
def test_four_bit_levels(name: str) -> None:
    grid, (magnitudes, int8) = by_name(name), FOUR_BITS[name]
    assert grid.magnitudes.tolist() == magnitudes
    assert grid.int8_levels[grid.integers >= 0].tolist() == int8
    assert grid.int8_levels[grid.integers <= 0].tolist() == [-v for v in int8[::-1] if grid.has_zero or v]
    assert grid.levels.min() == -1
    assert grid.levels.max() == 1
    assert grid.has_zero is (name != "po2")


def test_codes_of_the_accelerators() -> None:
    """Magnitudes of the codes 0000 .. 0111, written down from the published encodings."""
    expected = {
        "apot": [1, 3, 0, 2, 4, 6, 8, 10],
        "msq": [1, 5, 2, 6, 4, 8, 0, 4],
        "po2": [1, 2, 4, 8, 16, 32, 64, 128],
        "int4": [0, 1, 2, 3, 4, 5, 6, 7],
    }
    for name, magnitudes in expected.items():
        grid = by_name(name)
        assert grid.table[:8].tolist() == magnitudes
        negative = [m - 8 for m in range(8)] if name == "int4" else [-m for m in magnitudes]
        assert grid.table[8:].tolist() == negative
    assert apot().encode(np.array([0, 10, -10])).tolist() == [0b0010, 0b0111, 0b1111]
    assert msq().encode(np.array([4, -4, 0])).tolist() == [0b0100, 0b1100, 0b0110]


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_codes_round_trip(grid: Grid) -> None:
    codes = np.arange(1 << grid.bits, dtype=np.uint8)
    values = grid.decode_integers(codes)
    assert np.array_equal(values, grid.table)
    level = np.isin(values, grid.integers)  # -8 is a code of int4, but no level
    assert np.array_equal(grid.decode_integers(grid.encode(values[level])), values[level])
    assert np.array_equal(grid.decode_integers(grid.encode(grid.integers)), grid.integers)
    assert np.all(np.diff(grid.levels) > 0)


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_the_nearest_level_is_taken(grid: Grid) -> None:
    x = np.random.default_rng(0).uniform(-1.2, 1.2, (7, 50)).astype(np.float32)
    codes, values = grid.project(x)
    away = np.abs(x[..., None] - grid.levels)
    if grid.rounding == "log":
        away = np.abs(np.log(np.abs(x[..., None] / grid.levels))) + 9 * (x[..., None] * grid.levels < 0)
    assert np.array_equal(grid.decode_integers(codes), grid.integers[away.argmin(-1)])
    np.testing.assert_allclose(values, grid.levels[away.argmin(-1)], rtol=1e-6)
    assert np.array_equal(grid.decode(codes), values)
    smallest = grid.integers[grid.integers >= 0][0]
    assert grid.round(np.array([0.0, -0.0])).tolist() == [smallest] * 2


def test_ties_go_to_the_larger_magnitude() -> None:
    halves = np.array([0.5, 1.5, 2.5, -0.5, -1.5, -2.5]) / 7
    assert uniform(4).round(halves).tolist() == [1, 2, 3, -1, -2, -3]
    assert po2().round(np.array([1.5, 3.0, -1.5]) / 128).tolist() == [2, 4, -2]
    assert ternary().round(np.array([0.5, -0.5])).tolist() == [1, -1]


@pytest.mark.parametrize("bits", [3, 4, 5])
def test_log_rounding_is_that_of_qkeras(bits: int) -> None:
    x = np.random.default_rng(bits).standard_normal(4000) * 0.3
    x[:3] = 0.0, 1e-9, -1e-9
    yardstick = qkeras_po2(x, bits, max_value=1)
    exponents = np.unique(np.log2(np.abs(yardstick)))
    assert (exponents[0], exponents[-1]) == (-(2 ** (bits - 1)), 0)  # one exponent more than the code holds
    whole = po2(bits, rounding="log", hardware=False)
    _, values = whole.project(x)
    assert np.array_equal(values[:2], yardstick[:2])
    assert np.array_equal(
        values, np.where(np.abs(x) < 1e-7, np.abs(yardstick) * np.where(x < 0, -1, 1), yardstick)
    )
    _, clamped = po2(bits, rounding="log").project(x)
    assert np.array_equal(
        clamped, np.sign(yardstick) * np.maximum(np.abs(yardstick), 2.0 ** -(2 ** (bits - 1) - 1))
    )
    # With an exponent sign: as many exponents as the code holds, around 1.
    assert np.unique(np.log2(np.abs(qkeras_po2(np.exp2(np.arange(-20, 20)), bits)))).tolist() == list(
        range(-(2 ** (bits - 2)), 2 ** (bits - 2))
    )


def test_apot_of_more_bits() -> None:
    """Magnitudes of the general construction, from their definition as sums."""
    a, b, c = [0, 64, 16, 2], [0, 32, 8, 1], [0, 4]
    assert apot(6).magnitudes.tolist() == sorted({x + y + z for x in a for y in b for z in c})
    assert [len(apot(bits).magnitudes) for bits in (3, 4, 5, 6, 7)] == [4, 8, 16, 32, 64]
    assert apot(4, signed=False).magnitudes.tolist() == apot(5).magnitudes.tolist()


@pytest.mark.parametrize("alpha", ["max", "mse"])
@pytest.mark.parametrize("axis", [None, 0, 1])
def test_scales(alpha: str, axis: int | None) -> None:
    w = np.random.default_rng(1).standard_normal((6, 5, 3, 3)).astype(np.float32)
    w[2] = 0
    grid = apot()
    scale = grid.scales_of(w, axis, alpha)  # type: ignore[arg-type]
    _, values = grid.project(w, scale, axis)
    rows = w.reshape(1, -1) if axis is None else np.moveaxis(w, axis, 0).reshape(w.shape[axis], -1)
    assert scale.shape == (() if axis is None else (w.shape[axis],))
    largest = np.abs(rows).max(1)
    if alpha == "max":
        assert np.array_equal(scale.reshape(-1), np.where(largest > 0, largest, 1))
    else:
        _, plain = grid.project(w, grid.scales_of(w, axis), axis)
        assert np.square(values - w).sum() < np.square(plain - w).sum()
        assert (scale.reshape(-1) <= np.where(largest > 0, largest, 1)).all()
    if axis == 0:
        assert not values[2].any()


@pytest.mark.parametrize("grid", GRIDS, ids=repr)
def test_packing(grid: Grid) -> None:
    codes = np.random.default_rng(2).integers(0, 1 << grid.bits, (5, 37)).astype(np.uint8)
    words = grid.pack(codes)
    assert words.dtype == np.uint32
    assert words.shape[0] == 8
    assert np.array_equal(grid.unpack(words, 5, 37), codes)
    rest = grid.unpack(words, 8, words.shape[1] * 32 // grid.bits)
    assert set(rest[5:].reshape(-1).tolist()) == {int(grid.encode(np.array(0))) if grid.has_zero else 0}


def test_packed_words() -> None:
    codes = np.arange(16, dtype=np.uint8).reshape(1, 16)
    assert apot().pack(codes)[0].tolist() == [0x76543210, 0xFEDCBA98]
    assert apot().pack(codes)[1].tolist() == [0x22222222] * 2  # 0010 is 0
    assert po2().pack(codes[:, :1])[0].tolist() == [0, 0]


def test_codes_pack_for_the_table_kernels() -> None:
    grid = po2(zero=True)
    w = np.random.default_rng(6).standard_normal((20, 18)).astype(np.float32)
    codes, _ = grid.project(w, grid.scales_of(w, 1), 1)
    values = grid.decode_integers(codes)
    assert values.dtype == np.int8
    assert np.array_equal(int4.unpack_w4(int4.pack_w4(values, grid.integer_table)), values)


@pytest.mark.parametrize("grid", [po2(), po2(zero=True), apot(), msq()], ids=repr)
def test_products_by_shifts(grid: Grid) -> None:
    """All codes times all activations."""
    x = np.arange(-128, 128)[:, None]
    codes = np.arange(16, dtype=np.uint8)
    assert np.array_equal(shift_products(x, codes, grid), x * grid.table)


@pytest.mark.parametrize("grid", [po2(), apot(), msq()], ids=repr)
@pytest.mark.parametrize(
    ("stride", "pads", "zero"), [(1, (1, 1, 1, 1), -128), (2, (0, 1, 2, 0), 7), (1, (0,) * 4, 0)]
)
def test_convolution_by_shifts(grid: Grid, stride: int, pads: tuple[int, ...], zero: int) -> None:
    rng = np.random.default_rng(3)
    x = rng.integers(-128, 128, (2, 5, 8, 9)).astype(np.int8)
    x[0, 0, 0, :3] = -128
    codes = rng.integers(0, 16, (6, 5, 3, 3)).astype(np.uint8)
    found = conv2d_shift_add(x, codes, grid, zero_point=zero, strides=(stride, stride), pads=pads)
    top, left, bottom, right = pads
    wide = np.pad(x.astype(np.int64) - zero, ((0, 0), (0, 0), (top, bottom), (left, right)))
    weight = grid.table[codes]
    height, width = (wide.shape[2] - 3) // stride + 1, (wide.shape[3] - 3) // stride + 1
    expected = np.zeros((2, 6, height, width), np.int64)
    for i in range(3):
        for j in range(3):
            view = wide[:, :, i : i + stride * height : stride, j : j + stride * width : stride]
            expected += np.einsum("nchw,oc->nohw", view[:, :, :height, :width], weight[:, :, i, j])
    assert found.dtype == np.int32
    assert np.array_equal(found, expected)


def test_grids_refuse() -> None:
    grid, w = apot(), np.ones((2, 3), np.float32)
    for wrong in (np.nan, np.inf):
        with pytest.raises(OptionError, match="NaN or infinity"):
            grid.project(np.float32([[wrong]]))
    with pytest.raises(ShapeError, match="int64"):
        grid.scales_of(np.ones((2, 3), np.int64))
    with pytest.raises(ShapeError, match="axis = 2"):
        grid.scales_of(w, 2)
    with pytest.raises(ShapeError, match="scale has the shape"):
        grid.project(w, np.ones(3, np.float32), 0)
    with pytest.raises(OptionError, match="not positive"):
        grid.project(w, 0.0)
    with pytest.raises(OptionError, match="codes = 16"):
        grid.decode(np.uint8([16]))
    with pytest.raises(ShapeError, match="int8"):
        grid.decode(np.int8([1]))
    with pytest.raises(OptionError, match="value = 5"):
        grid.encode(np.array([1, 5]))
    with pytest.raises(ShapeError, match="channels, depth"):
        grid.pack(np.zeros(3, np.uint8))
    with pytest.raises(ShapeError, match="are packed, expected"):
        grid.unpack(np.zeros((4, 2), np.uint32), 4, 17)
    with pytest.raises(ShapeError, match="uint32"):
        grid.unpack(np.zeros((4, 2), np.int32), 4, 16)  # type: ignore[arg-type]
    for make in (
        lambda: uniform(1),
        lambda: po2(6),
        lambda: apot(2),
        lambda: msq(5),
        lambda: by_name("int3"),
    ):
        with pytest.raises(OptionError):
            make()
    with pytest.raises(OptionError, match="zero"):
        po2(zero=True, rounding="log")
    with pytest.raises(OptionError, match="few shifts"):
        shift_products(np.int8([1]), np.uint8([1]), uniform(4))
    with pytest.raises(ShapeError, match="expected int8"):
        conv2d_shift_add(np.zeros((1, 2, 4, 4), np.int8), np.zeros((3, 1, 3, 3), np.uint8), grid)
    with pytest.raises(ShapeError, match="3 x 3 on 2 x 4"):
        conv2d_shift_add(np.zeros((1, 1, 2, 4), np.int8), np.zeros((3, 1, 3, 3), np.uint8), grid)
