"""Decoded images, kept: in this process for the method that comes next, on disk where decoding took a while.

What is kept are the resized and cropped pixels, ``(N, H, W, C) uint8``; every network normalises them anew. The key is
the content of the data set and what decides about the pixels, so no two sets or sizes are ever taken for each other.
"""

from __future__ import annotations

import logging
import threading
import time
from collections import OrderedDict
from collections.abc import Callable
from pathlib import Path

import numpy as np

from dlas.core.cache import Cache, key_of
from dlas.core.errors import DlasError
from dlas.core.provenance import code_hash
from dlas.data.dataset import Dataset
from dlas.graph.preprocessing import Preprocessing

log = logging.getLogger("dlas")

LEAST_ROWS = 256  # fewer are decoded sooner than the key is found
MEMORY_BYTES = 256 * 2**20
DISK_BYTES = 1024 * 2**20  # of one entry
WORTH_S = 1.0  # of decoding, for the disk
_FILE = "pixels.npy"

_kept: OrderedDict[str, np.ndarray] = OrderedDict()
_lock = threading.Lock()


def decoded(dataset: Dataset, steps: Preprocessing, decode: Callable[[], np.ndarray]) -> np.ndarray:
    """The pixels of all samples; do not write into them.

    Args:
        dataset: Encoded images.
        steps: What they go through; only what decides about pixels counts.
        decode: Makes them, ``(N, H, W, C) uint8``.

    Returns:
        ``(N, H, W, C) uint8``, read-only.
    """
    if len(dataset) < LEAST_ROWS:
        return decode()
    shape = [steps.height, steps.width, steps.resize, steps.squash, steps.colour]
    key = key_of("pixels", dataset.hash, shape, code_hash(), _decoder())
    with _lock:
        if key in _kept:
            _kept.move_to_end(key)
            return _kept[key]
    pixels = _stored(key)
    if pixels is None:
        start = time.monotonic()
        pixels = decode()
        if time.monotonic() - start >= WORTH_S and pixels.nbytes <= DISK_BYTES:
            _store(key, pixels)
    pixels.flags.writeable = False
    _keep(key, pixels)
    return pixels


def forget() -> None:
    """Let go of what this process keeps."""
    with _lock:
        _kept.clear()


def _keep(key: str, pixels: np.ndarray) -> None:
    if pixels.nbytes > MEMORY_BYTES:
        return
    with _lock:
        _kept[key] = pixels
        while sum(a.nbytes for a in _kept.values()) > MEMORY_BYTES:
            _kept.popitem(last=False)


def _stored(key: str) -> np.ndarray | None:
    """What an earlier process stored, or None."""
    try:
        cache = Cache()
        if not cache.has(key):
            return None
        return np.load(cache.root / key[:2] / key / _FILE, allow_pickle=False)
    except (DlasError, OSError, ValueError) as error:  # it is only a cache
        log.warning("decoded images could not be read from the cache: %s", error)
        return None


def _store(key: str, pixels: np.ndarray) -> None:
    def make(folder: Path) -> None:
        np.save(folder / _FILE, pixels)

    try:
        Cache().folder(key, make)
    except (DlasError, OSError) as error:
        log.warning("decoded images are not kept: %s", error)


def _decoder() -> list[str]:
    """Versions of what decodes with loss: another one may round otherwise."""
    import PIL
    from PIL import features

    lossy = ("libjpeg_turbo", "jpg", "jpg_2000", "webp", "libtiff")
    return [PIL.__version__, *(f"{name} {features.version(name)}" for name in lossy)]
