"""Canonical Huffman codes of small symbols (0..7), as the errors of quantised activations are stored.

A table is the code length of each of the 8 symbols, 3 bits per length (0: the symbol is not used), so 24 bits. Codes
are canonical (shorter first, then smaller symbols) and written most significant bit first. A symbol that is alone has
length 1 and needs no payload. Two subtrees of equal count are joined in the order of their smallest symbols, so equal
counts give equal bytes on any machine (Huffman 1952; canonical form as in RFC 1951, section 3.2.2).

Encoding and decoding are vectorised: the decoder looks up a code at every bit position and then follows the chain of
positions in log2(n) rounds of pointer doubling.
"""

from __future__ import annotations

import heapq

import numpy as np

from dlas.core.errors import DataError, OptionError, ShapeError

SYMBOLS = 8
LONGEST = 7  # bits of a code; 8 symbols never need more
TABLE_BYTES = 3


def code_lengths(counts: np.ndarray) -> np.ndarray:
    """Length of the Huffman code of each symbol: ``(8,) uint8``, 0 where the count is 0.

    Args:
        counts: ``(k,)`` integers >= 0, ``k <= 8``: how often each symbol occurs.

    Raises:
        ShapeError: More than 8 counts, or no integers.
        OptionError: A count is negative.
    """
    counts = np.asarray(counts)
    if counts.ndim != 1 or counts.size > SYMBOLS or counts.dtype.kind not in "iu":
        raise ShapeError(
            f"counts are {counts.dtype} {list(counts.shape)}, expected at most {SYMBOLS} integers"
        )
    if (counts < 0).any():
        raise OptionError("counts", int(counts.min()), "numbers >= 0")
    lengths = np.zeros(SYMBOLS, np.uint8)
    heap: list[tuple[int, int, tuple[int, ...]]] = [
        (int(count), symbol, (symbol,)) for symbol, count in enumerate(counts) if count
    ]
    heapq.heapify(heap)
    if len(heap) == 1:
        lengths[heap[0][1]] = 1
    while len(heap) > 1:
        (a, first, left), (b, second, right) = heapq.heappop(heap), heapq.heappop(heap)
        for symbol in (*left, *right):
            lengths[symbol] += 1
        heapq.heappush(heap, (a + b, min(first, second), (*left, *right)))
    return lengths


def codes(lengths: np.ndarray) -> np.ndarray:
    """The canonical code of each symbol, right-aligned: ``(8,) uint8``; 0 where the length is 0.

    Raises:
        DataError: No prefix code has these lengths.
    """
    lengths = checked_lengths(lengths)
    found = np.zeros(SYMBOLS, np.uint8)
    code, previous = 0, 0
    for symbol in np.lexsort((np.arange(SYMBOLS), lengths)):
        length = int(lengths[symbol])
        if length:
            code <<= length - previous
            found[symbol], previous = code, length
            code += 1
    return found


def checked_lengths(lengths: np.ndarray) -> np.ndarray:
    """``lengths`` as ``(8,) uint8``.

    Raises:
        DataError: They are not 8 numbers of 0..7, or no complete prefix code has them (a single symbol of length 1
            is one).
    """
    lengths = np.asarray(lengths)
    if lengths.shape != (SYMBOLS,) or lengths.dtype.kind not in "iu":
        raise DataError(f"a code table is {lengths.dtype} {list(lengths.shape)}, expected {SYMBOLS} lengths")
    used = lengths[lengths != 0].astype(np.int64)
    room = int((1 << (LONGEST - np.minimum(used, LONGEST))).sum())
    alone = used.size == 1 and used[0] == 1
    if (used > LONGEST).any() or (used < 0).any() or not (alone or room == 1 << LONGEST or used.size == 0):
        raise DataError(f"no Huffman code has the lengths {lengths.tolist()}", "the stream is damaged")
    return lengths.astype(np.uint8)


def payload_bits(counts: np.ndarray, lengths: np.ndarray) -> int:
    """Bits of the payload for symbols that occur ``counts`` times, coded with ``lengths``."""
    if np.count_nonzero(lengths) == 1:
        return 0
    return int(np.dot(np.asarray(counts, np.int64), lengths[: len(counts)].astype(np.int64)))


def encode(symbols: np.ndarray, lengths: np.ndarray) -> np.ndarray:
    """The payload as single bits.

    Args:
        symbols: ``(n,)`` integers 0..7.
        lengths: ``(8,)`` table, from :func:`code_lengths`.

    Returns:
        ``(bits,) uint8`` of 0 and 1, in the order they are written; empty for a table of one symbol.

    Raises:
        ShapeError: ``symbols`` is no row of integers.
        OptionError: A symbol has no code.
        DataError: The table is none.
    """
    lengths = checked_lengths(lengths)
    if not isinstance(symbols, np.ndarray) or symbols.ndim != 1 or symbols.dtype.kind not in "iu":
        raise ShapeError(
            f"symbols are {getattr(symbols, 'dtype', type(symbols))}, expected a row of integers"
        )
    if symbols.size == 0:
        return np.zeros(0, np.uint8)
    if symbols.min() < 0 or symbols.max() >= SYMBOLS or (lengths[symbols] == 0).any():
        wrong = sorted(set(np.unique(symbols).tolist()) - set(np.flatnonzero(lengths).tolist()))
        raise OptionError("symbol", wrong[0], f"one of {np.flatnonzero(lengths).tolist()}, which have codes")
    if np.count_nonzero(lengths) == 1:
        return np.zeros(0, np.uint8)
    size = lengths[symbols]
    # Left-aligned codes: bit j of a code is bit 7-j of the byte, whatever its length.
    aligned = (codes(lengths).astype(np.uint16) << (8 - lengths.astype(np.uint16))).astype(np.uint8)
    bits = np.unpackbits(aligned[symbols]).reshape(-1, 8)
    return bits[np.arange(8, dtype=np.uint8) < size[:, None]]


def decode(bits: np.ndarray, lengths: np.ndarray, count: int) -> tuple[np.ndarray, int]:
    """Inverse of :func:`encode`.

    Args:
        bits: ``(b,)`` of 0 and 1; may go on behind the payload.
        lengths: ``(8,)`` table it was encoded with.
        count: Symbols to read.

    Returns:
        ``(count,) uint8`` symbols, and how many bits they took.

    Raises:
        DataError: The bits end too early, or the table is none.
    """
    lengths = checked_lengths(lengths)
    used = np.flatnonzero(lengths)
    if count == 0:
        return np.zeros(0, np.uint8), 0
    if used.size == 0:
        raise DataError(
            f"{count} symbols are to be decoded with a table without codes", "the stream is damaged"
        )
    if used.size == 1:
        return np.full(count, used[0], np.uint8), 0
    if len(bits) < count:  # every code has at least one bit
        raise DataError(f"{count} symbols in {len(bits)} bits", "the stream is truncated")
    bits = bits[: count * LONGEST]
    symbol_at, length_at = _lookup(lengths)
    window = np.zeros(len(bits), np.uint8)
    padded = np.concatenate([np.asarray(bits, np.uint8), np.zeros(LONGEST, np.uint8)])
    for j in range(LONGEST):
        window |= padded[j : j + len(bits)] << np.uint8(LONGEST - 1 - j)
    end = len(bits)
    # A code that runs over the end leads to end + 1, from where no chain returns.
    after = np.arange(end, dtype=np.int64) + length_at[window]
    after = np.concatenate([np.where(after > end, end + 1, after), [end + 1, end + 1]])
    starts = np.zeros(1, np.int64)
    jump = after
    while len(starts) < count:
        starts = np.concatenate([starts, jump[starts]])
        jump = jump[jump] if len(starts) < count else jump
    starts = starts[:count]
    finish = int(after[starts[-1]])
    if finish > end:
        raise DataError(f"{count} symbols do not end within {end} bits", "the stream is truncated")
    return symbol_at[window[starts]], finish


def pack_table(lengths: np.ndarray) -> bytes:
    """The table as 3 bytes: 3 bits per symbol, symbol 0 first."""
    lengths = checked_lengths(lengths)
    return np.packbits(np.unpackbits(lengths[:, None], axis=1)[:, 5:].reshape(-1)).tobytes()


def unpack_table(data: bytes) -> np.ndarray:
    """Inverse of :func:`pack_table`; all zeros (no code at all) is allowed.

    Raises:
        DataError: Not 3 bytes, or no prefix code has these lengths.
    """
    if len(data) != TABLE_BYTES:
        raise DataError(
            f"a code table has {len(data)} bytes, expected {TABLE_BYTES}", "the stream is truncated"
        )
    bits = np.unpackbits(np.frombuffer(data, np.uint8)).reshape(SYMBOLS, 3)
    return checked_lengths(bits @ np.array([4, 2, 1], np.uint8))


def _lookup(lengths: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Symbol and code length for each window of 7 bits."""
    symbol_at = np.zeros(1 << LONGEST, np.uint8)
    length_at = np.zeros(1 << LONGEST, np.int64)
    found = codes(lengths)
    for symbol in np.flatnonzero(lengths):
        free = LONGEST - int(lengths[symbol])
        first = int(found[symbol]) << free
        symbol_at[first : first + (1 << free)] = symbol
        length_at[first : first + (1 << free)] = lengths[symbol]
    return symbol_at, length_at
