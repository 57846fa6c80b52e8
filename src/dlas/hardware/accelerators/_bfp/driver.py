"""The host's side: packed weights and activations into words, words into integer sums."""

from __future__ import annotations

import numpy as np

from dlas.hardware.accelerators._bfp.formats import SUPER_BLOCK, WireFormat
from dlas.hardware.accelerators._bfp.protocol import INPUTS, WEIGHTS
from dlas.hardware.accelerators._bfp.schedule import Schedule, Tile
from dlas.hardware.rtl.sizes import BUS_BYTES


def slots_of(blocks: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Weights as they are sent, made once per layer: ``(row groups, KB, rows, words, 16)`` uint8.

    Args:
        blocks: ``(M, KB * block bytes)`` uint8.
        schedule: Of the product.
    """
    s = schedule
    words = s.wire.pack(blocks)
    padded = np.zeros((s.row_groups * s.geometry.rows, *words.shape[1:]), np.uint8)
    padded[: s.outputs] = words
    split = padded.reshape(s.row_groups, s.geometry.rows, *words.shape[1:])
    return np.ascontiguousarray(split.swapaxes(1, 2))


def inputs_of(activations: np.ndarray, wire: WireFormat) -> np.ndarray:
    """Activations as they are sent: ``(N, KB, 18, 16)`` uint8.

    Args:
        activations: ``(N, bytes)`` uint8, rows of Q8_K, or of Q8_0 where the weights are.
        wire: Format of the weights.
    """
    if wire.name == "Q8_0":
        codes = activations.reshape(len(activations), -1, 34)[..., 2:].reshape(
            len(activations), -1, SUPER_BLOCK
        )
        sums = np.zeros((*codes.shape[:2], 32), np.uint8)  # no minima that would meet them
        whole = np.concatenate([codes, sums], axis=2)
    else:
        whole = activations.reshape(len(activations), -1, 292)[..., 4:]
    return np.ascontiguousarray(whole).reshape(len(activations), -1, 18, BUS_BYTES)


def pack(slots: np.ndarray, inputs: np.ndarray, schedule: Schedule) -> np.ndarray:
    """Everything the accelerator is sent, ``(W, 2) uint64``.

    Args:
        slots: From :func:`slots_of`.
        inputs: From :func:`inputs_of`.
        schedule: Of the product.
    """
    s, parts = schedule, []
    tiles = list(s.tiles())
    for tile in tiles:
        rows, blocks = _spans(tile)
        parts += [
            INPUTS.word(passes=tile.rows, blocks=tile.rows * tile.blocks),
            _words(inputs[rows, blocks].swapaxes(0, 1)),
            WEIGHTS.word(format=s.wire.number, slots=s.slots(tile), final=tile is tiles[-1]),
            _words(slots[:, blocks]),
        ]
    return np.concatenate(parts).reshape(-1, 2)


def unpack(words: np.ndarray, schedule: Schedule) -> tuple[np.ndarray, np.ndarray]:
    """Results as sums and minima, ``(N, M, KB * results)`` int32 each.

    Args:
        words: ``(R, 2) uint64``.
        schedule: Of the product.
    """
    s, g = schedule, schedule.geometry
    shape = (s.inputs, s.row_groups * g.rows, s.blocks, s.wire.results)
    sums, minima = np.zeros(shape, np.int32), np.zeros(shape, np.int32)
    numbers, place = words.view(np.int32).reshape(-1), 0
    values = 2 if s.wire.minima else 1
    for tile in s.tiles():
        rows, blocks = _spans(tile)
        count = 4 * s.result_words(tile)
        found = numbers[place : place + count].reshape(
            s.row_groups, tile.blocks, tile.rows, s.wire.results, -1
        )
        found = found[..., : g.rows * values].reshape(*found.shape[:4], g.rows, values)
        found = found.transpose(5, 2, 0, 4, 1, 3).reshape(values, tile.rows, -1, tile.blocks, s.wire.results)
        sums[rows, :, blocks] = found[0]
        if s.wire.minima:
            minima[rows, :, blocks] = found[1]
        place += count
    flat = (s.inputs, shape[1], -1)
    return sums.reshape(flat)[:, : s.outputs], minima.reshape(flat)[:, : s.outputs]


def _spans(tile: Tile) -> tuple[slice, slice]:
    return slice(tile.first, tile.first + tile.rows), slice(tile.block, tile.block + tile.blocks)


def _words(array: np.ndarray) -> np.ndarray:
    return np.ascontiguousarray(array).reshape(-1).view(np.uint64)
