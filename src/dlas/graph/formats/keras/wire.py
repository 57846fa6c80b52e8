"""Protocol buffers read field by field, without a schema and without copying: enough to judge a file."""

from __future__ import annotations

from collections.abc import Iterator

from dlas.core.errors import ModelError

Field = tuple[int, "memoryview | int"]


class WireError(ModelError):
    """The bytes are not a complete protocol buffer message."""


def fields(message: memoryview) -> Iterator[Field]:
    """Number and value of every field of a message: a part of it for text, bytes and messages, else an integer."""
    place, end = 0, len(message)
    while place < end:
        key, place = varint(message, place)
        number, kind = key >> 3, key & 7
        if kind == 2:
            size, place = varint(message, place)
            if size > end - place or number == 0:
                raise WireError("the file is truncated or not a protocol buffer")
            yield number, message[place : place + size]
            place += size
        elif kind == 0:
            value, place = varint(message, place)
            yield number, value
        elif kind in (1, 5):
            size = 8 if kind == 1 else 4
            if size > end - place:
                raise WireError("the file is truncated or not a protocol buffer")
            yield number, int.from_bytes(message[place : place + size], "little")
            place += size
        else:
            raise WireError("the file is truncated or not a protocol buffer")


def varint(message: memoryview, place: int) -> tuple[int, int]:
    """A number of variable length at ``place``, and the place after it."""
    value = shift = 0
    while True:
        if place >= len(message) or shift > 63:
            raise WireError("the file is truncated or not a protocol buffer")
        byte = message[place]
        place += 1
        value |= (byte & 127) << shift
        if byte < 128:
            return value, place
        shift += 7


def messages(message: memoryview, number: int) -> Iterator[memoryview]:
    """Every field ``number`` that holds text, bytes or a message."""
    for found, value in fields(message):
        if found == number and isinstance(value, memoryview):
            yield value


def text(message: memoryview, number: int) -> str:
    """The text in field ``number``: the last one, as protocol buffers have it; empty where there is none."""
    found = ""
    for value in messages(message, number):
        found = bytes(value).decode(errors="replace")
    return found


def number(message: memoryview, wanted: int, default: int = 0) -> int:
    """The integer in field ``wanted``, as a signed 64-bit number."""
    for found, value in fields(message):
        if found == wanted and isinstance(value, int):
            default = value - 2**64 if value >= 2**63 else value
    return default
