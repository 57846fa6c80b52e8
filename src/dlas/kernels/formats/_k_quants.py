"""The integers inside ggml's super-blocks of 256 weights: Q2_K, Q3_K, Q4_K, Q5_K and Q6_K.

``x = d * scale * code - dmin * minimum``, with a scale (and, in some formats, a minimum) for 16 or 32 weights each.
All arrays of bytes are ``(B, nbytes)`` uint8. Source: the structures and reference loops of ggml.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping
from dataclasses import dataclass

import numpy as np

from dlas.kernels.formats import _q4_k

SUPER_BLOCK = 256


@dataclass(frozen=True)
class KQuant:
    """How one format holds its integers.

    Attributes:
        name: ggml's word for it.
        nbytes: Bytes per super-block.
        d: Byte at which the half that multiplies the scales stands.
        dmin: Byte of the half that multiplies the minima; None without minima.
        codes: Bytes to the codes, ``(B, 256)`` int8.
        scales: Bytes to the scales, int8, and the minima, uint8 or None: ``(B, 16)`` or ``(B, 8)`` each.
    """

    name: str
    nbytes: int
    d: int
    dmin: int | None
    codes: Callable[[np.ndarray], np.ndarray]
    scales: Callable[[np.ndarray], tuple[np.ndarray, np.ndarray | None]]

    @property
    def halves(self) -> tuple[int, ...]:
        """Bytes at which the halves stand."""
        return (self.d,) if self.dmin is None else (self.d, self.dmin)

    def dequantize(self, data: np.ndarray) -> np.ndarray:
        """``(B, nbytes)`` uint8 to ``(B, 256)`` float32, in the order of operations that ggml has."""
        scales, minima = self.scales(data)
        codes = self.codes(data).reshape(len(data), scales.shape[1], -1).astype(np.float32)
        found = (_half(data, self.d) * scales.astype(np.float32))[:, :, None] * codes
        if minima is not None and self.dmin is not None:
            found = found - (_half(data, self.dmin) * minima.astype(np.float32))[:, :, None]
        return found.reshape(-1, SUPER_BLOCK)

    def factors(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
        """``d`` and ``dmin``, ``(B, 1)`` float32 each; ``dmin`` is 0 where there are no minima."""
        d = _half(data, self.d)
        return d, np.zeros_like(d) if self.dmin is None else _half(data, self.dmin)

    def scaled(self, data: np.ndarray) -> tuple[np.ndarray, np.ndarray | None]:
        """Codes times their scales, ``(B, 256)`` int16, and a minimum per 16 weights, ``(B, 16)`` uint8 or None."""
        scales, minima = self.scales(data)
        wide = self.codes(data).reshape(len(data), scales.shape[1], -1) * scales[:, :, None].astype(np.int16)
        if minima is not None:
            minima = np.repeat(minima, 16 // minima.shape[1], axis=1)
        return wide.reshape(-1, SUPER_BLOCK), minima


def _half(data: np.ndarray, at: int) -> np.ndarray:
    return np.ascontiguousarray(data[:, at : at + 2]).view("<f2").astype(np.float32)


def _pairs(data: np.ndarray) -> np.ndarray:
    """Codes of 2 bits, ``(B, 256)`` uint8, of 64 bytes: 4 in each, 32 bytes apart by element."""
    bits = np.arange(0, 8, 2, dtype=np.uint8)[:, None]
    return (data.reshape(-1, 2, 1, 32) >> bits & 3).reshape(-1, SUPER_BLOCK)


def _bits(data: np.ndarray) -> np.ndarray:
    """Bit ``i`` of 32 bytes for the ``i``-th 32 elements, ``(B, 256)`` uint8."""
    return (data[:, None, :] >> np.arange(8, dtype=np.uint8)[:, None] & 1).reshape(-1, SUPER_BLOCK)


def _q2_scales(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    return (data[:, :16] & 15).astype(np.int8), data[:, :16] >> 4


def _q2_codes(data: np.ndarray) -> np.ndarray:
    return _pairs(data[:, 16:80]).astype(np.int8)


def _q3_scales(data: np.ndarray) -> tuple[np.ndarray, None]:
    low, high = data[:, 96:104], data[:, 104:108]
    fours = np.concatenate([low & 15, low >> 4], axis=1)
    twos = np.concatenate([high >> shift & 3 for shift in (0, 2, 4, 6)], axis=1)
    return (fours | twos << 4).astype(np.int8) - np.int8(32), None


def _q3_codes(data: np.ndarray) -> np.ndarray:
    low = _pairs(data[:, 32:96]).astype(np.int8)
    return low - 4 * (1 - _bits(data[:, :32]).astype(np.int8))


def _q4_scales(data: np.ndarray) -> tuple[np.ndarray, np.ndarray]:
    scales, minima = _q4_k.unpack_scales(data)
    return scales.astype(np.int8), minima


def _q4_codes(data: np.ndarray) -> np.ndarray:
    return _q4_k.unpack_codes(data).astype(np.int8)


def _q5_codes(data: np.ndarray) -> np.ndarray:
    fours = _q4_k.unpack_codes(np.concatenate([data[:, :16], data[:, 48:]], axis=1))
    return (fours | _bits(data[:, 16:48]) << 4).astype(np.int8)


def _q6_scales(data: np.ndarray) -> tuple[np.ndarray, None]:
    return data[:, 192:208].view(np.int8), None


def _q6_codes(data: np.ndarray) -> np.ndarray:
    low = data[:, :128].reshape(-1, 2, 64)
    fours = np.concatenate([low & 15, low >> 4], axis=2).reshape(-1, SUPER_BLOCK)
    return (fours | _pairs(data[:, 128:192]) << 4).astype(np.int8) - np.int8(32)


K_QUANTS: Mapping[str, KQuant] = {
    kind.name: kind
    for kind in (
        KQuant("Q2_K", 84, 80, 82, _q2_codes, _q2_scales),
        KQuant("Q3_K", 110, 108, None, _q3_codes, _q3_scales),
        KQuant("Q4_K", 144, 0, 2, _q4_codes, _q4_scales),
        KQuant("Q5_K", 176, 0, 2, _q5_codes, _q4_scales),
        KQuant("Q6_K", 210, 208, None, _q6_codes, _q6_scales),
    )
}
