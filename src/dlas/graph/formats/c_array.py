"""A network as a C array for microcontrollers: a TensorFlow Lite flatbuffer in a source file.

``net.c`` (or ``.cc``) holds the bytes, ``net.h`` declares them and ``net.README.md`` says what the network wants and
gives and which operators to link. Read is any C or C++ source with such an array, as ``xxd -i`` writes them and many
networks for microcontrollers are given away; nothing is compiled or run.
"""

from __future__ import annotations

import hashlib
from dataclasses import dataclass, replace
from pathlib import Path
from typing import ClassVar

from dlas.core.errors import DlasError, ModelError
from dlas.core.files import atomic_paths
from dlas.core.options import option
from dlas.graph.format import Format, Written, formats
from dlas.graph.formats._c_readme import readme
from dlas.graph.formats._c_source import (
    MARK,
    ByteArray,
    array_source,
    byte_arrays,
    header_source,
    identifier,
    stated_length,
)
from dlas.graph.model import Model, Step

MAX_BYTES = 128 << 20  # of source text: a network of about 20 MB, far beyond any microcontroller


@dataclass(frozen=True)
class CArrayOptions:
    """Options of the c-array format.

    Attributes:
        array: Which array to read, where a source holds several networks.
        batch: Size that a dynamic first axis is bound to when writing.
    """

    array: str = option("", "name of the array to read, where a source holds several networks", use="reading")
    batch: int = option(1, "size of the batch axis in a written file", low=1, use="writing")


@formats.register("c-array")
class CArray(Format):
    """TensorFlow Lite networks in C sources."""

    name = "c-array"
    summary = (
        "C source with a TensorFlow Lite network as a byte array, a header and a page for microcontrollers"
    )
    Options = CArrayOptions
    requires: ClassVar = {"ai_edge_litert": "tflite"}
    suffixes = (".c", ".cc")
    runtime = "litert"
    can_write = True

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether it can be text."""
        return b"\0" not in head

    def load(self, path: Path) -> Model:
        """Read the network in a C source.

        Raises:
            ModelError: No array in it starts a network, several do and none is named, or it is damaged.
            UnsupportedError: The network uses operators that cannot be expressed.
        """
        from dlas.graph.formats.tflite import from_bytes

        source = _text(path)
        name, data = _network(source, path.name, self.options.array)
        model = from_bytes(data, path.stem, path.name)
        last = model.history[-1]
        step = Step(last.action, {"format": self.name, "array": name}, last.versions, last.notes)
        told = {**model.source, "format": self.name, "sha256": hashlib.sha256(source).hexdigest()}
        return replace(model, source=told, history=(*model.history[:-1], step))

    def save(self, model: Model, path: Path) -> Written:
        """Write the source, the header and the page; all of them or none.

        Raises:
            UnsupportedError: Operators that tflite lacks (all named), or shapes that are not fixed.
            DlasError: The folder cannot be written, or files of other origin stand where header and page would go.
        """
        from dlas.graph.formats.tflite import to_bytes
        from dlas.graph.formats.tflite.flat import parse
        from dlas.graph.formats.tflite.memory import micro_refusals

        data, notes = to_bytes(model, self.options.batch)
        network = parse(data, path.name)
        name = identifier(model.name)
        files = {
            path.with_name(f"{path.stem}.README.md"): readme(
                model, network, name, path.stem, len(data), notes
            ),
            path.with_suffix(".h"): header_source(name, len(data), model.name),
            path: array_source(name, data, model.name),
        }
        _refuse_strangers(path, list(files))
        with atomic_paths(list(files)) as temporaries:
            for temporary, text in zip(temporaries, files.values(), strict=True):
                temporary.write_text(text, encoding="ascii")
        others = " and ".join(p.name for p in files if p != path)
        return Written(path, (*notes, *micro_refusals(network), f"also wrote {others}"))


def flatbuffer(path: Path, array: str = "") -> bytes:
    """The tflite file inside a C source; raises as :meth:`CArray.load`."""
    return _network(_text(path), path.name, array)[1]


def _text(path: Path) -> bytes:
    try:
        if path.stat().st_size > MAX_BYTES:
            raise ModelError(f"{path.name} has {path.stat().st_size} bytes; {MAX_BYTES} are read at most")
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def _network(source: bytes, file_name: str, wanted: str) -> tuple[str, bytes]:
    arrays = byte_arrays(source, file_name)
    found = [a for a in arrays if a.head(8)[4:8] == b"TFL3"]
    if wanted:
        found = [a for a in arrays if a.name == wanted]
    if not found:
        names = ", ".join(a.name for a in arrays[:5]) or "none"
        raise ModelError(
            f"{file_name} holds no TensorFlow Lite network in an array of bytes"
            + (f" called {wanted!r}" if wanted else ""),
            f"arrays of bytes in it: {names}",
        )
    if len(found) > 1:
        names = ", ".join(a.name for a in found[:10])
        raise ModelError(f"{file_name} holds several networks: {names}", "name one: array=NAME")
    return found[0].name, _content(found[0], source, file_name)


def _content(array: ByteArray, source: bytes, file_name: str) -> bytes:
    data = array.value()
    stated = stated_length(source, array.name)
    if stated is not None and stated != len(data):
        raise ModelError(
            f"{file_name}: {array.name} holds {len(data)} bytes, its length is given as {stated}",
            "the file is damaged: download or export it again",
        )
    return data


def _refuse_strangers(path: Path, files: list[Path]) -> None:
    """Header and page are not asked for by name, so they replace only files that dlas wrote."""
    for target in files:
        if target.is_dir():
            raise DlasError(f"cannot write {target}: it is a folder", "choose another name")
        if target == path or not target.exists():
            continue
        with target.open("rb") as file:
            ours = MARK.encode() in file.read(1024)
        if not ours:
            raise DlasError(
                f"{target} exists and was not written by dlas; {path.name} comes with a file of that name",
                "move it, or choose another name",
            )


__all__ = ["CArray", "CArrayOptions", "flatbuffer"]
