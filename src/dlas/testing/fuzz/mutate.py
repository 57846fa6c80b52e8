"""Mutations of files: bytes first, then the containers that model files are made of.

:func:`mutate` draws from all that fit the content: plain bytes always; protobuf, flatbuffer, zip and JSON where the
bytes look like one. A container is put together again with right lengths and checksums, so that a change gets past
the outer reader to the code behind it.
"""

from __future__ import annotations

import io
import json
import random
import struct
import zipfile
from collections.abc import Callable
from typing import Any

Mutator = Callable[[bytes, random.Random], bytes]

_EXTREMES = (
    0, 1, 2, 3, 0x7F, 0x80, 0xFF, 0x7FFF, 0x8000, 0xFFFF, 2**24, 2**31 - 1, 2**31, 2**32 - 1, 2**40, 2**63 - 1, 2**63,
    2**64 - 1,
)  # fmt: skip
_JSON_EXTREMES: tuple[Any, ...] = (
    None, True, -1, 0, 2**31, 2**64, 1e308, -0.5, float("nan"), "", "\0", "\x1b[2J", "a" * 5000, "../../etc/passwd", [],
    {}, [[]], {"": None},
)  # fmt: skip
_LONGEST_ENTRY = 2**22  # bytes of a zip entry that is worth unpacking for a mutation
_DEEPEST = 6  # levels of protobuf messages looked into


def mutate(data: bytes, rng: random.Random) -> bytes:
    """A changed copy of ``data``: one to four mutations, about half of them aware of the container."""
    for _ in range(rng.choice((1, 1, 1, 2, 3, 4))):
        aware = _aware(data)
        choose = aware if aware and rng.random() < 0.6 else _BYTES
        data = rng.choice(choose)(data, rng) or data
    return data


def _aware(data: bytes) -> tuple[Mutator, ...]:
    if data[:2] == b"PK":
        return (zip_members, zip_members, zip_structure)
    if data[4:8] == b"TFL3":
        return (flatbuffer,)
    if data[:1] in b"{[" and data:
        return (json_value,)
    if data[8:9] == b"{" and len(data) > 8:
        return (safetensors,)
    if data and data[0] >> 3 and _fields(data) is not None:
        return (protobuf,)
    return ()


# plain bytes


def flip_bits(data: bytes, rng: random.Random) -> bytes:
    """One to eight bits."""
    changed = bytearray(data)
    for _ in range(rng.randint(1, 8)):
        changed[rng.randrange(len(changed))] ^= 1 << rng.randrange(8)
    return bytes(changed)


def set_bytes(data: bytes, rng: random.Random) -> bytes:
    """A short run of one value or of random ones."""
    changed, at, length = bytearray(data), rng.randrange(len(data)), rng.choice((1, 2, 4, 8, 16, 64))
    end = min(len(changed), at + length)
    fill = rng.choice((b"\0", b"\xff", b"\x80", b"\x7f", None))
    changed[at:end] = rng.randbytes(end - at) if fill is None else fill * (end - at)
    return bytes(changed)


def extreme_integer(data: bytes, rng: random.Random) -> bytes:
    """An integer of 1, 2, 4 or 8 bytes, either byte order, somewhere."""
    width = rng.choice((1, 2, 4, 4, 8, 8))
    if len(data) < width:
        return data
    at = rng.randrange(len(data) - width + 1)
    value = rng.choice(_EXTREMES) % 256**width
    return data[:at] + value.to_bytes(width, rng.choice(("little", "little", "big"))) + data[at + width :]


def nudge_integer(data: bytes, rng: random.Random) -> bytes:
    """A length or offset somewhere, made a little larger or smaller."""
    width = rng.choice((1, 2, 4, 8))
    if len(data) < width:
        return data
    at = rng.randrange(len(data) - width + 1)
    value = int.from_bytes(data[at : at + width], "little") + rng.choice((-16, -4, -1, 1, 4, 16))
    return data[:at] + (value % 256**width).to_bytes(width, "little") + data[at + width :]


def move_chunk(data: bytes, rng: random.Random) -> bytes:
    """A chunk duplicated, deleted, moved or swapped with another."""
    size = min(len(data), rng.choice((1, 4, 16, 64, 256, 1024)))
    a, b = rng.randrange(len(data) - size + 1), rng.randrange(len(data) - size + 1)
    chunk = data[a : a + size]
    kind = rng.randrange(4)
    if kind == 0:
        return data[:b] + chunk + data[b:]
    if kind == 1:
        return data[:a] + data[a + size :]
    if kind == 2:
        return data[:b] + chunk + data[b + size :]
    rest = data[:a] + data[a + size :]
    return rest[:b] + chunk + rest[b:]


def truncate(data: bytes, rng: random.Random) -> bytes:
    """The beginning only."""
    return data[: rng.randrange(len(data))] or data[:1]


_BYTES: tuple[Mutator, ...] = (
    flip_bits,
    set_bytes,
    extreme_integer,
    nudge_integer,
    move_chunk,
    truncate,
)


# protobuf, by its wire format alone


def protobuf(data: bytes, rng: random.Random) -> bytes:
    """One field at any depth changed, removed, doubled or swapped; all lengths around it are right again."""
    return _protobuf(data, rng, 0)


def _protobuf(data: bytes, rng: random.Random, depth: int) -> bytes:
    fields = _fields(data)
    if not fields:
        return rng.choice(_BYTES)(data, rng) if data else rng.randbytes(3)
    at = rng.randrange(len(fields))
    number, kind, value = fields[at]
    inner = _fields(value) if kind == 2 and isinstance(value, bytes) and depth < _DEEPEST else None
    if inner and rng.random() < 0.75:
        fields[at] = (number, kind, _protobuf(_bytes(value), rng, depth + 1))
    elif kind == 2 and value and _bytes(value)[:1] in b"{[":
        fields[at] = (number, kind, json_value(_bytes(value), rng))
    else:
        _change_field(fields, at, rng)
    return b"".join(_field(*field) for field in fields)


def _change_field(fields: list[tuple[int, int, int | bytes]], at: int, rng: random.Random) -> None:
    number, kind, value = fields[at]
    other = rng.randrange(len(fields))
    action = rng.randrange(6)
    if action == 0:
        del fields[at]
    elif action == 1:
        fields.insert(other, fields[at])
    elif action == 2:
        fields[at], fields[other] = fields[other], fields[at]
    elif action == 3 and kind == fields[other][1]:
        fields[at] = (number, kind, fields[other][2])
    elif action == 4:
        fields[at] = (rng.randint(1, 30), kind, value)
    elif isinstance(value, int):
        fields[at] = (number, kind, rng.choice((*_EXTREMES, value + 1, max(0, value - 1))))
    else:
        fields[at] = (number, kind, rng.choice(_BYTES)(value, rng) if value else rng.randbytes(8))


def _fields(data: bytes | int) -> list[tuple[int, int, int | bytes]] | None:
    """Fields as ``(number, wire type, value)``, or None where the bytes are no message."""
    if isinstance(data, int):
        return None
    found: list[tuple[int, int, int | bytes]] = []
    at = 0
    while at < len(data):
        key, at = _varint(data, at)
        number, kind = key >> 3, key & 7
        if at < 0 or not 0 < number < 2**20 or kind not in (0, 1, 2, 5):
            return None
        if kind == 0:
            value, at = _varint(data, at)
            if at < 0:
                return None
            found.append((number, kind, value))
            continue
        length = {1: 8, 5: 4}.get(kind, 0)
        if kind == 2:
            length, at = _varint(data, at)
        if at < 0 or at + length > len(data):
            return None
        found.append((number, kind, data[at : at + length]))
        at += length
    return found


def _field(number: int, kind: int, value: int | bytes) -> bytes:
    key = _pack_varint(number << 3 | kind)
    if kind == 0:
        return key + _pack_varint(value if isinstance(value, int) else 0)
    content = _bytes(value)
    if kind == 2:
        return key + _pack_varint(len(content)) + content
    width = 8 if kind == 1 else 4
    return key + content[:width].ljust(width, b"\0")


def _bytes(value: int | bytes) -> bytes:
    return value if isinstance(value, bytes) else (value % 2**64).to_bytes(8, "little")


def _varint(data: bytes, at: int) -> tuple[int, int]:
    value = shift = 0
    while at < len(data) and shift < 70:
        byte = data[at]
        value |= (byte & 0x7F) << shift
        at, shift = at + 1, shift + 7
        if byte < 0x80:
            return value, at
    return 0, -1


def _pack_varint(value: int) -> bytes:
    value %= 2**64
    out = bytearray()
    while value > 0x7F:
        out.append(value & 0x7F | 0x80)
        value >>= 7
    out.append(value)
    return bytes(out)


# flatbuffers


def flatbuffer(data: bytes, rng: random.Random) -> bytes:
    """The offset to a table's vtable, an entry of the vtable, or a field of the table."""
    for _ in range(64):
        table = 4 * rng.randrange(1, max(2, len(data) // 4))
        if table + 4 > len(data):
            continue
        vtable = table - struct.unpack_from("<i", data, table)[0]
        if not 0 <= vtable <= len(data) - 4:
            continue
        size, span = struct.unpack_from("<HH", data, vtable)
        if size % 2 or not 6 <= size <= 64 or not 4 <= span <= 256 or vtable + size > len(data):
            continue
        return _change_table(data, table, vtable, size, rng)
    return extreme_integer(data, rng)


def _change_table(data: bytes, table: int, vtable: int, size: int, rng: random.Random) -> bytes:
    entry = vtable + 2 * rng.randrange(2, size // 2)
    offset = struct.unpack_from("<H", data, entry)[0]
    action = rng.randrange(4)
    if action == 0:
        at, width = table, 4
    elif action == 1 or not 4 <= offset <= 256:
        at, width = entry, 2
    else:
        at, width = table + offset, rng.choice((1, 2, 4, 4))
    old = int.from_bytes(data[at : at + width], "little")
    new = rng.choice((*_EXTREMES, old + 4, old - 4, old + 1, old - 1, old * 2, old // 2))
    return data[:at] + (new % 256**width).to_bytes(width, "little") + data[at + width :]


# JSON


def json_value(data: bytes, rng: random.Random) -> bytes:
    """One value, key or list somewhere in the tree."""
    try:
        tree = json.loads(data)
    except (ValueError, RecursionError):
        return rng.choice(_BYTES)(data, rng)
    places: list[tuple[Any, Any]] = []
    rest = [tree]
    while rest:
        node = rest.pop()
        keys = list(node) if isinstance(node, dict) else range(len(node)) if isinstance(node, list) else ()
        for key in keys:
            places.append((node, key))
            rest.append(node[key])
    if not places:
        return json.dumps(rng.choice(_JSON_EXTREMES)).encode()
    node, key = rng.choice(places)
    action = rng.randrange(4)
    if action == 0:
        del node[key]
    elif action == 1:
        other, at = rng.choice(places)
        if isinstance(other, dict):
            node[key] = json.loads(json.dumps(other.get(at)))
    elif action == 2 and isinstance(node, dict):
        node[str(key) + rng.choice(("", "_", "x"))] = node.pop(key)
    else:
        node[key] = rng.choice(_JSON_EXTREMES)
    return json.dumps(tree).encode()


def safetensors(data: bytes, rng: random.Random) -> bytes:
    """The header as JSON, its length right again."""
    length = int.from_bytes(data[:8], "little")
    header = json_value(data[8 : 8 + length], rng)
    return len(header).to_bytes(8, "little") + header + data[8 + length :]


# zip


def zip_members(data: bytes, rng: random.Random) -> bytes:
    """One entry mutated as what it is, the archive written anew with right checksums."""
    entries = _entries(data)
    if not entries:
        return rng.choice(_BYTES)(data, rng)
    at = rng.randrange(len(entries))
    name, content = entries[at]
    entries[at] = (name, mutate(content, rng) if content else rng.randbytes(8))
    return _archive(entries, zipfile.ZIP_STORED)


def zip_structure(data: bytes, rng: random.Random) -> bytes:
    """Entries dropped, doubled, renamed, exchanged or compressed."""
    entries = _entries(data)
    if not entries:
        return rng.choice(_BYTES)(data, rng)
    at, other = rng.randrange(len(entries)), rng.randrange(len(entries))
    action = rng.randrange(5)
    if action == 0:
        del entries[at]
    elif action == 1:
        entries.append(entries[at])
    elif action == 2:
        names = (
            "../" + entries[at][0],
            "/" + entries[at][0],
            entries[other][0],
            entries[at][0] + "\0",
            "x" * 300,
        )
        entries[at] = (rng.choice(names), entries[at][1])
    elif action == 3:
        entries[at], entries[other] = (entries[at][0], entries[other][1]), (entries[other][0], entries[at][1])
    return _archive(entries, zipfile.ZIP_DEFLATED if action == 4 else zipfile.ZIP_STORED)


def _entries(data: bytes) -> list[tuple[str, bytes]]:
    try:
        with zipfile.ZipFile(io.BytesIO(data)) as archive:
            if any(entry.file_size > _LONGEST_ENTRY for entry in archive.infolist()):
                return []
            return [(entry.filename, archive.read(entry)) for entry in archive.infolist()]
    except Exception:  # a damaged archive is mutated as bytes
        return []


def _archive(entries: list[tuple[str, bytes]], method: int) -> bytes:
    import warnings

    buffer = io.BytesIO()
    with warnings.catch_warnings(), zipfile.ZipFile(buffer, "w", method) as archive:
        warnings.simplefilter("ignore")  # doubled names are meant
        for name, content in entries:
            archive.writestr(zipfile.ZipInfo(name), content, method)
    return buffer.getvalue()
