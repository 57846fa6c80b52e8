"""The host's side of the activation quantiser: a channel into words, words into values."""

from __future__ import annotations

import numpy as np

from dlas.hardware.accelerators._dqa.channel import Stored
from dlas.hardware.accelerators._dqa.geometry import LANES, Geometry
from dlas.hardware.accelerators._dqa.protocol import RESTORE, STORE


def pack_store(values: np.ndarray, geometry: Geometry) -> np.ndarray:
    """A channel ``(V,) int16`` and the command to store it, ``(W, 2) uint64``."""
    filled = np.zeros(geometry.rows(len(values)) * LANES, np.int16)
    filled[: len(values)] = values
    return np.concatenate([STORE.word(count=len(values))[None], filled.view(np.uint64).reshape(-1, 2)])


def pack_restore(stored: Stored) -> np.ndarray:
    """A stored channel and the command to restore it, ``(W, 2) uint64``."""
    header = RESTORE.word(
        count=stored.count, peak=stored.peak, payload_words=len(stored.payload), lengths=stored.packed_lengths
    )
    return np.concatenate([header[None], stored.payload, stored.high])


def unpack_values(words: np.ndarray, count: int) -> np.ndarray:
    """Values ``(V,) int16`` of the words that a restored channel comes in."""
    return words.reshape(-1).view(np.int16)[:count].copy()
