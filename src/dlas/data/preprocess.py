"""Carry out a Preprocessing: from stored samples to the network's input.

Each kind of sample has its rule. Encoded images and uint8 arrays are **pixels** 0..255: they are resized (Pillow's
bilinear filter, which averages when it shrinks), cropped, put into colour order, normalised as
``(pixel * scale - mean) / std`` and laid out; an orientation tag is not applied. Floating-point arrays are **ready**:
they are only brought to the input's dtype. Of recordings, features (``dlas.data.audio.features``) are normalised and
laid out as if they were pixels. Integer inputs are quantised as
``round(x / quant_scale) + quant_zero_point``, halves away from zero (as TensorFlow Lite does), saturating.
"""

from __future__ import annotations

import io
from collections.abc import Iterator, Sequence
from concurrent.futures import ThreadPoolExecutor
from typing import TYPE_CHECKING

import numpy as np

from dlas.core.environment import usable_cores
from dlas.core.errors import DataError, OptionError
from dlas.data.audio.features import features, fitted
from dlas.data.audio.wav import is_wav, read_wav
from dlas.data.dataset import Dataset
from dlas.data.pixel_cache import DISK_BYTES, decoded
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing

if TYPE_CHECKING:
    from PIL import Image

# Formats whose decoders stay inside this process (PostScript, for one, would start an interpreter).
_FORMATS = ("PNG", "JPEG", "BMP", "WEBP", "PPM", "TIFF", "GIF", "JPEG2000")
_CHUNK_BYTES = 32 * 2**20
_SPECTRA = 1024  # bytes of spectrum behind each feature, or thereabouts
_THREADS = 2  # Pillow decodes outside the interpreter lock


def prepare(
    dataset: Dataset, to: Model | Preprocessing, rows: Sequence[int] | np.ndarray | None = None
) -> np.ndarray:
    """All samples (or those at ``rows``) as the network takes them: ``(N, ...)`` in its dtype and layout.

    Args:
        dataset: Samples.
        to: The network, or the preprocessing alone. A network without preprocessing takes ready arrays only.
        rows: Positions in ``dataset``; None for all.

    Raises:
        DataError: A sample cannot be decoded (names the row) or does not fit the network.
        OptionError: The preprocessing contradicts itself.
    """
    chosen = dataset if rows is None else dataset.take(rows)
    steps = _steps(chosen, to)
    whole = len(chosen) * steps.height * steps.width * _channels(steps)
    if not isinstance(chosen.samples, np.ndarray) and not steps.features and whole <= DISK_BYTES:
        return _prepared_images(chosen, to, steps)
    out: np.ndarray | None = None
    at = 0
    for batch in iterate(chosen, to, 0):
        if len(batch) == len(chosen):
            return batch
        if out is None:
            out = np.empty((len(chosen), *batch.shape[1:]), batch.dtype)
        out[at : at + len(batch)] = batch
        at += len(batch)
    assert out is not None  # a Dataset has at least one sample
    return out


def _prepared_images(dataset: Dataset, to: Model | Preprocessing, steps: Preprocessing) -> np.ndarray:
    """Encoded images at once; their pixels are kept for whoever wants them next."""
    with ThreadPoolExecutor(min(_THREADS, usable_cores())) as pool:
        if isinstance(to, Model):  # before much is decoded
            _check_fit(
                _normalised(_pixels(dataset, range(1), steps, pool), _tables(steps), steps), to, dataset
            )
        pixels = decoded(dataset, steps, lambda: _pixels(dataset, range(len(dataset)), steps, pool))
    return _normalised(pixels, _tables(steps), steps)


def iterate(dataset: Dataset, to: Model | Preprocessing, batch_size: int) -> Iterator[np.ndarray]:
    """The samples in order, in batches ``(n, ...)`` with ``n <= batch_size``; memory is bounded by one batch.

    Args:
        dataset: Samples.
        to: As for :func:`prepare`.
        batch_size: Samples per batch; 0 for as many as make about 32 MiB of pixels.

    Raises:
        DataError: As for :func:`prepare`.
        OptionError: As for :func:`prepare`.
    """
    steps = _steps(dataset, to)
    ready = isinstance(dataset.samples, np.ndarray) and (
        dataset.samples.dtype != np.uint8 or not steps.height
    )
    if batch_size < 1:
        pixels = max(1, steps.height * steps.width * (_SPECTRA if steps.features else 3))
        batch_size = len(dataset) if ready else max(1, _CHUNK_BYTES // pixels)
    tables = None if ready or steps.features else _tables(steps)
    with ThreadPoolExecutor(min(_THREADS, usable_cores())) as pool:
        for start in range(0, len(dataset), batch_size):
            rows = range(start, min(start + batch_size, len(dataset)))
            if ready:
                batch = _ready(dataset, rows, steps)
            elif tables is None:
                batch = _features(dataset, rows, steps)
            else:
                batch = _normalised(_pixels(dataset, rows, steps, pool), tables, steps)
            if start == 0 and isinstance(to, Model):
                _check_fit(batch, to, dataset)
            yield batch


def quantize(values: np.ndarray, dtype: str, scale: float, zero_point: int) -> np.ndarray:
    """``round(values / scale) + zero_point``, halves away from zero, saturating at the limits of ``dtype``."""
    steps = np.asarray(values, np.float64) / scale
    whole = np.copysign(np.floor(np.abs(steps) + 0.5), steps) + zero_point
    limits = np.iinfo(dtype)
    return np.clip(whole, limits.min, limits.max).astype(dtype)


def decode(data: bytes, label: str) -> Image.Image:
    """Decode an image completely, within Pillow's limit on pixels (``Image.MAX_IMAGE_PIXELS``).

    Args:
        data: The encoded image.
        label: How to call it in messages.

    Raises:
        DataError: Not an image of a known format, truncated, corrupt or too large.
    """
    from PIL import Image, UnidentifiedImageError

    try:
        try:
            image = Image.open(io.BytesIO(data), formats=_FORMATS)
        except UnidentifiedImageError as error:  # its own message names an object in memory
            if is_wav(data):
                raise DataError(
                    f"{label} cannot be decoded as an image: it is a WAV recording",
                    "say which features the network takes: features=mfcc and the sample_rate, in its preprocessing",
                ) from error
            raise DataError(
                f"{label} cannot be decoded as an image: it is of no known format",
                f"known: {', '.join(_FORMATS)}",
            ) from error
        limit = Image.MAX_IMAGE_PIXELS
        if limit is not None and image.width * image.height > limit:
            raise DataError(
                f"{label} has {image.width} x {image.height} pixels; at most {limit} are decoded",
                "make it smaller first",
            )
        image.load()
    except DataError:
        raise
    except Exception as error:  # decoders fail in many ways on broken bytes, and all of them mean the same
        cause = " ".join(str(error).split()) or type(error).__name__
        raise DataError(f"{label} cannot be decoded as an image: {cause[:120]}", "is it complete?") from error
    return image


def image_size(dataset: Dataset, row: int) -> tuple[int, int]:
    """Height and width of one image, from its header where it is encoded."""
    sample = dataset.samples[row]
    if isinstance(sample, np.ndarray):
        return int(sample.shape[0]), int(sample.shape[1])
    image = decode(sample, _label(dataset, row))
    return image.height, image.width


def _label(dataset: Dataset, row: int) -> str:
    return f"{dataset.name}: row {int(dataset.rows[row])}"


def _steps(dataset: Dataset, to: Model | Preprocessing) -> Preprocessing:
    if isinstance(to, Model):
        found = to.preprocessing
        if found is None:
            if not isinstance(dataset.samples, np.ndarray):
                raise DataError(
                    f"{dataset.name} holds encoded images, and {to.name} does not say how to prepare them",
                    "state the preprocessing, or give arrays in the network's input form",
                )
            found = Preprocessing(layout="N*", dtype=to.inputs[0].dtype)
        to = found
    if to.height and to.resize and to.resize < max(to.height, to.width):
        raise OptionError(
            "preprocessing: resize", to.resize, f"at least the crop of {to.height} x {to.width}"
        )
    own = to.width if to.features else _channels(to)
    for name, values in (("mean", to.mean), ("std", to.std)):
        if to.height and len(values) not in (1, own):
            raise OptionError(f"preprocessing: {name}", values, f"1 or {own} numbers")
    if to.height == 0 and not isinstance(dataset.samples, np.ndarray):
        raise DataError(
            f"{dataset.name} holds encoded samples, but the preprocessing names no image size",
            "set height and width in the preprocessing",
        )
    return to


def _channels(steps: Preprocessing) -> int:
    return 1 if steps.colour == "L" or steps.features else 3


def _check_fit(batch: np.ndarray, model: Model, dataset: Dataset) -> None:
    spec = model.inputs[0]
    fits = batch.ndim == len(spec.shape) and all(
        isinstance(want, str) or want == got
        for want, got in zip(spec.shape[1:], batch.shape[1:], strict=True)
    )
    if not fits or batch.dtype.name != spec.dtype:
        raise DataError(
            f"samples of {dataset.name} become "
            f"{_spelled(batch.dtype.name, ['N', *batch.shape[1:]])}, but input {spec.name!r} "
            f"of {model.name} takes {_spelled(spec.dtype, spec.shape)}",
            "change the preprocessing, or use a data set of the network's own input shape",
        )


def _spelled(dtype: str, shape: Sequence[int | str]) -> str:
    return f"{dtype}[{', '.join(map(str, shape))}]"


def _ready(dataset: Dataset, rows: range, steps: Preprocessing) -> np.ndarray:
    values = np.asarray(dataset.samples[rows.start : rows.stop])
    if values.dtype.name == steps.dtype:
        return values.copy()
    if np.dtype(steps.dtype).kind in "iu":
        return quantize(values, steps.dtype, steps.quant_scale, steps.quant_zero_point)
    return values.astype(steps.dtype)


def _features(dataset: Dataset, rows: range, steps: Preprocessing) -> np.ndarray:
    """Features of recordings, normalised and laid out: ``(n, 1, H, W)`` or ``(n, H, W, 1)``."""
    waves = []
    for row in rows:
        sample, label = dataset.samples[row], _label(dataset, row)
        if not isinstance(sample, bytes):
            raise DataError(
                f"{dataset.name} holds arrays of {sample.dtype.name}, and the network takes features of recordings",
                "give WAV recordings, or the features themselves as floating-point arrays",
            )
        recording = read_wav(sample, label)
        if recording.rate != steps.sample_rate:
            raise DataError(
                f"{label} has {recording.rate} samples per second; the network takes {steps.sample_rate}",
                "convert the recordings to that rate first",
            )
        waves.append(fitted(recording, steps.height))
    found = features(np.stack(waves), steps.features, steps.sample_rate, steps.width)
    values = (found * steps.scale - np.asarray(steps.mean)) / np.asarray(steps.std)
    values = values[:, None] if steps.layout == "NCHW" else values[..., None]
    if np.dtype(steps.dtype).kind in "iu":
        return quantize(values, steps.dtype, steps.quant_scale, steps.quant_zero_point)
    return values.astype(steps.dtype)


def _tables(steps: Preprocessing) -> np.ndarray:
    """What each pixel value becomes, per channel: ``(channels, 256)`` in the input's dtype.

    A pixel has 256 values only, so normalising and quantising by table is exact and costs one look-up per pixel.
    """
    pixel = np.arange(256, dtype=np.float64) * steps.scale
    channels = _channels(steps)
    mean = np.broadcast_to(np.asarray(steps.mean), (channels,))[:, None]
    std = np.broadcast_to(np.asarray(steps.std), (channels,))[:, None]
    values = (pixel - mean) / std
    if np.dtype(steps.dtype).kind in "iu":
        return quantize(values, steps.dtype, steps.quant_scale, steps.quant_zero_point)
    return values.astype(steps.dtype)


def _normalised(pixels: np.ndarray, tables: np.ndarray, steps: Preprocessing) -> np.ndarray:
    n, height, width, channels = pixels.shape
    first = steps.layout == "NCHW"
    out = np.empty((n, channels, height, width) if first else pixels.shape, tables.dtype)
    for channel in range(channels):
        target = out[:, channel] if first else out[..., channel]
        target[...] = tables[channel][pixels[..., channel]]
    return out


def _pixels(dataset: Dataset, rows: range, steps: Preprocessing, pool: ThreadPoolExecutor) -> np.ndarray:
    """Resized, cropped pixels in the network's colour order: ``(n, H, W, C) uint8``."""
    channels = _channels(steps)
    wanted = (steps.height, steps.width, channels)
    samples = dataset.samples
    if isinstance(samples, np.ndarray):
        if samples.ndim == 3:
            samples = samples[..., None]
        if samples.ndim != 4 or samples.shape[3] not in (1, 3, 4):
            raise DataError(
                f"{dataset.name} holds {_spelled('uint8', ['N', *samples.shape[1:]])}, which are not images",
                "expected (N, H, W, C) with 1, 3 or 4 channels",
            )
        if samples.shape[1:] == wanted and steps.resize in (0, min(wanted[:2])):
            chunk = samples[rows.start : rows.stop]
            return chunk[..., ::-1] if steps.colour == "BGR" else chunk
    out = np.empty((len(rows), *wanted), np.uint8)

    def fill(part: range) -> None:
        for row in part:
            out[row - rows.start] = _one(samples[row], _label(dataset, row), steps)

    share = max(1, -(-len(rows) // (4 * _THREADS)))
    list(pool.map(fill, [rows[i : i + share] for i in range(0, len(rows), share)]))
    return out[..., ::-1] if steps.colour == "BGR" else out


def _one(sample: bytes | np.ndarray, label: str, steps: Preprocessing) -> np.ndarray:
    """One image as ``(H, W, C) uint8``, colours as stored by Pillow (RGB or grey)."""
    from PIL import Image

    if isinstance(sample, np.ndarray):
        image = Image.fromarray(sample[..., 0] if sample.shape[2] == 1 else sample)
    else:
        image = decode(sample, label)
    image = _in_colour(image, "L" if steps.colour == "L" else "RGB", label)
    bilinear = Image.Resampling.BILINEAR
    if not steps.resize:
        if image.size != (steps.width, steps.height):
            image = image.resize((steps.width, steps.height), bilinear)
    else:
        width, height = image.size
        short = min(width, height)
        if steps.squash:
            size = (steps.resize, steps.resize)
        else:
            size = (round(width * steps.resize / short), round(height * steps.resize / short))
        if image.size != size:
            image = image.resize(size, bilinear)
        left, top = (size[0] - steps.width) // 2, (size[1] - steps.height) // 2
        image = image.crop((left, top, left + steps.width, top + steps.height))
    pixels = np.asarray(image)
    return pixels[..., None] if pixels.ndim == 2 else pixels


def _in_colour(image: Image.Image, mode: str, label: str) -> Image.Image:
    from PIL import Image

    if image.mode == mode:
        return image
    if image.mode.startswith("I;16"):  # Pillow would clip 16-bit values instead of scaling them
        image = Image.fromarray((np.asarray(image).astype(np.float32) / 257 + 0.5).astype(np.uint8))
    elif image.mode in ("I", "F"):
        raise DataError(f"{label} has {image.mode!r} pixels", "expected 8 or 16 bits per channel")
    elif image.mode == "P":
        image = image.convert("RGBA")
    return image.convert(mode)
