"""Q4_K: super-blocks of 256 weights in 8 sub-blocks, each with a 6-bit scale and a 6-bit minimum.

``x = d * scale * q - dmin * minimum``. Bytes: half d, half dmin, 12 bytes of scales and minima, 128 bytes of codes.
"""

from __future__ import annotations

import numpy as np

_TOP = 15  # largest code
_CANDIDATES = np.arange(-10, 11) / 10  # by how much more than 15 steps the range of a sub-block is divided


def unpack_scales(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scales and minima, ``(B, 8)`` uint8 each, 0 .. 63, of ``(B, 144)`` bytes."""
    first, second, rest = data[:, 4:8], data[:, 8:12], data[:, 12:16]
    scales = [first & 63, (rest & 15) | (first >> 6) << 4]
    minima = [second & 63, (rest >> 4) | (second >> 6) << 4]
    return np.concatenate(scales, axis=1), np.concatenate(minima, axis=1)


def pack_scales(scales: np.ndarray, minima: np.ndarray) -> np.ndarray:
    """Inverse of :func:`unpack_scales`: ``(B, 12)`` uint8."""
    parts = [
        scales[:, :4] | (scales[:, 4:] >> 4) << 6,
        minima[:, :4] | (minima[:, 4:] >> 4) << 6,
        (scales[:, 4:] & 15) | (minima[:, 4:] & 15) << 4,
    ]
    return np.concatenate(parts, axis=1)


def unpack_codes(data: np.ndarray) -> np.ndarray:
    """Codes, ``(B, 256)`` uint8, 0 .. 15, of ``(B, 144)`` bytes."""
    pairs = data[:, 16:].reshape(-1, 4, 1, 32)
    return np.concatenate([pairs & 15, pairs >> 4], axis=2).reshape(-1, 256)


def quantize(blocks: np.ndarray) -> np.ndarray:
    """``(B, 256)`` float32 to ``(B, 144)`` uint8 by a search over ranges; not ggml's bytes, but as near."""
    x = blocks.reshape(-1, 8, 32).astype(np.float64)
    scales, minima = _fit(x)
    d, dmin = (v.max(axis=1, keepdims=True) / 63 for v in (scales, minima))
    halves = np.concatenate([d, dmin], axis=1).astype("<f2").view(np.uint8)
    d, dmin = (v.astype(np.float16).astype(np.float64) for v in (d, dmin))
    whole = [
        np.clip(np.rint(np.divide(v, step, out=np.zeros_like(v), where=step > 0)), 0, 63)
        for v, step in ((scales, d), (minima, dmin))
    ]
    steps, below = (d * whole[0])[:, :, None], (dmin * whole[1])[:, :, None]
    codes = np.divide(x + below, steps, out=np.zeros_like(x), where=steps > 0)
    codes = np.clip(np.rint(codes), 0, _TOP).astype(np.uint8).reshape(-1, 4, 2, 32)
    packed = (codes[:, :, 0] | codes[:, :, 1] << 4).reshape(-1, 128)
    return np.concatenate([halves, pack_scales(*(w.astype(np.uint8) for w in whole)), packed], axis=1)


def _fit(x: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    """Scale and (positive) minimum of each sub-block that leave the least weighted error, ``(B, 8)`` each.

    Large weights count more. Each candidate divides the range a little more or less finely; given its codes, the best
    scale and minimum are those of least squares.
    """
    importance = np.sqrt((x**2).mean(axis=2, keepdims=True)) + np.abs(x)
    low = np.minimum(x.min(axis=2, keepdims=True), 0)
    span = x.max(axis=2, keepdims=True) - low
    best_scale, best_low = span[..., 0] / _TOP, low[..., 0]
    best_error = np.full(best_scale.shape, np.inf)
    weight = importance.sum(axis=2)
    first = (importance * x).sum(axis=2)
    for extra in (0, *_CANDIDATES):
        per_step = np.divide(_TOP + extra, span, out=np.zeros_like(span), where=span > 0)
        codes = np.clip(np.rint(per_step * (x - low)), 0, _TOP)
        of_codes = (importance * codes).sum(axis=2)
        squares = (importance * codes**2).sum(axis=2)
        mixed = (importance * codes * x).sum(axis=2)
        spread = weight * squares - of_codes**2
        usable = spread > 1e-30
        scale = np.divide(weight * mixed - first * of_codes, spread, out=np.zeros_like(spread), where=usable)
        floor = np.divide(squares * first - of_codes * mixed, spread, out=np.zeros_like(spread), where=usable)
        # A minimum is subtracted: it cannot raise a sub-block.
        alone = np.divide(mixed, squares, out=np.zeros_like(squares), where=squares > 0)
        scale, floor = np.where(floor > 0, alone, scale), np.minimum(floor, 0)
        error = (importance * (scale[..., None] * codes + floor[..., None] - x) ** 2).sum(axis=2)
        better = usable & (scale > 0) & (error < best_error)
        best_scale, best_low = np.where(better, scale, best_scale), np.where(better, floor, best_low)
        best_error = np.where(better, error, best_error)
    return best_scale, -best_low
