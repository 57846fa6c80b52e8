"""A reader of FlexBuffers, the format in which custom operators of tflite keep their options.

Only what such options hold is read: a map of strings to numbers, truths and strings. Every offset is checked.
"""

from __future__ import annotations

import struct

MAX_ENTRIES = 1000
_INT, _UINT, _FLOAT, _KEY, _STRING = 1, 2, 3, 4, 5
_INDIRECT_INT, _INDIRECT_UINT, _INDIRECT_FLOAT, _MAP, _BOOL = 6, 7, 8, 9, 26
_FLOATS = {2: "<e", 4: "<f", 8: "<d"}

Scalar = int | float | bool | str


def read_map(data: bytes) -> dict[str, Scalar]:
    """The map that a buffer holds; values of other types are left out.

    Raises:
        ValueError: It is not a map, or an offset leads outside.
    """
    if len(data) < 3:
        raise ValueError(f"options of {len(data)} bytes")
    width, packed = data[-1], data[-2]
    if width not in (1, 2, 4, 8) or packed >> 2 != _MAP:
        raise ValueError("the options are not a map")
    root = len(data) - 2 - width
    start, inner = _follow(data, root, width), 1 << (packed & 3)
    count = _uint(data, start - inner, inner)
    keys_width = _uint(data, start - 2 * inner, inner)
    keys = _follow(data, start - 3 * inner, inner)
    if count > MAX_ENTRIES or keys_width not in (1, 2, 4, 8):
        raise ValueError(f"{count} options, keys {keys_width} bytes wide")
    found: dict[str, Scalar] = {}
    for n in range(count):
        key = _text(data, _follow(data, keys + n * keys_width, keys_width))
        kind = data[_inside(data, start + count * inner + n, 1)]
        value = _scalar(data, start + n * inner, inner, kind)
        if value is not None:
            found[key] = value
    return found


def _scalar(data: bytes, at: int, width: int, packed: int) -> Scalar | None:
    kind, pointed = packed >> 2, 1 << (packed & 3)
    if kind in (_INDIRECT_INT, _INDIRECT_UINT, _INDIRECT_FLOAT):
        at, width, kind = _follow(data, at, width), pointed, kind - 5
    if kind == _FLOAT:
        if width not in _FLOATS:
            raise ValueError(f"a float of {width} bytes")
        return float(struct.unpack_from(_FLOATS[width], data, _inside(data, at, width))[0])
    if kind in (_INT, _UINT, _BOOL):
        _inside(data, at, width)
        number = int.from_bytes(data[at : at + width], "little", signed=kind == _INT)
        return bool(number) if kind == _BOOL else number
    if kind == _KEY:
        return _text(data, _follow(data, at, width))
    if kind == _STRING:
        start = _follow(data, at, width)
        size = _uint(data, start - pointed, pointed)
        return data[start : _inside(data, start, size) + size].decode(errors="replace")
    return None


def _inside(data: bytes, at: int, size: int) -> int:
    if at < 0 or size < 0 or at + size > len(data):
        raise ValueError(f"options point to byte {at} of {len(data)}")
    return at


def _uint(data: bytes, at: int, width: int) -> int:
    _inside(data, at, width)
    return int.from_bytes(data[at : at + width], "little")


def _follow(data: bytes, at: int, width: int) -> int:
    """Offsets count backwards from where they stand."""
    return _inside(data, at - _uint(data, at, width), 0)


def _text(data: bytes, at: int) -> str:
    end = data.find(b"\0", at)
    if end < 0:
        raise ValueError("a key does not end")
    return data[at:end].decode(errors="replace")
