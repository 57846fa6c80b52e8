"""The index of a TensorFlow checkpoint: what it claims of every tensor, held against the files that are there.

The index is a sorted table (the format of LevelDB): blocks of entries whose keys share prefixes, found through an
index block that the last 48 bytes point to. TensorFlow writes it uncompressed.
"""

from __future__ import annotations

import math
from collections.abc import Iterator
from pathlib import Path

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.keras.wire import WireError, messages, number, varint

_FOOTER = 48
_MAGIC = bytes.fromhex("57fb808b247547db")
_MAX_INDEX = 64 * 2**20
_TEXT = 7  # element type of strings: bookkeeping, whose size in memory is that in the file
_ITEM = {1: 4, 2: 8, 3: 4, 4: 1, 5: 2, 6: 1, 9: 8, 10: 1, 14: 2, 17: 2, 19: 2, 22: 4, 23: 8}


def check_bundle(folder: Path, name: str, limit: int) -> None:
    """Refuse a checkpoint whose tensors do not lie in its files, each with the bytes its shape calls for.

    Args:
        folder: The ``variables`` folder.
        name: What to call the model in errors.
        limit: Bytes all tensors may take.

    Raises:
        ModelError: Damaged, or a tensor claims other bytes than are there.
        UnsupportedError: A tensor of text or resources that a network has no use for.
    """
    index = folder / "variables.index"
    if not index.exists():
        return
    if index.stat().st_size > _MAX_INDEX:
        raise ModelError(f"{name}: {index.name} has more than {_MAX_INDEX} bytes", "export it again")
    data = memoryview(index.read_bytes())
    shards = sorted(folder.glob("variables.data-*"))
    sizes = [p.stat().st_size for p in shards]
    try:
        for key, entry in _entries(data):
            if key:
                _check_entry(key, entry, sizes, f"{name}: variable {key.decode(errors='replace')[:80]!r}")
    except (WireError, IndexError) as error:
        raise ModelError(f"{name}: {index.name} is damaged", "copy the folder again, completely") from error
    if sum(sizes) > limit:
        raise ModelError(
            f"{name}: its variables take {sum(sizes)} bytes, at most {limit} are read", "raise max_bytes"
        )


def _check_entry(key: bytes, entry: memoryview, sizes: list[int], what: str) -> None:
    kind, shard = number(entry, 1), number(entry, 3)
    offset, held = number(entry, 4), number(entry, 5)
    dims = [number(d, 1) for shape in messages(entry, 2) for d in messages(shape, 2)]
    if not 0 <= shard < len(sizes) or offset < 0 or held < 0 or offset + held > sizes[shard]:
        raise ModelError(f"{what} lies beyond the end of its file", "copy the folder again, completely")
    if kind == _TEXT:
        if math.prod(dims) > held:
            raise ModelError(f"{what} declares {math.prod(dims)} texts in {held} bytes")
        return
    if kind not in _ITEM:
        raise UnsupportedError(f"{what} has the element type {kind}, not a number")
    wanted = math.prod(dims) * _ITEM[kind]
    if any(d < 0 for d in dims) or wanted != held:
        raise ModelError(
            f"{what} declares the shape {dims} ({wanted} bytes), but {held} are stored", "export it again"
        )


def _entries(data: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    if len(data) < _FOOTER or bytes(data[-8:]) != _MAGIC:
        raise WireError("no table")
    footer = data[-_FOOTER:-8]
    _, place = varint(footer, 0)
    _, place = varint(footer, place)
    for _, handle in _block(data, footer[place:]):
        yield from _block(data, handle)


def _block(data: memoryview, handle: memoryview) -> Iterator[tuple[bytes, memoryview]]:
    offset, place = varint(handle, 0)
    size, _ = varint(handle, place)
    if offset + size + 1 > len(data) or size < 4 or data[offset + size] != 0:
        raise WireError("a compressed or truncated block")
    block = data[offset : offset + size]
    restarts = int.from_bytes(block[-4:], "little")
    end = size - 4 - 4 * restarts
    key, place = b"", 0
    while place < end:
        shared, place = varint(block, place)
        fresh, place = varint(block, place)
        length, place = varint(block, place)
        if place + fresh + length > end or shared > len(key):
            raise WireError("a truncated entry")
        key = key[:shared] + bytes(block[place : place + fresh])
        place += fresh
        yield key, block[place : place + length]
        place += length
