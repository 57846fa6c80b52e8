"""The host's side of the accelerator of transposed convolutions: layers into words, words into feature maps."""

from __future__ import annotations

import numpy as np

from dlas.hardware.accelerators._mm2im.protocol import COLUMNS, CONFIGURE, INPUTS, ROWS, SUMS, WEIGHTS
from dlas.hardware.accelerators._mm2im.schedule import Schedule
from dlas.hardware.accelerators._mm2im.transposed import Transposed
from dlas.hardware.rtl.sizes import BUS_BYTES, MODES


def pack(layer: Transposed, pixels: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Everything the accelerator is sent, ``(W, 2) uint64``.

    Args:
        layer: Weights and factors.
        pixels: ``(N, H, W, C) int8``.
        schedule: Of this layer.
    """
    s = schedule
    weights, inputs = _weights(layer, s), _inputs(layer, pixels, s)
    parts = _settings(layer, s)
    positions = s.shape.images * s.shape.inputs[0] * s.positions
    for group in range(s.groups):
        header = INPUTS.word(positions=positions, final=group == s.groups - 1)
        parts += [WEIGHTS.word(), weights[group].reshape(-1), header, inputs]
    return np.concatenate(parts).reshape(-1, 2)


def _settings(layer: Transposed, s: Schedule) -> list[np.ndarray]:
    shape, spread = s.shape, s.spread
    (kh, kw), (sh, sw), (top, left) = shape.kernel, shape.strides, shape.begins
    height, width = shape.outputs
    return [
        CONFIGURE.word(
            mode=MODES.index(layer.mode), x_zero=layer.x_zero, zero_point=layer.zero_point, low=layer.low,
            high=layer.high, spread=spread.bit_length() - 1, words=s.words, steps=s.steps, slots=s.slots,
            filter_words=s.filter_words,
        ),
        COLUMNS.word(
            kernel=kw, stride=sw, hop=sw * spread, begin=left, outputs=width, positions=s.positions,
            back=(left - sw * (spread - 1)) * s.words, back_hop=sw * spread * s.words,
        ),
        ROWS.word(
            kernel=kh, stride=sh, begin=top, outputs=height, inputs=shape.inputs[0], images=shape.images,
            words=kw * s.words, back=top * kw * s.words,
        ),
        SUMS.word(
            ring_rows=s.ring, ring=s.ring * width, image=height % s.ring * width, back_hop=sh * kw * s.words,
            reached_rows=max(0, min((shape.inputs[0] - 1) * sh + kh - top, height)),
            reached_columns=sw * spread * (s.positions - 1) + kw - left,
        ),
    ]  # fmt: skip


def _padded(array: np.ndarray, s: Schedule, fill: int) -> np.ndarray:
    """The last axis in whole words."""
    size = s.words * BUS_BYTES
    found = np.full((*array.shape[:-1], size), fill, np.int8)
    found[..., : array.shape[-1]] = array
    return found


def _weights(layer: Transposed, s: Schedule) -> np.ndarray:
    """``(groups, lanes * (filter words + 1), 2) uint64``."""
    channels = s.groups * s.lanes
    words = np.zeros((channels, s.filter_words + 1, BUS_BYTES), np.int8)
    taps = _padded(layer.weights, s, 0)
    words[: s.shape.channels, :-1] = taps.reshape(s.shape.channels, s.filter_words, BUS_BYTES)
    parameters = np.zeros((channels, 4), np.int32)
    parameters[: s.shape.channels, :3] = np.stack([layer.bias, layer.multipliers, layer.shifts], 1)
    words[:, -1] = parameters.view(np.int8)
    return words.reshape(s.groups, -1).view(np.uint64)


def _inputs(layer: Transposed, pixels: np.ndarray, s: Schedule) -> np.ndarray:
    """Pixels in whole positions and words; what is added is the zero point."""
    images, height, width, depth = pixels.shape
    whole = np.full((images, height, s.positions * s.spread, depth), layer.x_zero, np.int8)
    whole[:, :, :width] = pixels
    return _padded(whole, s, layer.x_zero).reshape(-1).view(np.uint64)


def unpack(words: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Results as ``(N, OH, OW, channels) int8``."""
    s, shape = schedule, schedule.shape
    columns = words.view(np.int8).reshape(-1, s.geometry.pe_count)[: s.columns]
    parts = columns.reshape(s.groups, shape.images, *shape.outputs, -1)[..., : s.lanes]
    whole = parts.transpose(1, 2, 3, 0, 4).reshape(shape.images, *shape.outputs, -1)
    return np.ascontiguousarray(whole[..., : shape.channels])
