"""ggml's blocks: bytes and numbers against the gguf package, integer sums against a loop, the search by its error."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError, UnknownNameError
from dlas.graph.formats._ggml import TYPES
from dlas.kernels.formats import _q4_k, block

SIZES = {
    "Q4_0": (32, 18),
    "Q8_0": (32, 34),
    "Q2_K": (256, 84),
    "Q3_K": (256, 110),
    "Q4_K": (256, 144),
    "Q5_K": (256, 176),
    "Q6_K": (256, 210),
    "Q8_K": (256, 292),
}
SCALES = {"Q4_0": (0, 1), "Q8_0": (0, 1), "Q2_K": (80, 2), "Q3_K": (108, 1), "Q4_K": (0, 2), "Q5_K": (0, 2),
          "Q6_K": (208, 1)}  # fmt: skip


def numbers(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def random_blocks(rng: np.random.Generator, name: str, rows: int, count: int) -> np.ndarray:
    """Any bytes, with scales that are finite halves."""
    data = rng.integers(0, 256, (rows, count, SIZES[name][1])).astype(np.uint8)
    at, scales = SCALES[name]
    halves = rng.uniform(-2, 2, (rows, count, scales)).astype(np.float16)
    data[..., at : at + 2 * scales] = halves.view(np.uint8)
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


@pytest.mark.parametrize("name", SCALES)
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


def integers_by_definition(name: str, b: list[int]) -> tuple[list[int], list[int], list[int]]:
    """Code, scale and minimum of each of 256 weights, element by element after ggml's structures."""
    codes, scales, minima = [], [], [0] * 256
    for e in range(256):
        half, quarter, at = e // 128, e % 128 // 32, e % 32
        if name == "Q2_K":
            codes.append(b[16 + 32 * half + at] >> 2 * quarter & 3)
            scales.append(b[e // 16] & 15)
            minima[e] = b[e // 16] >> 4
        elif name == "Q3_K":
            codes.append((b[32 + 32 * half + at] >> 2 * quarter & 3) - (0 if b[at] >> (e // 32) & 1 else 4))
            s, j = b[96:108], e // 16
            scales.append(
                (s[j] & 15 if j < 8 else s[j - 8] >> 4) + 16 * (s[8 + j % 4] >> 2 * (j // 4) & 3) - 32
            )
        elif name in ("Q4_K", "Q5_K"):
            start = 16 if name == "Q4_K" else 48
            byte = b[start + 32 * (e // 64) + at]
            high = 16 * (b[16 + at] >> (e // 32) & 1) if name == "Q5_K" else 0
            codes.append((byte >> 4 if e % 64 >= 32 else byte & 15) + high)
            s, j = b[4:16], e // 32
            scales.append(s[j] & 63 if j < 4 else (s[j + 4] & 15) + 16 * (s[j - 4] >> 6))
            minima[e] = s[j + 4] & 63 if j < 4 else (s[j + 4] >> 4) + 16 * (s[j] >> 6)
        else:
            low = b[64 * half + 32 * (quarter % 2) + at]
            top = b[128 + 32 * half + at] >> 2 * quarter & 3
            codes.append((low >> 4 if quarter >= 2 else low & 15) + 16 * top - 32)
            scales.append(b[192 + e // 16] - 256 * (b[192 + e // 16] >> 7))
    return codes, scales, minima


@pytest.mark.parametrize("name", ["Q2_K", "Q3_K", "Q4_K", "Q5_K", "Q6_K"])
def test_dot_of_super_blocks(name):
    rng = np.random.default_rng(7)
    w = random_blocks(rng, name, 3, 2)
    a = block.quantize("Q8_K", numbers(rng, 2, 512))
    found = block.dot(name, w, a)
    for n in range(2):
        for m in range(3):
            for b in range(2):
                wb, ab = w[m].reshape(2, -1)[b], a[n].reshape(2, -1)[b]
                codes, scales, minima = integers_by_definition(name, wb.tolist())
                q = ab[4:260].view(np.int8).tolist()
                assert found.sums[n, m, b] == sum(s * c * v for s, c, v in zip(scales, codes, q, strict=True))
                assert found.minima[n, m, b] == sum(s * v for s, v in zip(minima, q, strict=True))
    real = block.dequantize("Q8_K", a).astype(float) @ block.dequantize(name, w).astype(float).T
    np.testing.assert_allclose(found.result, real, rtol=1e-4, atol=1e-6 * np.abs(real).max())


def test_dot_is_the_same_in_parts(monkeypatch):
    rng = np.random.default_rng(9)
    w, a = random_blocks(rng, "Q2_K", 11, 2), block.quantize("Q8_K", numbers(rng, 3, 512))
    whole = block.dot("Q2_K", w, a)
    monkeypatch.setattr(block, "_AT_ONCE", 3 * 512)
    for one, other in zip(whole, block.dot("Q2_K", w, a), strict=True):
        np.testing.assert_array_equal(one, other)


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
    with pytest.raises(OptionError, match="a format that dlas packs"):
        block.quantize("Q2_K", np.zeros(256, np.float32))
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
