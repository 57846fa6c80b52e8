"""Compressed rows, 4-bit column blocks and powers of two: layout, round trips and refusals."""

from __future__ import annotations

import dataclasses

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError
from dlas.kernels.formats import int4
from dlas.kernels.formats.csr import Csr, to_csr
from dlas.kernels.reference.conv import conv2d
from dlas.kernels.reference.lowbit import matmul_w4a8


def sparse(rng: np.random.Generator, *shape: int, density: float = 0.3) -> np.ndarray:
    return (rng.standard_normal(shape) * (rng.random(shape) < density)).astype(np.float32)


@pytest.mark.parametrize("shape", [(5, 7), (4, 3, 3, 2), (1, 1), (6, 0), (0, 4), (3, 2, 1)])
def test_csr_round_trip(shape):
    rng = np.random.default_rng(0)
    for density in (0.0, 0.1, 0.5, 1.0):
        w = sparse(rng, *shape, density=density)
        packed = to_csr(w)
        assert (packed.rowptr.dtype, packed.colidx.dtype) == (np.int32, np.int32)
        np.testing.assert_array_equal(packed.dense(), w)
        assert packed.dense().shape == shape
        if w.size:
            assert packed.sparsity == pytest.approx((w == 0).mean())


def test_csr_of_a_small_filter():
    w = np.zeros((3, 2, 1, 2), np.float32)
    w[0, 1, 0, 0], w[0, 0, 0, 1], w[2, 1, 0, 1] = 5, 4, 6
    packed = to_csr(w)
    assert packed.rowptr.tolist() == [0, 2, 2, 3]
    assert packed.colidx.tolist() == [1, 2, 3]  # (c * KH + i) * KW + j
    assert packed.val.tolist() == [4, 5, 6]
    assert packed.nbytes == 4 * (4 + 3 + 3)


def test_csr_is_the_convolution_it_came_from():
    rng = np.random.default_rng(1)
    x, w = rng.standard_normal((1, 4, 6, 6)).astype(np.float32), sparse(rng, 5, 4, 3, 3)
    columns = np.stack([x[0, :, i : i + 4, j : j + 4] for i in range(3) for j in range(3)], axis=1).reshape(
        36, -1
    )
    packed = to_csr(w)
    y = np.zeros((5, 16))
    np.add.at(y, packed.row_of_entry(), packed.val[:, None] * columns[packed.colidx])
    np.testing.assert_allclose(y.reshape(1, 5, 4, 4), conv2d(x, w), atol=1e-5)


def test_csr_keeps_nan_and_refuses_scalars():
    assert np.isnan(to_csr(np.float32([[0, np.nan]])).val).all()
    with pytest.raises(ShapeError, match="at least 2 axes"):
        to_csr(np.zeros(3, np.float32))


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"rowptr": np.int32([0, 3, 2])}, "ascend"),
        ({"rowptr": np.int32([0, 1, 3])}, "ascend"),
        ({"rowptr": np.int32([0, 2])}, "expected 3"),
        ({"rowptr": np.int64([0, 1, 2])}, "int32"),
        ({"colidx": np.int32([0, 3])}, "beyond the 3 columns"),
        ({"colidx": np.int32([-1, 0])}, "beyond"),
        ({"colidx": np.int32([0])}, "val has the shape"),
        ({"rowptr": np.int32([0, 2, 2]), "colidx": np.int32([1, 0])}, "within each row"),
        ({"rowptr": np.int32([0, 2, 2]), "colidx": np.int32([1, 1])}, "within each row"),
    ],
)
def test_csr_checks_what_it_is_given(change, named):
    good = Csr(np.int32([0, 1, 2]), np.int32([2, 0]), np.float32([1, 2]), (2, 3))
    with pytest.raises(ShapeError, match=named):
        dataclasses.replace(good, **change)


def test_int4_layout_is_the_one_of_the_kernels():
    rng = np.random.default_rng(2)
    w = rng.integers(-8, 8, (24, 32)).astype(np.int8)
    packed = int4.pack_w4(w)
    assert packed.data.shape == (2, 3, 64)
    for block in range(2):
        for group in range(3):
            for n in range(16):
                for t in range(4):
                    byte = int(packed.data[block, group, n * 4 + t])
                    assert byte & 15 == w[group * 8 + t, block * 16 + n] + 8
                    assert byte >> 4 == w[group * 8 + 4 + t, block * 16 + n] + 8


@pytest.mark.parametrize("shape", [(1, 1), (8, 16), (7, 15), (9, 17), (64, 33), (3, 100)])
def test_int4_round_trip(shape):
    rng = np.random.default_rng(3)
    w = rng.integers(-8, 8, shape)
    packed = int4.pack_w4(w)
    np.testing.assert_array_equal(int4.unpack_w4(packed), w)
    assert int4.unpack_w4(packed).dtype == np.int8
    np.testing.assert_array_equal(packed.column_sums, w.sum(axis=0))
    table = np.int8([0, 1, 2, 4, 8, 16, 32, 64, -1, -2, -4, -8, -16, -32, -64, -128])[rng.permutation(16)]
    v = table[rng.integers(0, 16, shape)]
    packed = int4.pack_w4(v, table)
    np.testing.assert_array_equal(int4.unpack_w4(packed), v)
    np.testing.assert_array_equal(table[int4.unpack_codes(packed)], v)


def test_int4_fills_blocks_with_zeros():
    packed = int4.pack_w4(np.full((1, 1), 7))
    assert sorted(packed.data.ravel().tolist()) == [0x88] * 63 + [0x8F]
    table = np.arange(-3, 13).astype(np.int8)
    assert set(int4.pack_w4(np.full((1, 1), -3), table).data.ravel().tolist()) == {0x33, 0x30}


@pytest.mark.parametrize(
    ("w", "table", "named"),
    [
        (np.int8([[8]]), None, "w = 8"),
        (np.int8([[-9, 0]]), None, "w = -9"),
        (np.uint8([[200]]), None, "w = 200"),
        (np.int8([[3]]), np.arange(0, 32, 2).astype(np.int8), "w = 3"),
        (np.float32([[1]]), None, "float32"),
        (np.zeros((0, 3), np.int8), None, "K >= 1"),
        (np.zeros((3, 0), np.int8), None, "N >= 1"),
        (np.zeros(3, np.int8), None, "matrix"),
        ([[1]], None, "list"),
        (np.int8([[1]]), np.arange(15).astype(np.int8), "16 int8"),
        (np.int8([[1]]), np.arange(16), "16 int8"),
    ],
)
def test_int4_refuses(w, table, named):
    with pytest.raises((OptionError, ShapeError), match=named):
        int4.pack_w4(w, table)


def test_packed_int4_checks_its_data():
    with pytest.raises(ShapeError, match="expected uint8"):
        int4.PackedInt4(np.zeros((1, 1, 63), np.uint8), 8, 16, np.zeros(16, np.int32))


def test_w4a8_is_the_integer_product():
    rng = np.random.default_rng(4)
    for dtype in (np.int8, np.uint8):
        limits = np.iinfo(dtype)
        a = rng.integers(limits.min, limits.max + 1, (5, 96)).astype(dtype)
        w = rng.integers(-8, 8, (96, 21))
        packed = int4.pack_w4(w)
        np.testing.assert_array_equal(matmul_w4a8(a, packed), a.astype(int) @ w)
        bias = rng.integers(-999, 999, 21).astype(np.int32)
        found = matmul_w4a8(a, packed, zero_point=3, bias=bias)
        np.testing.assert_array_equal(found, (a.astype(int) - 3) @ w + bias)
        # Unsigned activations by the signed ones and the sums of the columns.
        shifted = matmul_w4a8((a.astype(int) - limits.min).astype(np.uint8), packed)
        np.testing.assert_array_equal(shifted + limits.min * packed.column_sums, a.astype(int) @ w)
        scales = rng.uniform(0.01, 0.1, (3, 21)).astype(np.float32)
        found = matmul_w4a8(a, packed, scales, group_size=32, bias=scales[0])
        expected = (a.astype(float)) @ (w * np.repeat(scales, 32, axis=0)) + scales[0]
        np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-4)
        np.testing.assert_allclose(
            matmul_w4a8(a, packed, scales[0]), a.astype(float) @ (w * scales[0]), rtol=1e-6
        )


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"a": np.zeros((2, 15), np.int8)}, "15 columns"),
        ({"a": np.zeros((2, 16), np.int16)}, "int16"),
        ({"group_size": 5, "scales": np.ones((3, 4), np.float32)}, "group_size = 5"),
        ({"group_size": 0, "scales": np.ones((3, 4), np.float32)}, "group_size = 0"),
        ({"group_size": 8}, "no scales"),
        ({"scales": np.ones(3, np.float32)}, "scales have"),
        ({"bias": np.zeros(3, np.int32)}, "bias has 3"),
    ],
)
def test_w4a8_refuses(change, named):
    given = {"a": np.zeros((2, 16), np.int8), "packed": int4.pack_w4(np.zeros((16, 4), np.int8)), **change}
    with pytest.raises((OptionError, ShapeError), match=named):
        matmul_w4a8(**given)
