"""Messages between a process and its worker: a JSON header and the raw buffers of arrays; nothing in them is code."""

from __future__ import annotations

import json
import math
import os
import struct
from collections.abc import Callable, Mapping
from typing import Any

import numpy as np

_LENGTH = struct.Struct("<4sQ")
_MAGIC = b"dlas"
_KINDS = "biufcSU"


def pack(value: Any) -> list[bytes | memoryview]:
    """A message as parts to send one after the other.

    Args:
        value: Any nesting of None, bool, int, float, str, paths (arrive as text), bytes, NumPy arrays and scalars,
            lists, tuples and dictionaries with text keys.

    Raises:
        TypeError: Anything else.
    """
    buffers: list[tuple[dict[str, Any], bytes | memoryview]] = []
    tree = _encode(value, buffers)
    header = json.dumps({"tree": tree, "buffers": [facts for facts, _ in buffers]}).encode()
    return [_LENGTH.pack(_MAGIC, len(header)), header, *(data for _, data in buffers)]


def unpack(read: Callable[[int], bytearray]) -> Any:
    """The next message; ``read`` returns exactly the number of bytes it is asked for."""
    magic, length = _LENGTH.unpack(bytes(read(_LENGTH.size)))
    if magic != _MAGIC:
        raise ValueError("not a dlas message")
    header = json.loads(bytes(read(length)))
    buffers = [_load(facts, read) for facts in header["buffers"]]
    return _decode(header["tree"], buffers)


def _encode(value: Any, buffers: list[tuple[dict[str, Any], bytes | memoryview]]) -> Any:
    if value is None or isinstance(value, bool):
        return value
    if isinstance(value, str):
        return str(value)
    if isinstance(value, os.PathLike):
        return os.fspath(value)
    if isinstance(value, np.generic) and value.dtype.kind in "biuf":
        value = value.item()
    if isinstance(value, int | float):
        return value
    if isinstance(value, bytes | bytearray | memoryview):
        data = bytes(value)
        buffers.append(({"bytes": len(data)}, data))
        return {"$": "buffer", "at": len(buffers) - 1}
    if isinstance(value, np.ndarray):
        buffers.append(_dump(value))
        return {"$": "buffer", "at": len(buffers) - 1}
    if isinstance(value, list):
        return [_encode(v, buffers) for v in value]
    if isinstance(value, tuple):
        return {"$": "tuple", "items": [_encode(v, buffers) for v in value]}
    if isinstance(value, Mapping):
        if not all(isinstance(k, str) for k in value):
            raise TypeError(
                f"a worker message takes dictionaries with text keys only, got {list(value)!r:.80}"
            )
        items = {str(k): _encode(v, buffers) for k, v in value.items()}
        return {"$": "dict", "items": items} if "$" in items else items
    raise TypeError(f"a worker message cannot hold a {type(value).__name__}")


def _dump(array: np.ndarray) -> tuple[dict[str, Any], memoryview]:
    kind = array.dtype.kind
    extended = kind == "V" and array.dtype.names is None and array.dtype.name != f"void{8 * array.itemsize}"
    if kind not in _KINDS and not extended:
        raise TypeError(f"a worker message cannot hold an array of {array.dtype}")
    name = array.dtype.name if extended else array.dtype.str
    raw = np.ascontiguousarray(array).reshape(-1).view(np.uint8)
    return {"bytes": raw.nbytes, "dtype": name, "shape": list(array.shape)}, raw.data


def _load(facts: dict[str, Any], read: Callable[[int], bytearray]) -> bytes | np.ndarray:
    data = read(facts["bytes"])
    if "dtype" not in facts:
        return bytes(data)
    dtype, shape = _dtype(facts["dtype"]), tuple(facts["shape"])
    if math.prod(shape) * dtype.itemsize != len(data):
        raise ValueError("an array's bytes do not fit its shape")
    return np.frombuffer(data, dtype).reshape(shape)


def _dtype(name: str) -> np.dtype:
    try:
        return np.dtype(name)
    except TypeError:
        import ml_dtypes  # bfloat16 and its like, known to NumPy once this is imported

        return np.dtype(getattr(ml_dtypes, name))


def _decode(tree: Any, buffers: list[bytes | np.ndarray]) -> Any:
    if isinstance(tree, list):
        return [_decode(v, buffers) for v in tree]
    if not isinstance(tree, dict):
        return tree
    tag = tree.get("$")
    if tag == "buffer":
        return buffers[tree["at"]]
    if tag == "tuple":
        return tuple(_decode(v, buffers) for v in tree["items"])
    if tag == "dict":
        tree = tree["items"]
    return {k: _decode(v, buffers) for k, v in tree.items()}
