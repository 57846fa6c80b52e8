"""Canonical Huffman codes: optimal, canonical, deterministic, and back to the bit."""

from __future__ import annotations

import heapq

import numpy as np
import pytest

from dlas.core.errors import DataError, OptionError, ShapeError
from dlas.kernels.formats import huffman


def drawn(rng: np.random.Generator, n: int) -> np.ndarray:
    used = int(rng.integers(1, 9))
    return rng.choice(used, n, p=rng.dirichlet(np.full(used, 0.3))).astype(np.uint8)


def least_bits(counts: np.ndarray) -> int:
    """Cost of an optimal code: the sum of all inner nodes of the tree."""
    heap = [int(c) for c in counts if c]
    heapq.heapify(heap)
    total = 0
    while len(heap) > 1:
        joined = heapq.heappop(heap) + heapq.heappop(heap)
        total += joined
        heapq.heappush(heap, joined)
    return total


def test_round_trips_are_exact_and_optimal():
    rng = np.random.default_rng(0)
    for _ in range(200):
        symbols = drawn(rng, int(rng.integers(1, 500)))
        counts = np.bincount(symbols, minlength=8)
        lengths = huffman.code_lengths(counts)
        bits = huffman.encode(symbols, lengths)
        assert len(bits) == huffman.payload_bits(counts, lengths) == least_bits(counts)
        more = np.concatenate([bits, rng.integers(0, 2, 30).astype(np.uint8)])
        back, used = huffman.decode(more, lengths, len(symbols))
        np.testing.assert_array_equal(back, symbols)
        assert used == len(bits)
        np.testing.assert_array_equal(huffman.unpack_table(huffman.pack_table(lengths)), lengths)


def test_codes_are_canonical_and_free_of_prefixes():
    lengths = np.array([2, 3, 0, 1, 0, 4, 4, 0], np.uint8)
    found = huffman.codes(lengths)
    spelled = {s: format(found[s], f"0{lengths[s]}b") for s in np.flatnonzero(lengths)}
    assert spelled == {3: "0", 0: "10", 1: "110", 5: "1110", 6: "1111"}
    bits = huffman.encode(np.array([5, 3, 0], np.uint8), lengths)
    assert bits.tolist() == [1, 1, 1, 0, 0, 1, 0]  # first bit of a code first
    assert huffman.pack_table(lengths) == bytes([0b01001100, 0b00010001, 0b00100000])


def test_ties_are_broken_by_the_smallest_symbol():
    assert huffman.code_lengths(np.array([1, 1, 1])).tolist()[:3] == [2, 2, 1]
    assert huffman.code_lengths(np.ones(8, np.int64)).tolist() == [3] * 8


def test_the_longest_code_has_seven_bits():
    lengths = huffman.code_lengths(2 ** np.arange(8))
    assert sorted(lengths.tolist()) == [1, 2, 3, 4, 5, 6, 7, 7]
    symbols = np.arange(8, dtype=np.uint8).repeat(3)
    np.testing.assert_array_equal(huffman.decode(huffman.encode(symbols, lengths), lengths, 24)[0], symbols)


def test_a_symbol_alone_needs_no_payload():
    lengths = huffman.code_lengths(np.bincount([5, 5, 5], minlength=8))
    assert lengths.tolist() == [0, 0, 0, 0, 0, 1, 0, 0]
    assert huffman.encode(np.full(3, 5, np.uint8), lengths).size == 0
    assert huffman.decode(np.zeros(0, np.uint8), lengths, 3)[0].tolist() == [5, 5, 5]
    assert huffman.code_lengths(np.zeros(8, np.int64)).sum() == 0


@pytest.mark.parametrize(
    ("table", "match"),
    [([1, 1, 1, 0, 0, 0, 0, 0], "no Huffman code"), ([2, 2, 2, 0, 0, 0, 0, 0], "no Huffman code")],
)
def test_damaged_tables_are_refused(table: list[int], match: str):
    with pytest.raises(DataError, match=match):
        huffman.unpack_table(np.packbits(np.unpackbits(np.uint8(table)[:, None], axis=1)[:, 5:]).tobytes())


def test_what_has_no_code_is_refused():
    lengths = huffman.code_lengths(np.array([3, 1, 0, 2]))
    with pytest.raises(OptionError, match="2"):
        huffman.encode(np.array([0, 2], np.uint8), lengths)
    with pytest.raises(ShapeError):
        huffman.encode(np.zeros((2, 2), np.uint8), lengths)
    with pytest.raises(ShapeError):
        huffman.code_lengths(np.zeros(9, np.int64))
    with pytest.raises(OptionError):
        huffman.code_lengths(np.array([-1, 2]))


def test_truncated_payloads_are_refused():
    rng = np.random.default_rng(1)
    symbols = drawn(rng, 100)
    lengths = huffman.code_lengths(np.bincount(symbols, minlength=8))
    bits = huffman.encode(symbols, lengths)
    for cut in range(0, len(bits), 7):
        with pytest.raises(DataError, match="truncated"):
            huffman.decode(bits[:cut], lengths, len(symbols))
    with pytest.raises(DataError):
        huffman.decode(bits, np.zeros(8, np.uint8), 5)
