"""Tensors of an untrusted ONNX file: declared sizes against bytes that are there, external data, NaN."""

from __future__ import annotations

import contextlib
import errno
import math
import os
from collections.abc import Iterator
from pathlib import Path
from typing import IO

import numpy as np
import onnx

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.files import open_regular

_BITS = {
    kind: bits
    for bits, kinds in {
        2: ("INT2", "UINT2"),
        4: ("INT4", "UINT4", "FLOAT4E2M1"),
        8: (
            "INT8", "UINT8", "BOOL", "FLOAT8E4M3FN", "FLOAT8E4M3FNUZ", "FLOAT8E5M2", "FLOAT8E5M2FNUZ", "FLOAT8E8M0",
        ),
        16: ("INT16", "UINT16", "FLOAT16", "BFLOAT16"),
        32: ("INT32", "UINT32", "FLOAT"),
        64: ("INT64", "UINT64", "DOUBLE", "COMPLEX64"),
        128: ("COMPLEX128",),
    }.items()
    for kind in kinds
}  # fmt: skip
_FLOATS = ("FLOAT", "DOUBLE", "FLOAT16", "BFLOAT16")


def all_tensors(proto: onnx.ModelProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    """Every tensor of the file with a label: initializers, node attributes, subgraphs and functions."""
    yield from _of_graph(proto.graph)
    for function in proto.functions:
        yield from _of_nodes(function.node)


def read_external(proto: onnx.ModelProto, path: Path, room: int) -> Iterator[bytes]:
    """Put external data into the tensors that refer to it, yielding each piece read.

    Args:
        proto: The file's content, changed in place.
        path: The file; external data must lie in its folder or below.
        room: Bytes that may be read in all.

    Raises:
        ModelError: The data lie elsewhere, are missing or too short, or exceed ``room``.
    """
    for label, tensor in all_tensors(proto):
        if tensor.data_location != onnx.TensorProto.EXTERNAL:
            continue
        fields = {e.key: e.value for e in tensor.external_data}
        location = fields.get("location", "")
        wanted = declared_bytes(tensor, label, path.name)
        with _opened(location, path, label) as file:
            held = os.fstat(file.fileno()).st_size
            offset = _number(fields.get("offset", "0"), "offset", label)
            length = _number(fields["length"], "length", label) if "length" in fields else held - offset
            if offset + length > held or length != wanted:
                raise ModelError(
                    f"{path.name}: tensor {label!r} needs {wanted} bytes, but {location} gives {length} of its "
                    f"{held} bytes at {offset}",
                    "copy the data file again, completely",
                )
            room -= length
            if room < 0:
                raise ModelError(f"{path.name}: the weights exceed the size that is read", "raise max_bytes")
            file.seek(offset)
            content = file.read(length)
        if len(content) != wanted:
            raise ModelError(f"{path.name}: {location} became shorter while it was read", "read it again")
        tensor.raw_data = content
        tensor.data_location = onnx.TensorProto.DEFAULT
        del tensor.external_data[:]
        yield content


def external_files(proto: onnx.ModelProto, path: Path) -> tuple[Path, ...]:
    """The files :func:`read_external` would read, each once; what it would refuse is left out."""
    found: dict[Path, None] = {}
    for label, tensor in all_tensors(proto):
        if tensor.data_location == onnx.TensorProto.EXTERNAL:
            location = {e.key: e.value for e in tensor.external_data}.get("location", "")
            with contextlib.suppress(ModelError):
                _opened(location, path, label).close()
                found[path.parent.joinpath(*_parts(location, path, label))] = None
    return tuple(found)


def check_tensors(proto: onnx.ModelProto, name: str, *, allow_nan: bool) -> None:
    """Compare every tensor's declared size with the bytes it holds, and refuse NaN.

    A single infinity is a legitimate constant (attention masks, clipping bounds), so infinities are refused only in
    tensors of more than one element.

    Raises:
        ModelError: The sizes differ, or a floating-point tensor is not finite and ``allow_nan`` is off.
        UnsupportedError: A tensor has an element type without a fixed size.
    """
    for label, tensor in all_tensors(proto):
        wanted = declared_bytes(tensor, label, name)
        held, needed = _held(tensor, wanted)
        if held != needed:
            raise ModelError(
                f"{name}: tensor {label!r} declares {list(tensor.dims)} {_kind(tensor)} but holds {held} "
                f"{'bytes' if tensor.raw_data else 'values'} instead of {needed}",
                "check that the file was exported completely",
            )
        if allow_nan or _kind(tensor) not in _FLOATS:
            continue
        array = np.asarray(onnx.numpy_helper.to_array(tensor))
        finite = np.isfinite(array)
        if np.isnan(array).any() or (array.size > 1 and not finite.all()):
            raise ModelError(
                f"{name}: tensor {label!r} has {int((~finite).sum())} values of {array.size} that are NaN or infinite",
                "train or export it again, or read it with allow_nan",
            )


def declared_bytes(tensor: onnx.TensorProto, label: str, name: str) -> int:
    """Bytes that shape and dtype of ``tensor`` call for; text counts as nothing."""
    if any(d < 0 for d in tensor.dims):
        raise ModelError(f"{name}: tensor {label!r} has the shape {list(tensor.dims)}")
    kind = _kind(tensor)
    if kind == "STRING":
        return 0
    if kind not in _BITS:
        raise UnsupportedError(f"{name}: tensor {label!r} has the element type {kind}")
    return math.ceil(math.prod(tensor.dims) * _BITS[kind] / 8)


def _held(tensor: onnx.TensorProto, wanted: int) -> tuple[int, int]:
    """What the tensor holds and what it should hold, in bytes (raw data) or values (typed fields)."""
    kind = _kind(tensor)
    if kind == "STRING":
        return len(tensor.string_data), math.prod(tensor.dims)
    if tensor.raw_data:
        return len(tensor.raw_data), wanted
    count = math.prod(tensor.dims)
    fields = (tensor.float_data, tensor.int32_data, tensor.int64_data, tensor.double_data, tensor.uint64_data)
    held = sum(map(len, fields))
    if kind in ("COMPLEX64", "COMPLEX128"):
        return held, 2 * count
    # int32_data holds packed bytes for element types below 8 bits
    return held, wanted if _BITS[kind] < 8 else count


def _kind(tensor: onnx.TensorProto) -> str:
    try:
        return onnx.TensorProto.DataType.Name(tensor.data_type)
    except ValueError:
        return str(tensor.data_type)


def _parts(location: str, path: Path, label: str) -> list[str]:
    """Folders and file of an external location, which must be plain names below the model's folder."""
    parts = location.replace("\\", "/").split("/")
    if "\0" in location or ".." in parts or "" in parts or ":" in parts[0] or "\\" in location:
        raise ModelError(
            f"{path.name}: tensor {label!r} wants external data from {location[:200]!r}",
            "external data must lie in the model's own folder",
        )
    return [part for part in parts if part != "."]


def _opened(location: str, path: Path, label: str) -> IO[bytes]:
    """The external file, opened step by step so that no link on the way, nor one put there meanwhile, is followed.

    Raises:
        ModelError: It lies elsewhere, is a link, a hard link to another file or no file, or cannot be read.
    """
    parts = _parts(location, path, label)
    told = f"{path.name}: external data {location[:200]!r} of tensor {label!r}"
    folder = -1
    try:
        folder = os.open(path.parent, os.O_RDONLY | os.O_DIRECTORY | os.O_CLOEXEC)
        for part in parts[:-1]:
            inner = os.open(part, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW | os.O_CLOEXEC, dir_fd=folder)
            os.close(folder)
            folder = inner
        file = open_regular(parts[-1] if parts else ".", folder=folder, follow=False)
    except OSError as error:
        if error.errno in (errno.ELOOP, errno.EMLINK) or (
            error.errno == errno.ENOTDIR and _has_link(path, parts)
        ):
            raise ModelError(
                f"{told} is a symbolic link",
                "external data must lie in the model's own folder; put the file itself there",
            ) from error
        reason = "is not a file" if error.errno == errno.EINVAL else f"cannot be read: {error.strerror}"
        raise ModelError(f"{told} {reason}", "copy the data file beside the model") from error
    finally:
        if folder >= 0:
            os.close(folder)
    if os.fstat(file.fileno()).st_nlink > 1:
        file.close()
        raise ModelError(
            f"{told} is a hard link to a file that has other names too", "copy the data file beside the model"
        )
    return file


def _has_link(path: Path, parts: list[str]) -> bool:
    place = path.parent
    for part in parts:
        place = place / part
        if place.is_symlink():
            return True
    return False


def _number(text: str, what: str, label: str) -> int:
    if not text.isascii() or not text.isdecimal() or len(text) > 18:
        raise ModelError(f"tensor {label!r}: external data {what} is {text[:40]!r}, not a count of bytes")
    return int(text)


def _of_graph(graph: onnx.GraphProto) -> Iterator[tuple[str, onnx.TensorProto]]:
    for tensor in graph.initializer:
        yield tensor.name, tensor
    yield from _of_nodes(graph.node)


def _of_nodes(nodes: object) -> Iterator[tuple[str, onnx.TensorProto]]:
    for node in nodes:  # type: ignore[attr-defined]
        for attribute in node.attribute:
            label = f"{node.name or (node.output[0] if node.output else node.op_type)}.{attribute.name}"
            if attribute.HasField("t"):
                yield label, attribute.t
            for tensor in attribute.tensors:
                yield label, tensor
            for graph in (*([attribute.g] if attribute.HasField("g") else []), *attribute.graphs):
                yield from _of_graph(graph)
