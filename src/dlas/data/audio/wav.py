"""Recordings in WAV files: integer PCM of 8 to 32 bits and 32-bit floating point, any number of channels.

Multimedia Programming Interface and Data Specifications 1.0 (IBM and Microsoft 1991), with the extensible header.
"""

from __future__ import annotations

import struct
from dataclasses import dataclass

import numpy as np

from dlas.core.errors import DataError

_PCM, _FLOAT, _EXTENSIBLE = 1, 3, 0xFFFE
_FULL_SCALE = {1: 128.0, 2: 2.0**15, 3: 2.0**23, 4: 2.0**31}
_MAX_SAMPLES = 2**26  # more than two hours at 8 kHz


@dataclass(frozen=True)
class Recording:
    """One channel of sound.

    Attributes:
        rate: Samples per second.
        samples: ``(n,) float64`` in -1..1; several channels are averaged.
    """

    rate: int
    samples: np.ndarray

    @property
    def seconds(self) -> float:
        """Its length."""
        return len(self.samples) / self.rate


def is_wav(data: object) -> bool:
    """Whether these bytes say that they are a WAV file."""
    return isinstance(data, bytes) and data[:4] == b"RIFF" and data[8:12] == b"WAVE"


def read_wav(data: bytes, label: str) -> Recording:
    """Decode a WAV file.

    Args:
        data: The whole file.
        label: How to call it in messages.

    Raises:
        DataError: No WAV file, cut off, empty, in an encoding that is not read, or with samples that are not finite.
    """
    if not is_wav(data):
        raise DataError(f"{label} is not a WAV recording", "expected RIFF/WAVE with PCM or float samples")
    kind, channels, rate, width, body = _chunks(data, label)
    if kind == _FLOAT and width == 4:
        values = np.frombuffer(body, "<f4").astype(np.float64)
    elif kind == _PCM and width in _FULL_SCALE:
        values = _integers(body, width) / _FULL_SCALE[width]
    else:
        raise DataError(
            f"{label} holds samples of encoding {kind} in {8 * width} bits",
            "read are PCM of 8, 16, 24 or 32 bits and 32-bit floating point",
        )
    if not np.isfinite(values).all():
        raise DataError(f"{label} holds samples that are NaN or infinite")
    return Recording(rate, values.reshape(-1, channels).mean(1))


def _chunks(data: bytes, label: str) -> tuple[int, int, int, int, bytes]:
    """Encoding, channels, rate, bytes per sample, and the samples of whole frames."""
    form: tuple[int, int, int, int] | None = None
    at = 12
    while at + 8 <= len(data):
        name, size = data[at : at + 4], int.from_bytes(data[at + 4 : at + 8], "little")
        body = data[at + 8 : at + 8 + size]
        if name == b"fmt ":
            form = _format(body, label)
        elif name == b"data":
            if form is None:
                break
            kind, channels, rate, width = form
            if len(body) < size:
                raise DataError(f"{label} is cut off: {len(body)} of {size} bytes of sound are there")
            frames = size // (width * channels)
            if not 1 <= frames <= _MAX_SAMPLES:
                raise DataError(f"{label} holds {frames} samples", f"expected 1 to {_MAX_SAMPLES}")
            return kind, channels, rate, width, body[: frames * width * channels]
        at += 8 + size + size % 2
    missing = "samples" if form else "description of its format before the samples"
    raise DataError(f"{label} is a WAV recording without {missing}", "is it complete?")


def _format(body: bytes, label: str) -> tuple[int, int, int, int]:
    if len(body) < 16:
        raise DataError(f"{label} is cut off in its header: {len(body)} of 16 bytes")
    kind, channels, rate, _, frame, bits = struct.unpack("<HHIIHH", body[:16])
    if kind == _EXTENSIBLE and len(body) >= 26:
        kind = int.from_bytes(body[24:26], "little")
    if not channels or not rate or bits % 8 or frame != channels * bits // 8 or not bits:
        raise DataError(
            f"{label} says that it has {channels} channels, {rate} samples per second and {bits} bits "
            f"in frames of {frame} bytes, which contradict each other"
        )
    return kind, channels, rate, bits // 8


def _integers(body: bytes, width: int) -> np.ndarray:
    """Signed values; 8 bits are stored around 128."""
    if width == 1:
        return np.frombuffer(body, np.uint8).astype(np.float64) - 128
    if width != 3:
        return np.frombuffer(body, f"<i{width}").astype(np.float64)
    wide = np.zeros((len(body) // 3, 4), np.uint8)
    wide[:, 1:] = np.frombuffer(body, np.uint8).reshape(-1, 3)
    return (wide.view("<i4")[:, 0] >> 8).astype(np.float64)
