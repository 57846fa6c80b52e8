"""WAV files made by hand."""

from __future__ import annotations

import struct

import numpy as np


def wav(samples, rate=8000, bits=16, channels=1, kind=1, extra=b""):
    """A WAV file of whole numbers as they are stored, or of floats (kind 3)."""
    if bits == 24:
        body = b"".join(int(s).to_bytes(3, "little", signed=True) for s in samples)
    else:
        dtype = {8: "u1", 16: "<i2", 32: "<f4" if kind == 3 else "<i4"}[bits]
        body = np.asarray(samples).astype(dtype).tobytes()
    frame = channels * bits // 8
    form = struct.pack("<HHIIHH", kind, channels, rate, rate * frame, frame, bits) + extra
    chunks = b"fmt " + struct.pack("<I", len(form)) + form
    chunks += b"LIST" + struct.pack("<I", 3) + b"abc\0"  # padded to an even place
    chunks += b"data" + struct.pack("<I", len(body)) + body
    return b"RIFF" + struct.pack("<I", 4 + len(chunks)) + b"WAVE" + chunks


def tone(hertz, seconds=0.4, rate=8000, loudness=8000):
    """A sine as 16-bit samples."""
    at = np.arange(int(seconds * rate)) / rate
    return np.rint(loudness * np.sin(2 * np.pi * hertz * at)).astype(np.int64)
