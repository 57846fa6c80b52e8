"""safetensors files: named tensors behind a JSON header, nothing that could run.

Layout as the safetensors project describes it: the length of the header in 8 bytes (little endian), the header as JSON
(name to dtype, shape and byte range, plus texts under ``__metadata__``), then the tensors without a gap. As with a
checkpoint of PyTorch, an architecture must be known before they make a network.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import Any, NoReturn

import numpy as np

from dlas.core.errors import ModelError, UnknownNameError, UnsupportedError
from dlas.graph.format import Format, formats
from dlas.graph.formats.torch import Torch, rebuilt
from dlas.graph.model import Model
from dlas.graph.weights import WeightFile, WeightTensor, plain_text

MAX_HEADER = 2**23  # bytes
MAX_AXES = 32  # as NumPy of old
# dtype: bits, and NumPy's code where it has one
TYPES: Mapping[str, tuple[int, str]] = {
    "BOOL": (8, "?"), "U8": (8, "u1"), "I8": (8, "i1"), "U16": (16, "<u2"), "I16": (16, "<i2"), "F16": (16, "<f2"),
    "U32": (32, "<u4"), "I32": (32, "<i4"), "F32": (32, "<f4"), "U64": (64, "<u8"), "I64": (64, "<i8"),
    "F64": (64, "<f8"), "C64": (64, "<c8"), "BF16": (16, ""), "F8_E4M3": (8, ""), "F8_E5M2": (8, ""),
    "F8_E8M0": (8, ""), "F6_E2M3": (6, ""), "F6_E3M2": (6, ""), "F4": (4, ""),
}  # fmt: skip
_CONTROL = re.compile(r"[\x00-\x1f\x7f-\x9f\ud800-\udfff]")  # JSON can spell half of a surrogate pair
_AGAIN = "check that it was downloaded or exported completely"


@formats.register("safetensors")
class Safetensors(Format):
    """Reader of tensors by name; of networks where their architecture is known."""

    name = "safetensors"
    summary = "safetensors weights; a network where the architecture is known"
    suffixes = (".safetensors",)
    runtime = "torch"
    Options = Torch.Options

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether a header length and the start of a JSON object come first."""
        return len(head) > 8 and 2 <= int.from_bytes(head[:8], "little") <= MAX_HEADER and head[8:9] == b"{"

    @classmethod
    def weights(cls, path: Path) -> WeightFile:
        """Tensors and texts; the tensors themselves are not read."""
        return read_contents(path).weights

    def load(self, path: Path) -> Model:
        """Build the network that the tensors belong to.

        Raises:
            ModelError: Damaged, or weights of no known architecture.
            UnsupportedError: A tensor has a type that PyTorch networks of dlas cannot have.
        """
        import torch

        from dlas.graph.formats._torch_checkpoint import tidied_state

        contents = read_contents(path)
        state = {t.name: torch.from_numpy(contents.tensor(t.name).copy()) for t in contents.weights.tensors}
        digest = hashlib.sha256(path.read_bytes()).hexdigest()
        source = {"format": self.name, "path": path.name, "sha256": digest}
        return rebuilt(path.stem, tidied_state(path.name, state), source, self.options)


@dataclass(frozen=True)
class Contents:
    """What a file holds, and where: tensor name to its description and its first byte."""

    path: Path
    weights: WeightFile
    places: Mapping[str, tuple[WeightTensor, int]]

    def tensor(self, name: str) -> np.ndarray:
        """One tensor as a read-only view of the mapped file; BF16 as float32 (exact).

        Raises:
            UnknownNameError: No such tensor.
            UnsupportedError: NumPy has no such type (8-bit floats and narrower).
            ModelError: The file became shorter in the meantime.
        """
        if name not in self.places:
            raise UnknownNameError(f"tensor of {self.path.name}", name, self.places)
        tensor, start = self.places[name]
        code = "<u2" if tensor.dtype == "BF16" else TYPES[tensor.dtype][1]
        if not code:
            raise UnsupportedError(
                f"{self.path.name}: tensor {name!r} is {tensor.dtype}, which is only listed"
            )
        try:
            found = (
                np.asarray(np.memmap(self.path, code, "r", start, tensor.shape))
                if tensor.nbytes
                else np.zeros(tensor.shape, code)
            )
        except (OSError, ValueError) as error:
            raise ModelError(f"{self.path.name} changed while it was read: {error}") from error
        return (found.astype(np.uint32) << 16).view(np.float32) if tensor.dtype == "BF16" else found


def read_contents(path: Path) -> Contents:
    """Read everything but the tensor data.

    Raises:
        ModelError: Not a safetensors file, truncated, inconsistent, or with a header beyond ``MAX_HEADER``.
    """
    header, size, start = _header(path)
    texts = header.pop("__metadata__", {})
    if not isinstance(texts, dict) or not all(isinstance(v, str) for v in texts.values()):
        raise _wrong(path, "its __metadata__ is not a table of texts")
    texts = {plain_text(k): plain_text(v) for k, v in texts.items()}
    described = [_described(path, name, entry) for name, entry in header.items()]
    end = 0
    for tensor, begin in sorted(described, key=lambda d: (d[1], d[0].nbytes)):
        if begin != end:
            raise _wrong(
                path, f"tensor {_short(tensor.name)} starts at {begin}, the one before ends at {end}"
            )
        end = begin + tensor.nbytes
    if end != size:
        raise _wrong(path, f"its tensors take {end} bytes, the file has {size} for them")
    places = {tensor.name: (tensor, start + begin) for tensor, begin in described}
    return Contents(path, WeightFile("safetensors", tuple(t for t, _ in described), texts), places)


def _header(path: Path) -> tuple[dict[str, Any], int, int]:
    """The JSON object, bytes of all tensors, and where they start."""
    try:
        size = path.stat().st_size
        with path.open("rb") as file:
            length = int.from_bytes(file.read(8), "little")
            if size < 8 or length > size - 8:
                raise _wrong(path, f"it is truncated: its header takes {length} bytes, the file has {size}")
            if length > MAX_HEADER:
                raise _wrong(path, f"its header takes {length} bytes; at most {MAX_HEADER} are read")
            raw = file.read(length)
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}") from error
    try:
        header = json.loads(raw, object_pairs_hook=_unique, parse_constant=_refuse, parse_float=_refuse)
    except (ValueError, RecursionError) as error:
        raise _wrong(path, f"its header is not valid JSON: {_short(str(error))}") from error
    if not isinstance(header, dict):
        raise _wrong(path, "its header is not a JSON object")
    return header, size - 8 - length, 8 + length


def _described(path: Path, name: str, entry: Any) -> tuple[WeightTensor, int]:
    if not name or _CONTROL.search(name):
        raise _wrong(path, f"a tensor name is empty or has control characters: {_short(name)}")
    if not isinstance(entry, dict) or set(entry) != {"dtype", "shape", "data_offsets"}:
        raise _wrong(path, f"tensor {_short(name)} needs dtype, shape and data_offsets, and nothing else")
    dtype, shape, offsets = entry["dtype"], entry["shape"], entry["data_offsets"]
    if not isinstance(dtype, str) or dtype not in TYPES:
        raise _wrong(path, f"tensor {_short(name)} has the unknown type {_short(dtype)}")
    if not _counts(shape) or len(shape) > MAX_AXES or math.prod(max(s, 1) for s in shape) >= 2**48:
        raise _wrong(path, f"tensor {_short(name)} has the shape {_short(shape)}")
    if not _counts(offsets) or len(offsets) != 2 or offsets[0] > offsets[1]:
        raise _wrong(path, f"tensor {_short(name)} has the byte range {_short(offsets)}")
    bits, nbytes = math.prod(shape) * TYPES[dtype][0], offsets[1] - offsets[0]
    if bits != 8 * nbytes:
        raise _wrong(
            path, f"tensor {_short(name)} has {nbytes} bytes, its shape and type ask for {bits / 8:g}"
        )
    return WeightTensor(name, tuple(shape), dtype, nbytes), offsets[0]


def _counts(value: Any) -> bool:
    return isinstance(value, list) and all(type(v) is int and 0 <= v < 2**63 for v in value)


def _unique(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    found = dict(pairs)
    if len(found) != len(pairs):
        raise ValueError("a name occurs twice")
    return found


def _refuse(text: str) -> NoReturn:
    raise ValueError(f"{text[:20]} is no whole number")


def _wrong(path: Path, what: str) -> ModelError:
    return ModelError(f"{path.name}: {what}", _AGAIN)


def _short(value: object, most: int = 60) -> str:
    text = repr(value[: most + 1] if isinstance(value, str | list) else value)
    return text if len(text) <= most else text[: most - 1] + "…"
