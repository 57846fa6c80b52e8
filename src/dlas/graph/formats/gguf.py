"""GGUF files: tensors and metadata of a language model, without a graph.

Layout as in the GGUF specification of ggml, versions 2 and 3, little or big endian: magic, version, counts, metadata
pairs, tensor descriptions, padding, tensor data. Every count, length and offset is checked against the file before
anything is read or made, so that reading costs no more than the file holds.
"""

from __future__ import annotations

import math
import mmap
import re
import struct
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import numpy as np

from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.format import Format, formats
from dlas.graph.formats._ggml import TYPES, BlockType
from dlas.graph.model import Model
from dlas.graph.weights import WeightFile, WeightTensor

MAGIC = b"GGUF"
ALIGNMENT = 32  # of the tensor data, unless general.alignment says otherwise
MAX_TENSORS = 2**15
MAX_KEYS = 2**14
MAX_VALUES = 2**21  # over all arrays; the largest vocabularies have a fourth of it
MAX_TEXT = 2**26  # bytes of all strings together
MAX_DEPTH = 4  # of arrays within arrays
MAX_AXES = 8
_LARGEST = 2**48  # elements; axes of size 0 do not make a tensor small that NumPy cannot describe
_STRING_COST, _LIST_COST = 2, 32  # what a string or an array within an array counts for in MAX_VALUES

_SCALARS: Mapping[int, str] = {
    0: "u1", 1: "i1", 2: "u2", 3: "i2", 4: "u4", 5: "i4", 6: "f4", 7: "?", 10: "u8", 11: "i8", 12: "f8",
}  # fmt: skip
_STRING, _ARRAY = 8, 9
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f]")


@formats.register("gguf")
class Gguf(Format):
    """Reader of what a GGUF file holds."""

    name = "gguf"
    summary = "GGUF weights of language models: lists tensors and metadata, has no graph"
    suffixes = (".gguf",)

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether it starts with the magic."""
        return head[:4] == MAGIC

    @classmethod
    def weights(cls, path: Path) -> WeightFile:
        """Tensors and metadata; the tensors themselves are not read."""
        return read_contents(path).weights

    def load(self, path: Path) -> Model:
        """Refuse: there is no graph in it.

        Raises:
            ModelError: The file is damaged.
            UnsupportedError: Always otherwise.
        """
        found = self.weights(path)
        family = found.metadata.get("general.architecture")
        family = f" of the {_short(family)} family" if isinstance(family, str) else ""
        raise UnsupportedError(
            f"{path.name} holds {len(found.tensors)} weights{family} without a graph",
            "`dlas info` lists them",
        )


@dataclass(frozen=True)
class Contents:
    """What a GGUF file holds, and where.

    Attributes:
        path: The file.
        weights: Tensors and metadata.
        version: Version of the layout, 2 or 3.
        big_endian: Byte order of the file.
        alignment: Of tensor offsets, in bytes.
        places: Tensor name to its first byte in the file and its storage type.
    """

    path: Path
    weights: WeightFile
    version: int
    big_endian: bool
    alignment: int
    places: Mapping[str, tuple[int, BlockType]]

    def tensor(self, name: str) -> np.ndarray:
        """One tensor, as a read-only view of the mapped file wherever its byte order allows it.

        Returns:
            F16, F32, F64 and I8 to I64 in their own dtype, BF16 as float32 (exact); of the other types the raw
            blocks, uint8, whose last axis is the bytes of one row.

        Raises:
            UnknownNameError: No such tensor.
            ModelError: The file became shorter in the meantime.
        """
        known = {t.name: t for t in self.weights.tensors}
        if name not in known:
            raise UnknownNameError(f"tensor of {self.path.name}", name, known)
        tensor, (start, kind) = known[name], self.places[name]
        order = ">" if self.big_endian else "<"
        code = kind.numpy or ("u2" if kind.name == "BF16" else "u1")
        shape = tensor.shape
        if code == "u1":
            shape = (*shape[:-1], shape[-1] // kind.block * kind.nbytes)
        if not tensor.nbytes:
            return np.zeros(shape, np.float32 if kind.name == "BF16" else np.dtype(code))
        try:
            found = np.asarray(np.memmap(self.path, np.dtype(order + code), "r", start, shape))
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path.name} changed while it was read: {error}") from error
        if kind.name == "BF16":  # the upper half of a float32
            return (found.astype(np.uint32) << 16).view(np.float32)
        return found if found.dtype.isnative else found.astype(found.dtype.newbyteorder("="))


def read_tensor(path: Path, name: str) -> np.ndarray:
    """One tensor of a GGUF file; see :meth:`Contents.tensor`. For several, call :func:`read_contents` once."""
    return read_contents(path).tensor(name)


def read_contents(path: Path) -> Contents:
    """Read everything but the tensor data.

    Raises:
        ModelError: Not a GGUF file, truncated, inconsistent, or beyond the bounds of this module.
    """
    path = Path(path)
    try:
        with path.open("rb") as file:
            if len(file.read(4)) < 4:
                raise ModelError(f"{path.name} is truncated: it has no GGUF header", _AGAIN)
            with mmap.mmap(file.fileno(), 0, access=mmap.ACCESS_READ) as data:
                return _Reader(path, data).contents()
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error


_AGAIN = "check that it was downloaded or exported completely"


class _Reader:
    """A position in the mapped file and what may still be spent."""

    def __init__(self, path: Path, data: mmap.mmap) -> None:
        self.path, self.data, self.size = path, data, len(data)
        self.position, self.order = 0, "<"
        self.values, self.text = MAX_VALUES, MAX_TEXT

    def contents(self) -> Contents:
        version, tensors, keys = self._header()
        metadata: dict[str, Any] = {}
        for _ in range(keys):
            key = self._name("metadata key")
            if key in metadata:
                raise self._wrong(f"metadata key {_short(key)} occurs twice")
            metadata[key] = self._value(key, self._number("I"), 0)
        alignment = self._alignment(metadata)
        described = [self._description() for _ in range(tensors)]
        start = -(-self.position // alignment) * alignment
        places = self._places(described, start, alignment)
        return Contents(
            self.path,
            WeightFile("gguf", tuple(t for t, _, _ in described), metadata),
            version,
            self.order == ">",
            alignment,
            places,
        )

    def _header(self) -> tuple[int, int, int]:
        if self._take(4, "header") != MAGIC:
            raise ModelError(f"{self.path.name} is no GGUF file", _AGAIN)
        raw = self._take(4, "header")
        # A version is a small number, so its bytes tell the byte order of the file.
        self.order = ">" if raw[:2] == b"\0\0" else "<"
        version = struct.unpack(self.order + "I", raw)[0]
        if version not in (2, 3):
            raise self._wrong(f"its GGUF version is {version}; 2 and 3 are read", "convert it anew")
        tensors = self._count(self._number("Q"), MAX_TENSORS, 24, "tensors")
        return version, tensors, self._count(self._number("Q"), MAX_KEYS, 13, "metadata entries")

    def _description(self) -> tuple[WeightTensor, BlockType, int]:
        name = self._name("tensor")
        axes = self._number("I")
        if axes > MAX_AXES:
            raise self._wrong(f"tensor {_short(name)} has {axes} axes; at most {MAX_AXES} are read")
        sizes = struct.unpack(f"{self.order}{axes}Q", self._take(8 * axes, name))  # fastest axis first
        number, offset = self._number("I"), self._number("Q")
        kind = TYPES.get(number)
        if kind is None:
            raise self._wrong(f"tensor {_short(name)} has the unknown storage type {number}")
        if (sizes[0] if sizes else 1) % kind.block:
            raise self._wrong(
                f"tensor {_short(name)} has rows of {sizes[0] if sizes else 1} elements, "
                f"{kind.name} stores blocks of {kind.block}"
            )
        nbytes = math.prod(sizes) // kind.block * kind.nbytes
        if nbytes > self.size or math.prod(max(s, 1) for s in sizes) >= _LARGEST:
            raise self._wrong(f"tensor {_short(name)} takes {nbytes} bytes, the file has {self.size}")
        return WeightTensor(name, tuple(reversed(sizes)), kind.name, nbytes), kind, offset

    def _places(
        self, described: list[tuple[WeightTensor, BlockType, int]], start: int, alignment: int
    ) -> dict[str, tuple[int, BlockType]]:
        places: dict[str, tuple[int, BlockType]] = {}
        for tensor, kind, offset in described:
            if tensor.name in places:
                raise self._wrong(f"tensor {_short(tensor.name)} occurs twice")
            if offset % alignment:
                raise self._wrong(
                    f"tensor {_short(tensor.name)} starts at {offset}, not a multiple of {alignment}"
                )
            end = start + offset + tensor.nbytes
            if end > self.size and tensor.nbytes:
                raise self._wrong(f"tensor {_short(tensor.name)} ends at {end}, the file at {self.size}")
            places[tensor.name] = (start + offset, kind)
        last, before = 0, ""
        for tensor, _, offset in sorted((d for d in described if d[0].nbytes), key=lambda d: d[2]):
            if offset < last:
                raise self._wrong(f"tensors {_short(before)} and {_short(tensor.name)} overlap")
            last, before = offset + tensor.nbytes, tensor.name
        return places

    def _alignment(self, metadata: Mapping[str, Any]) -> int:
        value = metadata.get("general.alignment", ALIGNMENT)
        if type(value) is not int or value <= 0 or value & (value - 1):
            raise self._wrong(f"general.alignment is {_short(value)}; a power of two is accepted")
        return value

    def _value(self, key: str, kind: int, depth: int) -> Any:
        if kind == _STRING:
            return self._string(key).decode("utf-8", "backslashreplace")
        if kind == _ARRAY:
            return self._array(key, depth + 1)
        return self._scalars(key, kind, 1)[0]

    def _array(self, key: str, depth: int) -> list[Any]:
        if depth > MAX_DEPTH:
            raise self._wrong(f"{_short(key)} has arrays within arrays more than {MAX_DEPTH} deep")
        kind, length = self._number("I"), self._number("Q")
        least = {_STRING: 8, _ARRAY: 12}.get(kind, 1)
        self._count(length, self.values, least, f"values in the arrays up to {_short(key)}")
        self.values -= length * {_STRING: _STRING_COST, _ARRAY: _LIST_COST}.get(kind, 1)
        if self.values < 0:
            raise self._wrong(f"its arrays up to {_short(key)} are more than dlas reads")
        if kind == _STRING:
            return self._strings(key, length)
        if kind == _ARRAY:
            return [self._array(key, depth + 1) for _ in range(length)]
        return self._scalars(key, kind, length)

    def _strings(self, key: str, length: int) -> list[str]:
        """As :meth:`_string`, in one loop: a vocabulary is most of the time that reading takes."""
        data, position, size, found = self.data, self.position, self.size, []
        unpack = _UNSIGNED[self.order + "Q"].unpack_from
        for _ in range(length):
            start = position + 8
            position = start + unpack(data, position)[0] if start <= size else size + 1
            if position > size:
                raise self._truncated(_short(key))
            self._spend_text(position - start, key)
            found.append(data[start:position].decode("utf-8", "backslashreplace"))
        self.position = position
        return found

    def _scalars(self, key: str, kind: int, length: int) -> list[Any]:
        code = _SCALARS.get(kind)
        if code is None:
            raise self._wrong(f"{_short(key)} has the unknown value type {kind}")
        dtype = np.dtype(self.order + ("u1" if code == "?" else code))
        found = np.frombuffer(self._take(length * dtype.itemsize, key), dtype)
        if code == "?":
            if length and found.max() > 1:
                raise self._wrong(f"{_short(key)} is {found.max()}; a truth value is 0 or 1")
            found = found.astype(bool)
        return found.tolist()

    def _name(self, what: str) -> str:
        raw = self._string(what)
        try:
            name = raw.decode("utf-8")
        except UnicodeDecodeError as error:
            raise self._wrong(f"a {what} is not UTF-8: {_short(raw)}") from error
        if not name or _CONTROL.search(name):
            raise self._wrong(f"a {what} is empty or has control characters: {_short(name)}")
        return name

    def _string(self, what: str) -> bytes:
        length = self._number("Q")
        if length <= self.size:
            self._spend_text(length, what)
        return self._take(length, what)

    def _spend_text(self, length: int, what: str) -> None:
        self.text -= length
        if self.text < 0:
            raise self._wrong(f"its text up to {_short(what)} is more than dlas reads ({MAX_TEXT} bytes)")

    def _number(self, code: str) -> int:
        kind = _UNSIGNED[self.order + code]
        end = self.position + kind.size
        if end > self.size:
            raise self._truncated("a number")
        found = kind.unpack_from(self.data, self.position)[0]
        self.position = end
        return found

    def _take(self, length: int, what: str) -> bytes:
        end = self.position + length
        if end > self.size:
            raise self._truncated(_short(what))
        found = self.data[self.position : end]
        self.position = end
        return found

    def _count(self, count: int, most: int, least_bytes: int, what: str) -> int:
        if count * least_bytes > self.size - self.position:
            raise self._wrong(f"it claims {count} {what}, more than the file has room for")
        if count > most:
            raise self._wrong(f"it has {count} {what}; at most {most} are read")
        return count

    def _truncated(self, what: str) -> ModelError:
        return self._wrong(f"it is truncated or damaged: {what} at byte {self.position} ends beyond the file")

    def _wrong(self, what: str, hint: str = _AGAIN) -> ModelError:
        return ModelError(f"{self.path.name}: {what}", hint)


_UNSIGNED: Mapping[str, struct.Struct] = {o + c: struct.Struct(o + c) for o in "<>" for c in "IQ"}


def _short(value: object, most: int = 60) -> str:
    """A value of the file, fit for one line."""
    text = repr(value[: most + 1] if isinstance(value, str | bytes | list) else value)
    return text if len(text) <= most else text[: most - 1] + "…"
