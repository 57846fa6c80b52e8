"""The constants of a tflite file: from the bytes of a buffer to a checked array.

Buffers are looked at in place, never copied, and what they unfold to (4-bit numbers, sparse matrices) is bounded
first: a small file that names one buffer a million times must not fill the memory.
"""

from __future__ import annotations

import math
from typing import Any

import numpy as np

from dlas.graph.formats.tflite.tensors import DTYPES

PACKED = {"INT4": (4, True), "UINT4": (4, False), "INT2": (2, True)}  # kind: bits, signed
WIDENED = {
    **{kind: "int8" if signed else "uint8" for kind, (_, signed) in PACKED.items()},
    "BFLOAT16": "float32",
}
_UNFOLDED_PER_BYTE = 64  # a sparse tensor has at most this many elements per byte of the file ...
_UNFOLDED_ALWAYS = 2**22  # ... or this many in all
_SHARED_ALWAYS = 2**28  # bytes of constants that a file may name, counting a shared buffer once per tensor


class Constants:
    """Reads constants out of one file.

    Args:
        model: The lazily read root table of the schema.
        data: The file.
    """

    def __init__(self, model: Any, data: bytes) -> None:
        self._model, self._data = model, data
        self._count = model.BuffersLength()
        self._left = max(8 * len(data), _SHARED_ALWAYS)
        self._clean: set[tuple[int, str]] = set()

    def buffer(self, index: int) -> np.ndarray | None:
        """The bytes of a buffer, uint8, as a view of the file; None when it is empty."""
        if not 0 <= index < self._count:
            raise IndexError(f"buffer {index} does not exist")
        raw = self._model.Buffers(index)
        if raw is None:
            return None
        offset, size = raw.Offset(), raw.Size()
        if offset > 1:  # large files keep their data behind the flatbuffer
            if offset + size > len(self._data):
                raise ValueError(f"a buffer reaches to byte {offset + size} of {len(self._data)}")
            return np.frombuffer(self._data, np.uint8, size, offset)
        if raw.DataIsNone() or raw.DataLength() == 0:
            return None
        return raw.DataAsNumpy()

    def tensor(self, raw: Any, kind: str, shape: tuple[int, ...], name: str) -> np.ndarray | None:
        """The constant of a tensor in the dtype it is read as; None when the network computes it."""
        stored = self.buffer(raw.buffer)
        if stored is None:
            return None
        self._left -= stored.nbytes
        if self._left < 0:
            raise ValueError("its constants are many times larger than the file")
        count = math.prod(shape)
        if raw.sparsity is not None:
            if count > max(_UNFOLDED_PER_BYTE * len(self._data), _UNFOLDED_ALWAYS):
                raise ValueError(
                    f"sparse tensor {name!r} of shape {list(shape)} is out of proportion to the file"
                )
            values = stored.view(DTYPES[kind])
            return densify(raw.sparsity, shape, values, name)
        needed = _bytes(kind, count)
        if stored.nbytes != needed:
            raise ValueError(f"tensor {name!r} needs {needed} bytes, its buffer has {stored.nbytes}")
        array = _decoded(stored, kind, count).reshape(shape)
        if array.dtype.kind == "f" and (raw.buffer, kind) not in self._clean:
            if np.isnan(array).any():
                raise ValueError(f"tensor {name!r} holds NaN")
            self._clean.add((raw.buffer, kind))
        return array


def _bytes(kind: str, count: int) -> int:
    if kind in PACKED:
        return -(-count * PACKED[kind][0] // 8)
    return count * (2 if kind == "BFLOAT16" else np.dtype(DTYPES[kind]).itemsize)


def _decoded(stored: np.ndarray, kind: str, count: int) -> np.ndarray:
    if kind in PACKED:
        bits, signed = PACKED[kind]
        return unpack(stored, bits, signed, count)
    if kind == "BFLOAT16":
        return (stored.view(np.uint16).astype(np.uint32) << 16).view(np.float32)
    return stored != 0 if kind == "BOOL" else stored.view(DTYPES[kind])


def unpack(stored: np.ndarray, bits: int, signed: bool, count: int) -> np.ndarray:
    """Numbers of 2 or 4 bits, the lowest bits of a byte first, as int8 or uint8 ``(count,)``."""
    shifts = np.arange(0, 8, bits, dtype=np.uint8)
    levels = ((stored[:, None] >> shifts) & np.uint8(2**bits - 1)).reshape(-1)[:count]
    if not signed:
        return levels
    half = 2 ** (bits - 1)
    return (levels ^ half).astype(np.int8) - np.int8(half)


def densify(sparsity: Any, shape: tuple[int, ...], values: np.ndarray, name: str) -> np.ndarray:
    """The dense form of a sparse constant.

    The schema stores a tree: one level per axis (and per block axis) in traversal order, each dense or compressed
    like the rows of a CSR matrix; the leaves are ``values``.

    Raises:
        ValueError: The tree does not fit the shape or the values.
    """
    order = [] if sparsity.traversalOrder is None else [int(d) for d in sparsity.traversalOrder]
    blocked = [] if sparsity.blockMap is None else [int(d) for d in sparsity.blockMap]
    levels = sparsity.dimMetadata or []
    rank, total = len(shape), math.prod(shape)
    fits = sorted(order) == list(range(rank + len(blocked))) and len(levels) == len(order)
    if not fits or any(not 0 <= axis < rank for axis in blocked) or len(set(blocked)) != len(blocked):
        raise ValueError(
            f"sparse tensor {name!r}: axes {order} with blocks of {blocked} do not fit {list(shape)}"
        )
    sizes = list(shape)
    for block, axis in enumerate(blocked):
        size = int(levels[order.index(rank + block)].denseSize)
        if size < 1 or shape[axis] % size:
            raise ValueError(f"sparse tensor {name!r}: blocks of {size} on an axis of {shape[axis]}")
        sizes[axis] = shape[axis] // size
        sizes.append(size)
    places: dict[int, np.ndarray] = {}
    nodes = 1
    for axis, level in zip(order, levels, strict=True):
        if level.format == 0:
            if level.denseSize != sizes[axis] or nodes * sizes[axis] > total:
                raise ValueError(
                    f"sparse tensor {name!r}: a level of {level.denseSize} on an axis of {sizes[axis]}"
                )
            parents = np.repeat(np.arange(nodes), sizes[axis])
            here = np.tile(np.arange(sizes[axis]), nodes)
        else:
            parents, here = _compressed(level, nodes, sizes[axis], name)
        places = {known: found[parents] for known, found in places.items()}
        places[axis] = here
        nodes = len(here)
    if nodes != len(values):
        raise ValueError(f"sparse tensor {name!r} has {len(values)} values for {nodes} places")
    index = [places[axis] for axis in range(rank)]
    for block, axis in enumerate(blocked):
        index[axis] = index[axis] * sizes[rank + block] + places[rank + block]
    dense = np.zeros(shape, values.dtype)
    dense[tuple(index)] = values
    return dense


def _compressed(level: Any, nodes: int, size: int, name: str) -> tuple[np.ndarray, np.ndarray]:
    """Parents and coordinates of the nodes of a compressed level."""
    segments = np.asarray(level.arraySegments.values, np.int64)
    indices = np.asarray(level.arrayIndices.values, np.int64)
    counts = np.diff(segments)
    good = (
        len(segments) == nodes + 1
        and segments[0] == 0
        and segments[-1] == len(indices)
        and (counts >= 0).all()
    )
    if not good or (indices < 0).any() or (indices >= size).any():
        raise ValueError(f"sparse tensor {name!r}: a compressed axis of {size} is inconsistent")
    return np.repeat(np.arange(nodes), counts), indices
