"""The host's side of a matrix-product accelerator: matrices into words, words into matrices."""

from __future__ import annotations

import numpy as np

from dlas.hardware.accelerators._gemm.product import Product
from dlas.hardware.accelerators._gemm.protocol import CONFIGURE, INPUTS, WEIGHTS
from dlas.hardware.accelerators._gemm.schedule import Schedule
from dlas.hardware.rtl.sizes import BUS_BYTES, MODES


def pack(product: Product, pixels: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Everything the accelerator is sent, ``(W, 2) uint64``.

    Args:
        product: The layer.
        pixels: ``(P, depth) int8``.
        schedule: Of this product.
    """
    s = schedule
    parts = [
        CONFIGURE.word(
            steps=s.steps, interval=s.interval, slots=s.slots, mode=MODES.index(product.mode),
            zero_point=product.zero_point, low=product.low, high=product.high,
        )
    ]  # fmt: skip
    weights, parameters = _weights(product, s), _parameters(product, s)
    tiles = _tiles(pixels, s)
    first = 0
    for number, blocks in enumerate(s.groups):
        chosen = slice(first, first + blocks)
        final = number == len(s.groups) - 1
        parts += [
            WEIGHTS.word(blocks=blocks), weights[chosen].reshape(-1), parameters[chosen].reshape(-1),
            INPUTS.word(tiles=s.tiles, final=final), tiles,
        ]  # fmt: skip
        first += blocks
    return np.concatenate(parts).reshape(-1, 2)


def _weights(product: Product, s: Schedule) -> np.ndarray:
    """``(blocks, units, words, 2) uint64``."""
    g = s.geometry
    codes = np.zeros((s.blocks * g.units * g.rows, s.words * g.steps_per_word * g.depth), np.uint8)
    codes[: s.channels, : s.depth] = product.codes
    steps = codes.reshape(s.blocks, g.units, g.rows, s.words * g.steps_per_word, g.depth).transpose(
        0, 1, 3, 2, 4
    )
    flat = np.ascontiguousarray(steps).reshape(s.blocks, g.units, s.words, -1)
    if g.weight_bits == 4:
        flat = flat[..., 0::2] | (flat[..., 1::2] << 4)
    return np.ascontiguousarray(flat).view(np.uint64)


def _parameters(product: Product, s: Schedule) -> np.ndarray:
    """``(blocks, units, 3 words per 4 channels, 2) uint64``."""
    g = s.geometry
    channels = s.blocks * g.units * g.rows
    words = np.zeros((channels // 4, 3, 4), np.int32)
    for place, given in enumerate((product.bias, product.multipliers)):
        column = np.zeros(channels, np.int32)
        column[: s.channels] = given
        words[:, place] = column.reshape(-1, 4)
    shifts = np.zeros(channels, np.int8)
    shifts[: s.channels] = product.shifts
    words[:, 2, 0] = shifts.view(np.int32)
    return words.view(np.uint64).reshape(s.blocks, g.units, -1, 2)


def _tiles(pixels: np.ndarray, s: Schedule) -> np.ndarray:
    """All tiles, ``(tiles * steps * 2,) uint64``."""
    g = s.geometry
    padded = np.zeros((s.tiles * g.columns, s.steps * g.depth), np.int8)
    padded[: s.pixels, : s.depth] = pixels
    steps = padded.reshape(s.tiles, g.columns, s.steps, g.depth).transpose(0, 2, 1, 3)
    return np.ascontiguousarray(steps).reshape(-1, BUS_BYTES).view(np.uint64).reshape(-1)


def unpack(words: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Results as ``(P, channels) int8``."""
    g, s = schedule.geometry, schedule
    flat, place = words.view(np.int8).reshape(-1), 0
    parts = []
    for blocks in s.groups:
        size = s.tiles * blocks * g.words_per_pass * BUS_BYTES
        part = flat[place : place + size].reshape(s.tiles, blocks, g.units, g.rows, g.columns)
        parts.append(part.transpose(0, 4, 1, 2, 3).reshape(s.tiles * g.columns, -1))
        place += size
    return np.ascontiguousarray(np.concatenate(parts, 1)[: s.pixels, : s.channels])
