"""ggml's blocks: bytes and numbers against the gguf package, integer sums against a loop, the search by its error."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError, UnknownNameError
from dlas.graph.formats._ggml import TYPES
from dlas.kernels.formats import _q4_k, block

SIZES = {"Q4_0": (32, 18), "Q8_0": (32, 34), "Q4_K": (256, 144), "Q8_K": (256, 292)}


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def random_blocks(rng: np.random.Generator, name: str, rows: int, count: int) -> np.ndarray:
    """Any bytes, with scales that are finite halves."""
    data = rng.integers(0, 256, (rows, count, SIZES[name][1])).astype(np.uint8)
    scales = 2 if name == "Q4_K" else 1
    halves = rng.uniform(-2, 2, (rows, count, scales)).astype(np.float16)
    data[..., : 2 * scales] = halves.view(np.uint8)
    return data.reshape(rows, -1)


def test_sizes_are_those_of_ggml():
    known = {t.name: (t.block, t.nbytes) for t in TYPES.values()}
    assert {n: (f.elements, f.nbytes) for n, f in block.BLOCK_FORMATS.items()} == SIZES
    assert all(known[n] == size for n, size in SIZES.items())


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_bytes_equal_the_gguf_package(name):
    quants = pytest.importorskip("gguf.quants", reason="the oracle is gguf")
    kind = quants.GGMLQuantizationType[name]
    rng = np.random.default_rng(0)
    x = np.concatenate([
        numbers(rng, 40, 256),
        np.zeros((1, 256), np.float32),
        np.float32(rng.integers(-8, 9, (20, 256))),  # equal magnitudes of both signs
        np.full((1, 256), 1e-30, np.float32),
        10.0 ** rng.uniform(-7, 4, (20, 256)).astype(np.float32),
    ])  # fmt: skip
    ours = block.quantize(name, x)
    np.testing.assert_array_equal(ours, quants.quantize(x, kind))
    np.testing.assert_array_equal(block.dequantize(name, ours), quants.dequantize(ours, kind))


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0", "Q4_K"])
def test_numbers_equal_the_gguf_package_on_random_bytes(name):
    quants = pytest.importorskip("gguf.quants", reason="the oracle is gguf")
    data = random_blocks(np.random.default_rng(1), name, 30, 2)
    found = block.dequantize(name, data)
    assert found.dtype == np.float32
    np.testing.assert_array_equal(found, quants.dequantize(data, quants.GGMLQuantizationType[name]))


# Relative error that ggml's own quantisers reach on normal numbers.
@pytest.mark.parametrize(
    ("name", "ggml"), [("Q8_0", 0.0056), ("Q4_0", 0.083), ("Q4_K", 0.071), ("Q8_K", 0.0071)]
)
def test_errors_are_those_of_ggml(name, ggml):
    x = numbers(np.random.default_rng(2), 100, 512)
    back = block.dequantize(name, block.quantize(name, x))
    assert np.sqrt(((back - x) ** 2).mean() / (x**2).mean()) < 1.05 * ggml


def test_q4_k_is_good_on_shifted_and_uneven_numbers():
    rng = np.random.default_rng(3)
    for x in (
        numbers(rng, 20, 256) + 3,
        numbers(rng, 20, 256) - 3,
        numbers(rng, 20, 256) ** 3,
        numbers(rng, 20, 256) * np.repeat(np.float32(10.0 ** rng.uniform(-2, 0, (20, 8))), 32, axis=1),
    ):
        back = block.dequantize("Q4_K", block.quantize("Q4_K", x))
        assert np.sqrt(((back - x) ** 2).mean() / (x**2).mean()) < 0.12
    for x in (
        np.zeros((1, 256), np.float32),
        np.full((1, 256), -2.0, np.float32),
        np.full((1, 256), 3, np.float32),
    ):
        np.testing.assert_allclose(block.dequantize("Q4_K", block.quantize("Q4_K", x)), x, rtol=2e-3)


def test_q8_k_by_its_definition():
    rng = np.random.default_rng(4)
    for x in (numbers(rng, 256), np.zeros(256, np.float32), np.float32(rng.integers(-3, 4, 256))):
        data = block.quantize("Q8_K", x)
        d, q, sums = data[:4].view("<f4")[0], data[4:260].view(np.int8), data[260:].view("<i2")
        largest = x[np.argmax(np.abs(x))]
        if largest == 0:
            assert not data.any()
            continue
        inverse = np.float32(-127) / largest
        assert d == np.float32(1) / inverse
        expected = [min(127, int(np.rint(inverse * v))) for v in x]
        assert q.tolist() == expected
        assert sums.tolist() == [sum(expected[i : i + 16]) for i in range(0, 256, 16)]
        np.testing.assert_array_equal(block.dequantize("Q8_K", data), d * q.astype(np.float32))


def test_scales_of_q4_k_pack_and_unpack():
    rng = np.random.default_rng(5)
    scales, minima = rng.integers(0, 64, (2, 50, 8)).astype(np.uint8)
    data = np.zeros((50, 144), np.uint8)
    data[:, 4:16] = _q4_k.pack_scales(scales, minima)
    found = _q4_k.unpack_scales(data)
    np.testing.assert_array_equal(found[0], scales)
    np.testing.assert_array_equal(found[1], minima)


@pytest.mark.parametrize("name", ["Q4_0", "Q8_0"])
def test_dot_of_small_blocks(name):
    rng = np.random.default_rng(6)
    w, a = random_blocks(rng, name, 3, 4), random_blocks(rng, "Q8_0", 2, 4)
    found = block.dot(name, w, a)
    assert found.sums.shape == found.minima.shape == (2, 3, 4)
    assert found.sums.dtype == np.int32
    assert not found.minima.any()
    for n in range(2):
        for m in range(3):
            total = np.float32(0)
            for b in range(4):
                wb, ab = w[m].reshape(4, -1)[b], a[n].reshape(4, -1)[b]
                low = [int(v & 15) - 8 for v in wb[2:]] + [int(v >> 4) - 8 for v in wb[2:]]
                codes = low if name == "Q4_0" else wb[2:].view(np.int8).tolist()
                exact = sum(p * q for p, q in zip(codes, ab[2:].view(np.int8).tolist(), strict=True))
                assert found.sums[n, m, b] == exact
                scale = np.float32(wb[:2].view("<f2")[0]) * np.float32(ab[:2].view("<f2")[0])
                total += np.float32(exact) * scale
            assert found.result[n, m] == total


def test_dot_of_super_blocks():
    rng = np.random.default_rng(7)
    w = random_blocks(rng, "Q4_K", 3, 2)
    a = block.quantize("Q8_K", numbers(rng, 2, 512))
    found = block.dot("Q4_K", w, a)
    for n in range(2):
        for m in range(3):
            for b in range(2):
                wb, ab = w[m].reshape(2, -1)[b], a[n].reshape(2, -1)[b]
                s = wb[4:16].tolist()
                scales = [v & 63 for v in s[:4]] + [(s[i + 8] & 15) | s[i] >> 6 << 4 for i in range(4)]
                minima = [v & 63 for v in s[4:8]] + [s[i + 8] >> 4 | s[i + 4] >> 6 << 4 for i in range(4)]
                q = ab[4:260].view(np.int8).tolist()
                codes = [0] * 256
                for g in range(4):
                    for at in range(32):
                        codes[64 * g + at] = int(wb[16 + 32 * g + at] & 15)
                        codes[64 * g + 32 + at] = int(wb[16 + 32 * g + at] >> 4)
                assert found.sums[n, m, b] == sum(scales[e // 32] * codes[e] * q[e] for e in range(256))
                assert found.minima[n, m, b] == sum(minima[e // 32] * q[e] for e in range(256))
    real = block.dequantize("Q8_K", a).astype(float) @ block.dequantize("Q4_K", w).astype(float).T
    np.testing.assert_allclose(found.result, real, rtol=1e-4, atol=1e-3 * np.abs(real).max())


def test_dot_approaches_the_real_product():
    rng = np.random.default_rng(8)
    w, a = numbers(rng, 8, 1024), numbers(rng, 4, 1024)
    for name, tolerance in (("Q8_0", 0.01), ("Q4_0", 0.12), ("Q4_K", 0.1)):
        found = block.dot(
            name, block.quantize(name, w), block.quantize(block.block_format(name).activations, a)
        )
        error = np.sqrt(((found.result - a @ w.T) ** 2).mean() / ((a @ w.T) ** 2).mean())
        assert error < tolerance


@pytest.mark.parametrize(
    ("x", "named"),
    [
        (np.zeros(33, np.float32), "multiple of 32"),
        (np.zeros(0, np.float32), "multiple of 32"),
        (np.zeros(32), "float64"),
        ([0.0] * 32, "list"),
        (np.float32([np.nan] * 32), "NaN or infinity"),
        (np.float32([np.inf] * 32), "NaN or infinity"),
        (np.float32([1e20] * 32), "65504"),
    ],
)
def test_quantize_refuses(x, named):
    for name in ("Q4_0", "Q8_0"):
        with pytest.raises((ShapeError, OptionError), match=named):
            block.quantize(name, x)
    if isinstance(x, np.ndarray) and x.size == 32:
        with pytest.raises((ShapeError, OptionError), match=named):
            block.quantize("Q4_K", np.tile(x, 8))


def test_the_rest_refuses():
    with pytest.raises(UnknownNameError, match="Q4_K"):
        block.quantize("Q4K", np.zeros(256, np.float32))
    with pytest.raises(ShapeError, match="multiple of 18"):
        block.dequantize("Q4_0", np.zeros(17, np.uint8))
    with pytest.raises(ShapeError, match="int8"):
        block.dequantize("Q4_0", np.zeros(18, np.int8))
    with pytest.raises(OptionError, match="Q8_K"):
        block.dot("Q8_K", np.zeros((1, 292), np.uint8), np.zeros((1, 292), np.uint8))
    with pytest.raises(ShapeError, match="2 blocks per row, the activations 1"):
        block.dot("Q4_0", np.zeros((1, 36), np.uint8), np.zeros((1, 34), np.uint8))
    with pytest.raises(ShapeError, match="expected 2 axes"):
        block.dot("Q4_0", np.zeros(18, np.uint8), np.zeros((1, 34), np.uint8))
