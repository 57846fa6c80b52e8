"""Activations in a few bits per value, some channels with more: DQA's numbers, and the bytes they are stored as.

A channel c with peak ``M`` is rounded to ``q' = clamp(round(x / step))`` of ``bits + extra[c]`` bits. What is stored is
``q' >> extra`` in ``bits`` bits for every channel and, for channels with extra bits, the error ``q' & (2**extra - 1)``
as Huffman codes. ``step * q'`` comes back to the bit: nothing but the rounding is lost (Hu et al. 2024, "DQA: An
Efficient Method for Deep Quantization of Deep Neural Network Activations").

A stored tensor, little-endian, is

* ``uint32`` rows N;
* the peaks, float32, where they are not fixed beforehand (one per channel, or per row and channel, or for all);
* the codes, ``bits`` bits each, two's complement if signed, channel by channel, then row by row, first bit highest,
  filled up to a byte;
* the errors of the channels that have any, in order, as ``tables`` says. ``dynamic``: per channel 24 bits of code
  lengths (all 0: the errors follow uncoded), ``uint32`` bits of payload, the payload filled up to a byte. ``static``:
  one flag per channel (1: uncoded), then all payloads without gaps, filled up to a byte. ``raw``: all errors uncoded.

What is the same for every tensor (which channels have extra bits, fixed peaks, fixed code tables) is no part of it and
is counted once, by :attr:`Layout.side_bytes`.
"""

from __future__ import annotations

import math
import struct
from dataclasses import dataclass, field
from typing import Literal

import numpy as np

from dlas.core.errors import DataError, OptionError, ShapeError
from dlas.kernels.formats import huffman

Span = Literal["static", "batch", "sample"]
SPANS = ("static", "batch", "sample")
Tables = Literal["dynamic", "static", "raw"]
TABLES = ("dynamic", "static", "raw")
TINY = np.float32(1e-30)  # stands for a peak of 0, so that 0 / step is 0
MOST_EXTRA = 3
_COUNT = struct.Struct("<I")


@dataclass(frozen=True, eq=False)
class Layout:
    """How the values of one tensor ``(N, C, ...)`` are stored.

    Attributes:
        bits: Bits of every value, 2..8.
        extra: ``(C,) uint8``: further bits of each channel, 0..3.
        signed: Whether values may be negative.
        span: Where peaks come from: fixed beforehand, or the largest magnitude in a batch or in each row of it.
        peaks: ``(C,)`` or ``(1,)`` (one for all channels) float32 for ``static``; else only its length counts.
        full: Unsigned only: the highest code is the peak itself (``step = M / (2**b - 1)``). Otherwise it is one step
            below, as with signed values (``step = M / 2**b``), which rounds finer and cuts the topmost values.
        tables: Where the code tables of the errors come from.
        lengths: ``(C, 8) uint8``: the code tables for ``static``.
    """

    bits: int
    extra: np.ndarray
    signed: bool
    span: Span
    peaks: np.ndarray
    full: bool = False
    tables: Tables = "dynamic"
    lengths: np.ndarray | None = field(default=None)

    def __post_init__(self) -> None:
        if not 2 <= self.bits <= 8:
            raise OptionError("bits", self.bits, "2..8")
        channels = len(self.extra)
        if self.extra.shape != (channels,) or (self.extra > MOST_EXTRA).any() or (self.extra < 0).any():
            raise OptionError("extra", self.extra.tolist(), f"one number of 0..{MOST_EXTRA} per channel")
        if self.peaks.shape not in ((channels,), (1,)):
            raise ShapeError(f"{self.peaks.shape[0]} peaks for {channels} channels")
        if self.span == "static" and not (np.isfinite(self.peaks) & (self.peaks >= 0)).all():
            raise OptionError("peaks", self.peaks.tolist(), "finite numbers >= 0")
        if self.span not in SPANS or self.tables not in TABLES:
            raise OptionError("span, tables", (self.span, self.tables), f"one of {SPANS} and of {TABLES}")
        if self.tables == "static" and (self.lengths is None or self.lengths.shape != (channels, 8)):
            raise ShapeError("static tables need code lengths (channels, 8)")

    @property
    def factors(self) -> np.ndarray:
        """``step / peak``: ``(C,) float32``."""
        width = np.float64(2) ** (self.bits + self.extra.astype(np.int64) - (1 if self.signed else 0))
        return (1.0 / (width - 1 if self.full and not self.signed else width)).astype(np.float32)

    @property
    def limits(self) -> tuple[np.ndarray, np.ndarray]:
        """Lowest and highest code of each channel: ``(C,) float32``."""
        width = np.float64(2) ** (self.bits + self.extra.astype(np.int64) - (1 if self.signed else 0))
        low = -width if self.signed else np.zeros_like(width)
        return low.astype(np.float32), (width - 1).astype(np.float32)

    @property
    def side_bytes(self) -> int:
        """Bytes stored once beside the network: 2 bits per channel, fixed peaks, fixed code tables."""
        tables = huffman.TABLE_BYTES * int((self.extra > 0).sum()) if self.tables == "static" else 0
        peaks = self.peaks.size * 4 if self.span == "static" else 0
        return math.ceil(len(self.extra) / 4) + peaks + tables


@dataclass(frozen=True)
class Stored:
    """What storing one or more tensors took.

    Attributes:
        values: Numbers stored.
        bits: Bits of the serialised bytes.
        errors: Values that have extra bits.
        error_bits: Bits of their payload, without tables, counts and filling.
    """

    values: int = 0
    bits: int = 0
    errors: int = 0
    error_bits: int = 0

    def __add__(self, other: Stored) -> Stored:
        return Stored(
            self.values + other.values,
            self.bits + other.bits,
            self.errors + other.errors,
            self.error_bits + other.error_bits,
        )

    @property
    def bits_per_value(self) -> float:
        """All bits over all values; 0 for no values."""
        return self.bits / self.values if self.values else 0.0

    @property
    def bits_per_error(self) -> float:
        """Payload bits over values that have extra bits; 0 for none."""
        return self.error_bits / self.errors if self.errors else 0.0


def peaks_of(x: np.ndarray, span: str, per_channel: bool) -> np.ndarray:
    """Largest magnitudes, broadcast against ``x``: ``(N|1, C|1, 1, ...) float32``; 0 where there are no values."""
    axes = tuple(
        a for a in range(x.ndim) if not (a == 1 and per_channel) and not (a == 0 and span == "sample")
    )
    return np.abs(x).max(axis=axes, keepdims=True, initial=0.0).astype(np.float32)


def quantize(x: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    """Codes and steps of a tensor; ``codes * steps`` are the values that are computed with.

    Args:
        x: ``(N, C, ...) float32``.
        layout: How it is stored.

    Returns:
        Codes ``(N, C, ...) int32`` of ``bits + extra`` bits, rounded half to even, and steps float32 that broadcast
        against them.

    Raises:
        ShapeError: Another dtype, or another number of channels than the layout has.
        OptionError: A value is not finite.
    """
    _check(x, layout)
    return _codes(x, _peaks(x, layout), layout)


def dequantized(x: np.ndarray, layout: Layout) -> np.ndarray:
    """What comes back: ``(N, C, ...) float32``; see :func:`quantize`."""
    found, steps = quantize(x, layout)
    return found.astype(np.float32) * steps


def encode(x: np.ndarray, layout: Layout) -> bytes:
    """The bytes a tensor is stored as; see :func:`quantize` for the arguments and what is refused."""
    return encode_measured(x, layout)[0]


def encode_measured(x: np.ndarray, layout: Layout) -> tuple[bytes, Stored]:
    """As :func:`encode`, and what it took."""
    _check(x, layout)
    peaks = _peaks(x, layout)
    found, _ = _codes(x, peaks, layout)
    rows = np.moveaxis(found, 1, 0).reshape(len(layout.extra), -1)
    extra = layout.extra.astype(np.int32)[:, None]
    parts = [_COUNT.pack(len(x))]
    if layout.span != "static":
        parts.append(peaks.astype("<f4").tobytes())
    parts.append(np.packbits(_bits(rows >> extra, layout.bits)).tobytes())
    errors = [(int(c), (rows[c] & ((1 << int(layout.extra[c])) - 1)).astype(np.uint8)) for c in _rich(layout)]
    written, payload = _errors(errors, layout)
    data = b"".join([*parts, written])
    return data, Stored(x.size, len(data) * 8, sum(e.size for _, e in errors), payload)


def decode(data: bytes, layout: Layout, inner: tuple[int, ...]) -> np.ndarray:
    """Inverse of :func:`encode`: the values to compute with.

    Args:
        data: The bytes.
        layout: The layout they were written with.
        inner: Sizes behind the channel axis.

    Returns:
        ``(N, C, *inner) float32``, equal to the bit to what :func:`dequantized` gives.

    Raises:
        DataError: The bytes are truncated, too many or damaged.
    """
    reader = _Reader(data)
    count = _COUNT.unpack(reader.take(4))[0]
    channels, per_row = len(layout.extra), math.prod(inner)
    # Before memory is taken: so many codes must be there.
    reader.require(math.ceil(count * channels * per_row * layout.bits / 8))
    shape = (count, channels, *inner)
    if layout.span == "static":
        peaks = layout.peaks.reshape(1, -1, *[1] * len(inner))
    else:
        spread = (count if layout.span == "sample" else 1, layout.peaks.size, *[1] * len(inner))
        peaks = np.frombuffer(reader.take(4 * math.prod(spread)), "<f4").reshape(spread)
        if not (np.isfinite(peaks) & (peaks >= 0)).all():
            raise DataError("a stored peak is negative or not finite", "the stream is damaged")
    values = channels * count * per_row
    high = _numbers(reader.bits(values * layout.bits), layout.bits, layout.signed)
    codes = high.reshape(channels, -1) << layout.extra.astype(np.int32)[:, None]
    _read_errors(reader, codes, layout)
    reader.finish()
    moved = np.moveaxis(codes.reshape(channels, count, *inner), 0, 1)
    return (moved.astype(np.float32) * _steps(peaks, layout, len(shape))).astype(np.float32)


def error_counts(x: np.ndarray, layout: Layout) -> np.ndarray:
    """How often each error occurs in each channel: ``(C, 8) int64``; channels without extra bits count nothing."""
    found, _ = quantize(x, layout)
    counts = np.zeros((len(layout.extra), huffman.SYMBOLS), np.int64)
    for c in _rich(layout):
        errors = found[:, c].reshape(-1) & ((1 << int(layout.extra[c])) - 1)
        counts[c] = np.bincount(errors, minlength=huffman.SYMBOLS)
    return counts


def static_tables(counts: np.ndarray, extra: np.ndarray) -> np.ndarray:
    """Code lengths for errors counted on other rows: ``(C, 8) uint8``; errors not seen there get a code as well."""
    lengths = np.zeros((len(extra), huffman.SYMBOLS), np.uint8)
    for c in np.flatnonzero(extra):
        size = 1 << int(extra[c])
        lengths[c] = huffman.code_lengths(counts[c, :size] + 1)
    return lengths


def _check(x: np.ndarray, layout: Layout) -> None:
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or x.ndim < 2:
        raise ShapeError(
            f"x is {getattr(x, 'dtype', type(x))} {list(np.shape(x))}, expected float32 (N, C, ...)"
        )
    if x.shape[1] != len(layout.extra):
        raise ShapeError(f"x has {x.shape[1]} channels, the layout {len(layout.extra)}")
    if not np.isfinite(x).all():
        raise OptionError("x", "NaN or infinity", "finite values")


def _rich(layout: Layout) -> np.ndarray:
    return np.flatnonzero(layout.extra)


def _peaks(x: np.ndarray, layout: Layout) -> np.ndarray:
    if layout.span == "static":
        return layout.peaks.reshape(1, -1, *[1] * (x.ndim - 2))
    return peaks_of(x, layout.span, layout.peaks.size > 1 or len(layout.extra) == 1)


def _steps(peaks: np.ndarray, layout: Layout, rank: int) -> np.ndarray:
    factors = layout.factors.reshape(1, -1, *[1] * (rank - 2))
    return np.maximum(peaks, TINY).astype(np.float32) * factors


def _codes(x: np.ndarray, peaks: np.ndarray, layout: Layout) -> tuple[np.ndarray, np.ndarray]:
    steps = _steps(peaks, layout, x.ndim)
    low, high = (side.reshape(1, -1, *[1] * (x.ndim - 2)) for side in layout.limits)
    with np.errstate(
        over="ignore"
    ):  # a fixed peak of 0 turns a value into infinity, which is cut like any other
        ratio = x / steps
    return np.clip(np.rint(ratio), low, high).astype(np.int32), steps


def _bits(values: np.ndarray, width: int) -> np.ndarray:
    """The lowest ``width`` bits (at most 8) of each number, highest first: ``(n * width,) uint8``."""
    flat = values.reshape(-1).astype(np.uint8)
    return np.unpackbits(flat[:, None], axis=1)[:, 8 - width :].reshape(-1)


def _numbers(bits: np.ndarray, width: int, signed: bool) -> np.ndarray:
    """Inverse of :func:`_bits`: ``(n,) int32``."""
    filled = np.zeros((len(bits) // width, 8), np.uint8)
    filled[:, 8 - width :] = bits.reshape(-1, width)
    if signed:
        filled[:, : 8 - width] = filled[:, 8 - width, None]
    numbers = np.packbits(filled, axis=1).reshape(-1)
    return numbers.view(np.int8).astype(np.int32) if signed else numbers.astype(np.int32)


def _errors(errors: list[tuple[int, np.ndarray]], layout: Layout) -> tuple[bytes, int]:
    """The errors as bytes, and the bits of their payload."""
    if layout.tables == "dynamic":
        parts, total = [], 0
        for channel, symbols in errors:
            lengths, bits = _coded(symbols, int(layout.extra[channel]))
            parts += [huffman.pack_table(lengths), _COUNT.pack(len(bits)), np.packbits(bits).tobytes()]
            total += len(bits)
        return b"".join(parts), total
    flags, payloads = [], []
    for channel, symbols in errors:
        width = int(layout.extra[channel])
        coded = None
        if layout.tables == "static" and layout.lengths is not None:
            counts = np.bincount(symbols, minlength=huffman.SYMBOLS)
            if huffman.payload_bits(counts, layout.lengths[channel]) < symbols.size * width:
                coded = huffman.encode(symbols, layout.lengths[channel])
        flags.append(coded is None)
        payloads.append(_bits(symbols, width) if coded is None else coded)
    total = sum(len(p) for p in payloads)
    if layout.tables == "static":
        payloads.insert(0, np.array(flags, np.uint8))
    return (np.packbits(np.concatenate(payloads)).tobytes() if payloads else b""), total


def _coded(symbols: np.ndarray, width: int) -> tuple[np.ndarray, np.ndarray]:
    """Code lengths and payload of one channel; all lengths 0 and the plain bits where a code would take as much."""
    counts = np.bincount(symbols, minlength=huffman.SYMBOLS)
    lengths = huffman.code_lengths(counts)
    if symbols.size and huffman.payload_bits(counts, lengths) < symbols.size * width:
        return lengths, huffman.encode(symbols, lengths)
    return np.zeros(huffman.SYMBOLS, np.uint8), _bits(symbols, width)


def _read_errors(reader: _Reader, codes: np.ndarray, layout: Layout) -> None:
    """Put the low bits into ``codes (C, n)``."""
    count = codes.shape[1]
    rich = _rich(layout)
    if layout.tables == "dynamic":
        for c in rich:
            lengths = huffman.unpack_table(reader.take(huffman.TABLE_BYTES))
            size = _COUNT.unpack(reader.take(4))[0]
            bits = reader.bits(size)
            width = int(layout.extra[c])
            codes[c] |= _symbols(bits, lengths, count, width, exact=True)[0]
        return
    bits = reader.rest() if len(rich) else np.zeros(0, np.uint8)
    at = len(rich) if layout.tables == "static" else 0
    if len(bits) < at:
        raise DataError("the errors end too early", "the stream is truncated")
    for place, c in enumerate(rich):
        plain = layout.tables == "raw" or layout.lengths is None or bits[place]
        lengths = np.zeros(huffman.SYMBOLS, np.uint8) if plain else layout.lengths[c]  # type: ignore[index]
        symbols, used = _symbols(bits[at:], lengths, count, int(layout.extra[c]), exact=False)
        codes[c] |= symbols
        at += used
    if len(rich):
        reader.give_back(len(bits) - at)


def _symbols(
    bits: np.ndarray, lengths: np.ndarray, count: int, width: int, *, exact: bool
) -> tuple[np.ndarray, int]:
    """``count`` errors of ``width`` bits from the front of ``bits``, and the bits they took."""
    if lengths.any():
        found, used = huffman.decode(bits, lengths, count)
        if found.size and int(found.max()) >= 1 << width:
            raise DataError(f"an error of {int(found.max())} in {width} bits", "the stream is damaged")
    else:
        used = count * width
        if len(bits) < used:
            raise DataError(f"{count} errors of {width} bits in {len(bits)} bits", "the stream is truncated")
        found = _numbers(bits[:used], width, signed=False)
    if exact and used != len(bits):
        raise DataError(
            f"a channel's errors take {used} bits, {len(bits)} are stored", "the stream is damaged"
        )
    return found.astype(np.int32), used


class _Reader:
    """Bytes from front to back; raises DataError where they end too early or late."""

    def __init__(self, data: bytes) -> None:
        self.data, self.at = data, 0

    def require(self, count: int) -> None:
        left = len(self.data) - self.at
        if left < count:
            raise DataError(
                f"{count} bytes are expected at {self.at}, {left} are there", "the stream is truncated"
            )

    def take(self, count: int) -> bytes:
        self.require(count)
        self.at += count
        return self.data[self.at - count : self.at]

    def bits(self, count: int) -> np.ndarray:
        whole = np.unpackbits(np.frombuffer(self.take(-(-count // 8)), np.uint8))
        if whole[count:].any():
            raise DataError("the filling of the last byte is not 0", "the stream is damaged")
        return whole[:count]

    def rest(self) -> np.ndarray:
        return np.unpackbits(np.frombuffer(self.take(len(self.data) - self.at), np.uint8))

    def give_back(self, bits: int) -> None:
        """Say that so many bits of :meth:`rest` were not used; less than a byte of them is filling."""
        self.at -= bits // 8

    def finish(self) -> None:
        if self.at != len(self.data):
            raise DataError(f"{len(self.data) - self.at} bytes too many", "the stream is damaged")
