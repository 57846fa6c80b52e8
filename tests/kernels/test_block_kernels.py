"""Products with ggml's blocks: the native kernels against the blocks' own NumPy arithmetic."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import UnsupportedError
from dlas.kernels.extension import native
from dlas.kernels.formats.block import BLOCK_FORMATS, dot, quantize
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
ISAS = native().isa_levels() if native() is not None else []  # type: ignore[union-attr]
KERNELS = {"Q4_0": "q4-0", "Q8_0": "q8-0", "Q4_K": "q4-k"}


def product(kind: str, blocks: np.ndarray, a: np.ndarray, context: Context, bias=None) -> np.ndarray:
    inputs = [Operand(a.shape), Operand.of(blocks)] + ([] if bias is None else [Operand.of(bias)])
    node = Node(f"MatMul{kind}", "x", {}, tuple(inputs), (Operand((*a.shape[:-1], len(blocks))),))
    arrays = [a, *[None] * (len(inputs) - 1)]
    return Bench(kernels.get(KERNELS[kind])(), node, arrays, context).run()[0]


def hostile(rng: np.random.Generator, kind: str, n: int, count: int) -> np.ndarray:
    """Random bytes with finite scales: every code, -128 of Q8_0 and subnormal halves among them."""
    size = BLOCK_FORMATS[kind].nbytes
    blocks = rng.integers(0, 256, (n, count, size)).astype(np.uint8)
    for at in (1, 3) if kind == "Q4_K" else (1,):
        blocks[:, :, at] &= 0xBF  # clears the top bit of the exponent
    return blocks.reshape(n, -1)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("kind", KERNELS)
def test_equals_the_blocks_arithmetic(isa: str, kind: str) -> None:
    rng = np.random.default_rng(11)
    contexts = Context.here(1, isa), Context.here(2, isa)
    form = BLOCK_FORMATS[kind]
    for case in range(200):
        rows, n, count = int(rng.integers(1, 8)), int(rng.integers(1, 90)), int(rng.integers(1, 4))
        k = count * form.elements
        a = (rng.standard_normal((rows, k)) * 10.0 ** rng.integers(-3, 4)).astype(np.float32)
        a[rows // 2, : form.elements] = rng.choice([0.0, 1.0, -1.0])  # equal magnitudes, and none at all
        if case % 2:
            blocks = hostile(rng, kind, n, count)
        else:
            blocks = quantize(kind, rng.standard_normal((n, k)).astype(np.float32))
        bias = rng.standard_normal(n).astype(np.float32) if case % 3 == 0 else None
        one, two = (product(kind, blocks, a, c, bias) for c in contexts)
        np.testing.assert_array_equal(one, two)
        exact = dot(kind, blocks, quantize(form.activations, a))
        expected = exact.result + (0 if bias is None else bias)
        # Only the rounding of float32 between blocks may differ.
        size = bound(kind, blocks, a) + np.abs(expected)
        assert np.all(np.abs(one - expected) <= 2e-6 * size), (rows, n, count)


def bound(kind: str, blocks: np.ndarray, a: np.ndarray) -> np.ndarray:
    """Sums of the magnitudes of what the blocks add up."""
    form = BLOCK_FORMATS[kind]
    q = quantize(form.activations, a)
    total = np.zeros((len(a), len(blocks)), np.float64)
    partner = BLOCK_FORMATS[form.activations].nbytes
    for b in range(blocks.shape[1] // form.nbytes):
        w_block = np.ascontiguousarray(blocks[:, b * form.nbytes : (b + 1) * form.nbytes])
        a_block = np.ascontiguousarray(q[:, b * partner : (b + 1) * partner])
        part = dot(kind, w_block, a_block)
        scale = np.ascontiguousarray(w_block[:, :4]).view("<f2").astype(np.float64)
        d_a = a_block[:, :4].view("<f4") if kind == "Q4_K" else a_block[:, :2].view("<f2")
        d_a = np.abs(d_a[:, :1].astype(np.float64))
        total += np.abs(part.sums[..., 0]) * np.abs(scale[:, 0]) * d_a
        if kind == "Q4_K":
            total += np.abs(part.minima[..., 0]) * np.abs(scale[:, 1]) * d_a
    return total


@pytest.mark.parametrize("kind", KERNELS)
def test_one_block_is_exact(kind: str) -> None:
    """With scales of 1 the result is the integer itself, at its extremes too."""
    form = BLOCK_FORMATS[kind]
    k = form.elements
    extremes = {"Q4_0": [0x00, 0xFF], "Q8_0": [0x80, 0x7F], "Q4_K": [0x00, 0xFF]}[kind]
    for byte in extremes:
        blocks = np.full((40, form.nbytes), byte, np.uint8)
        blocks[:, :2] = np.array([1.0], "<f2").view(np.uint8)
        if kind == "Q4_K":
            blocks[:, 2:4] = 0
        for sign in (127.0, -127.0):
            a = np.full((5, k), sign, np.float32)
            exact = dot(kind, blocks, quantize(form.activations, a))
            for isa in ISAS:
                np.testing.assert_array_equal(product(kind, blocks, a, Context.here(1, isa)), exact.result)


@pytest.mark.parametrize("kind", KERNELS)
def test_nan_spoils_its_row_only(kind: str) -> None:
    rng = np.random.default_rng(3)
    k = BLOCK_FORMATS[kind].elements * 2
    blocks = quantize(kind, rng.standard_normal((20, k)).astype(np.float32))
    for wrong in (np.nan, np.inf):
        a = rng.standard_normal((3, k)).astype(np.float32)
        a[1, 5] = wrong
        y = product(kind, blocks, a, Context.here())
        assert np.isnan(y[1]).all()
        assert np.isfinite(y[[0, 2]]).all()


@pytest.mark.parametrize("kind", KERNELS)
def test_refuses_what_does_not_fit(kind: str) -> None:
    k = BLOCK_FORMATS[kind].elements
    blocks = np.zeros((4, BLOCK_FORMATS[kind].nbytes), np.uint8)
    with pytest.raises(UnsupportedError, match="blocks of K"):
        product(kind, blocks, np.zeros((1, 2 * k), np.float32), Context.here())
    with pytest.raises(UnsupportedError, match="bias"):
        product(kind, blocks, np.zeros((1, k), np.float32), Context.here(), np.zeros(3, np.float32))
