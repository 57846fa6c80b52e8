"""Blocks of weights with shared scales, byte for byte as ggml stores them; Q8_K is the one of activations.

A row of ``(..., K)`` numbers becomes a row of bytes, block after block, little-endian. The integer sums of :func:`dot`
are the contract between this file, a native kernel and a model of an accelerator: they agree to the bit.
Source: the structures and reference loops of ggml (``ggml-common.h``, ``ggml-quants.c``).
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import NamedTuple

import numpy as np

from dlas.core.errors import OptionError, ShapeError, UnknownNameError
from dlas.kernels.formats import _q4_k
from dlas.kernels.formats._k_quants import K_QUANTS


@dataclass(frozen=True)
class BlockFormat:
    """One block format.

    Attributes:
        name: ggml's word for it.
        elements: Numbers per block.
        nbytes: Bytes per block.
        activations: Format of the activations it is multiplied with.
        quantize: ``(B, elements)`` float32 to ``(B, nbytes)`` uint8; None where blocks are read, never made.
        dequantize: ``(B, nbytes)`` uint8 to ``(B, elements)`` float32.
        halves: Bytes at which the half-precision scales stand.
    """

    name: str
    elements: int
    nbytes: int
    activations: str
    quantize: Callable[[np.ndarray], np.ndarray] | None
    dequantize: Callable[[np.ndarray], np.ndarray]
    halves: tuple[int, ...] = (0,)


_AT_ONCE = 2**22  # weights that are spread to float64 together


class Dot(NamedTuple):
    """Products of M rows of weights with N rows of activations, of KB blocks each.

    Attributes:
        sums: ``(N, M, KB)`` int32: products of the integers, each sub-block times its integer scale.
        minima: ``(N, M, KB)`` int32: integer minima times the sums of the activations; 0 where a format has none.
        result: ``(N, M)`` float32: the blocks, scaled and added in float32 in increasing k.
    """

    sums: np.ndarray
    minima: np.ndarray
    result: np.ndarray


def block_format(name: str) -> BlockFormat:
    """The format called ``name``; raises UnknownNameError."""
    if name not in BLOCK_FORMATS:
        raise UnknownNameError("block format", name, BLOCK_FORMATS)
    return BLOCK_FORMATS[name]


def quantize(name: str, x: np.ndarray) -> np.ndarray:
    """Pack numbers into blocks.

    Args:
        name: One of ``BLOCK_FORMATS``.
        x: ``(..., K)`` float32, K a multiple of the block.

    Returns:
        ``(..., K / elements * nbytes)`` uint8.

    Raises:
        UnknownNameError: There is no such format.
        ShapeError: ``x`` is no float32, or K is not a multiple of the block.
        OptionError: ``x`` holds NaN, an infinity or a number so large that its scale is no half; or dlas only reads
            blocks of this format.
    """
    kind = block_format(name)
    if kind.quantize is None:
        packed = ", ".join(f.name for f in BLOCK_FORMATS.values() if f.quantize)
        raise OptionError("name", name, f"a format that dlas packs: {packed}")
    if not isinstance(x, np.ndarray) or x.dtype != np.float32 or not x.ndim:
        raise ShapeError(f"x is {getattr(x, 'dtype', type(x).__name__)}, expected an array of float32")
    blocks = _split(x, kind.elements, f"numbers of a {name} row")
    if not np.isfinite(blocks).all():
        raise OptionError("x", "NaN or infinity", "finite numbers")
    with np.errstate(over="ignore", invalid="ignore"):
        found = kind.quantize(blocks)
    if not np.isfinite(scales_of(name, found)).all():
        raise OptionError("x", float(np.abs(x).max()), f"numbers whose {name} scale is at most 65504")
    return found.reshape(*x.shape[:-1], -1)


def scales_of(name: str, data: np.ndarray) -> np.ndarray:
    """The half-precision scales of blocks, which make numbers of the integers.

    Args:
        name: One of ``BLOCK_FORMATS``.
        data: ``(..., KB * nbytes)`` uint8.

    Returns:
        ``(blocks, scales per block)`` float32; no columns for Q8_K, whose scale is a float32.

    Raises:
        UnknownNameError, ShapeError: As for :func:`dequantize`.
    """
    kind = block_format(name)
    blocks = _bytes(kind, data)
    found = [_half(blocks[:, at : at + 2]) for at in kind.halves]
    return np.concatenate(found, axis=1) if found else np.zeros((len(blocks), 0), np.float32)


def dequantize(name: str, data: np.ndarray) -> np.ndarray:
    """The numbers that blocks stand for.

    Args:
        name: One of ``BLOCK_FORMATS``.
        data: ``(..., KB * nbytes)`` uint8.

    Returns:
        ``(..., KB * elements)`` float32.

    Raises:
        UnknownNameError: There is no such format.
        ShapeError: ``data`` is no uint8, or no whole number of blocks.
    """
    kind = block_format(name)
    blocks = _bytes(kind, data)
    return kind.dequantize(blocks).reshape(*data.shape[:-1], -1)


def dot(name: str, weights: np.ndarray, activations: np.ndarray) -> Dot:
    """Products of rows, in the integers of the blocks.

    Args:
        name: Format of the weights: ``Q4_0``, ``Q8_0`` (activations in Q8_0) or a K-quant (activations in Q8_K).
        weights: ``(M, KB * nbytes)`` uint8.
        activations: ``(N, KB * nbytes)`` uint8 in the format that ``name`` is multiplied with.

    Returns:
        The integer sums of each pair of blocks, and the products.

    Raises:
        UnknownNameError: There is no such format.
        ShapeError: The rows do not hold the same number of whole blocks.
        OptionError: ``name`` is no format of weights.
    """
    w, a, (rows, columns, count) = _rows(name, weights, activations)
    sums, minima = np.zeros((2, columns, rows, count), np.int32)
    chunk = max(1, _AT_ONCE // (count * block_format(name).elements))
    for first in range(0, rows, chunk):
        span = slice(first, first + chunk)
        part = w[first * count : (first + chunk) * count]
        sums[:, span], minima[:, span] = _integers(name, part, a, (len(part) // count, columns, count))
    return Dot(sums, minima, combine(name, weights, activations, sums, minima))


def _integers(
    name: str, w: np.ndarray, a: np.ndarray, shape: tuple[int, int, int]
) -> tuple[np.ndarray, np.ndarray]:
    """Sums and minima of :class:`Dot`."""
    if name not in K_QUANTS:
        codes = _q4_0_codes(w) if name == "Q4_0" else w[:, 2:].view(np.int8)
        sums = _products(codes, a[:, 2:].view(np.int8), *shape)
        return sums, np.zeros_like(sums)
    codes, small = K_QUANTS[name].scaled(w)
    sums = _products(codes, a[:, 4:260].view(np.int8), *shape)
    if small is None:
        return sums, np.zeros_like(sums)
    return sums, _products(small, np.ascontiguousarray(a[:, 260:]).view("<i2"), *shape)


def combine(
    name: str, weights: np.ndarray, activations: np.ndarray, sums: np.ndarray, minima: np.ndarray
) -> np.ndarray:
    """The float32 part of :func:`dot`, for integer sums that something else computed.

    Args:
        name: Format of the weights.
        weights: As for :func:`dot`; only the scales are looked at.
        activations: As for :func:`dot`.
        sums: ``(N, M, KB)`` int32.
        minima: ``(N, M, KB)`` int32.

    Returns:
        ``(N, M)`` float32: the blocks, scaled and added in float32 in increasing k.

    Raises:
        UnknownNameError, ShapeError, OptionError: As for :func:`dot`.
    """
    w, a, (rows, columns, count) = _rows(name, weights, activations)
    if name in K_QUANTS:
        d, dmin = K_QUANTS[name].factors(w)
        d_a = np.ascontiguousarray(a[:, :4]).view("<f4")
    else:
        d, d_a = _half(w[:, :2]), _half(a[:, :2])
        dmin = np.zeros_like(d)
    scale, below = (_outer(v, d_a, rows, columns, count) for v in (d, dmin))
    result = np.zeros((columns, rows), np.float32)
    for block in range(count):
        result += sums[..., block].astype(np.float32) * scale[..., block]
        result -= minima[..., block].astype(np.float32) * below[..., block]
    return result


def _rows(
    name: str, weights: np.ndarray, activations: np.ndarray
) -> tuple[np.ndarray, np.ndarray, tuple[int, int, int]]:
    """Blocks of both operands, one per row of bytes, with M, N and KB."""
    kind = block_format(name)
    if name == "Q8_K":
        others = ", ".join(n for n in BLOCK_FORMATS if n != name)
        raise OptionError("name", name, f"a format of weights: {others}")
    partner = BLOCK_FORMATS[kind.activations]
    w, a = _bytes(kind, weights, 2), _bytes(partner, activations, 2)
    count, other = weights.shape[1] // kind.nbytes, activations.shape[1] // partner.nbytes
    if other != count:
        raise ShapeError(f"the weights have {count} blocks per row, the activations {other}")
    return w, a, (len(weights), len(activations), count)


def _products(w: np.ndarray, a: np.ndarray, rows: int, columns: int, count: int) -> np.ndarray:
    """``(N, M, KB)`` int32 sums of products within blocks; float64 holds them exactly."""
    left = w.astype(np.float64).reshape(rows, count, -1).transpose(1, 0, 2)
    right = a.astype(np.float64).reshape(columns, count, -1).transpose(1, 2, 0)
    return (left @ right).transpose(2, 1, 0).astype(np.int32)


def _outer(w: np.ndarray, a: np.ndarray, rows: int, columns: int, count: int) -> np.ndarray:
    """``(N, M, KB)`` float32 products of the scales."""
    return a.reshape(columns, 1, count) * w.reshape(1, rows, count)


def _split(x: np.ndarray, block: int, what: str) -> np.ndarray:
    if not x.size or x.shape[-1] % block:
        raise ShapeError(
            f"the {what} are {list(x.shape)}, expected the last axis to be a multiple of {block}"
        )
    return np.ascontiguousarray(x).reshape(-1, block)


def _bytes(kind: BlockFormat, data: np.ndarray, rank: int | None = None) -> np.ndarray:
    if not isinstance(data, np.ndarray) or data.dtype != np.uint8 or not data.ndim:
        raise ShapeError(f"data is {getattr(data, 'dtype', type(data).__name__)}, expected an array of uint8")
    if rank is not None and data.ndim != rank:
        raise ShapeError(f"data has the shape {list(data.shape)}, expected {rank} axes")
    return _split(data, kind.nbytes, f"bytes of a {kind.name} row")


def _half(two_bytes: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(two_bytes).view("<f2").astype(np.float32)


def _as_half(values: np.ndarray) -> np.ndarray:
    return values.astype("<f2").view(np.uint8)


def _inverse(d: np.ndarray) -> np.ndarray:
    return np.divide(np.float32(1), d, out=np.zeros_like(d), where=d != 0)


def _signed_largest(blocks: np.ndarray) -> np.ndarray:
    """The number of largest magnitude of each block, with its sign; the first of equals."""
    return np.take_along_axis(blocks, np.abs(blocks).argmax(axis=1, keepdims=True), axis=1)


def _quantize_q8_0(blocks: np.ndarray) -> np.ndarray:
    d = np.abs(blocks).max(axis=1, keepdims=True) / np.float32(127)
    steps = blocks * _inverse(d)
    whole = np.floor(np.abs(steps))
    codes = np.copysign(whole + (np.abs(steps) - whole >= 0.5), steps).astype(np.int8)
    return np.concatenate([_as_half(d), codes.view(np.uint8)], axis=1)


def _dequantize_q8_0(data: np.ndarray) -> np.ndarray:
    return data[:, 2:].view(np.int8).astype(np.float32) * _half(data[:, :2])


def _quantize_q4_0(blocks: np.ndarray) -> np.ndarray:
    d = _signed_largest(blocks) / np.float32(-8)
    codes = np.trunc(blocks * _inverse(d) + np.float32(8.5)).astype(np.uint8)
    codes = np.minimum(codes, 15).reshape(-1, 2, 16)
    return np.concatenate([_as_half(d), codes[:, 0] | codes[:, 1] << 4], axis=1)


def _q4_0_codes(data: np.ndarray) -> np.ndarray:
    pairs = data[:, 2:]
    return np.concatenate([pairs & 15, pairs >> 4], axis=1).astype(np.int8) - np.int8(8)


def _dequantize_q4_0(data: np.ndarray) -> np.ndarray:
    return _q4_0_codes(data).astype(np.float32) * _half(data[:, :2])


def _quantize_q8_k(blocks: np.ndarray) -> np.ndarray:
    largest = _signed_largest(blocks)
    inverse = np.divide(np.float32(-127), largest, out=np.zeros_like(largest), where=largest != 0)
    codes = np.minimum(np.rint(inverse * blocks), 127).astype(np.int8)
    d = _inverse(inverse).astype("<f4")
    sums = codes.reshape(-1, 16, 16).sum(axis=2, dtype=np.int64).astype("<i2")
    return np.concatenate([d.view(np.uint8), codes.view(np.uint8), sums.view(np.uint8)], axis=1)


def _dequantize_q8_k(data: np.ndarray) -> np.ndarray:
    return data[:, 4:260].view(np.int8).astype(np.float32) * np.ascontiguousarray(data[:, :4]).view("<f4")


BLOCK_FORMATS: Mapping[str, BlockFormat] = {
    kind.name: kind
    for kind in (
        BlockFormat("Q4_0", 32, 18, "Q8_0", _quantize_q4_0, _dequantize_q4_0),
        BlockFormat("Q8_0", 32, 34, "Q8_0", _quantize_q8_0, _dequantize_q8_0),
        *(
            BlockFormat(
                k.name,
                256,
                k.nbytes,
                "Q8_K",
                _q4_k.quantize if k.name == "Q4_K" else None,
                k.dequantize,
                k.halves,
            )
            for k in K_QUANTS.values()
        ),
        BlockFormat("Q8_K", 256, 292, "Q8_K", _quantize_q8_k, _dequantize_q8_k, ()),
    )
}
