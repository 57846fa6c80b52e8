"""Small pictures of samples, as data addresses that stand inside a page."""

from __future__ import annotations

import base64
import io
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.errors import DlasError
from dlas.data.dataset import Dataset

if TYPE_CHECKING:
    from PIL import Image

_SIDE = 96  # pixels of the longer side
_CHANNELS = (1, 3)


def thumbnail(data: Dataset, row: int) -> str:
    """A sample as a ``data:image/png`` address; empty where it is no picture or cannot be decoded."""
    from PIL import Image

    sample = data.samples[row]
    try:
        picture = _decoded(sample, row) if isinstance(sample, bytes | bytearray) else _from_array(sample)
    except DlasError:
        return ""
    if picture is None:
        return ""
    scale = _SIDE / max(picture.size)
    size = (max(1, round(picture.width * scale)), max(1, round(picture.height * scale)))
    how = Image.Resampling.NEAREST if scale > 1 else Image.Resampling.BILINEAR
    out = io.BytesIO()
    picture.resize(size, how).save(out, "PNG")
    return "data:image/png;base64," + base64.b64encode(out.getvalue()).decode()


def _decoded(sample: bytes | bytearray, row: int) -> Image.Image:
    from dlas.data.preprocess import decode

    return decode(bytes(sample), f"row {row}").convert("RGB")


def _from_array(sample: np.ndarray) -> Image.Image | None:
    """Pixels of ``(H, W)``, ``(H, W, C)`` or ``(C, H, W)``; floats are stretched to the whole range."""
    from PIL import Image

    pixels = np.asarray(sample)
    if pixels.ndim == 3 and pixels.shape[-1] not in _CHANNELS and pixels.shape[0] in _CHANNELS:
        pixels = pixels.transpose(1, 2, 0)
    if pixels.ndim == 2:
        pixels = pixels[:, :, None]
    if (
        pixels.ndim != 3
        or pixels.shape[-1] not in _CHANNELS
        or min(pixels.shape) == 0
        or min(pixels.shape[:2]) < 4
    ):
        return None
    if pixels.dtype != np.uint8:
        values = np.nan_to_num(pixels.astype(np.float64))
        low, high = values.min(), values.max()
        pixels = np.round(255 * (values - low) / ((high - low) or 1.0)).astype(np.uint8)
    return Image.fromarray(np.ascontiguousarray(pixels.squeeze(-1) if pixels.shape[-1] == 1 else pixels))
