"""Keras files (``.h5``, ``.keras``) and SavedModel folders, read by TensorFlow once they were found harmless.

A model of Keras is a program as much as data: it names classes to import, holds functions as bytecode, and layers may
read files. ``config.py``, ``hdf5.py``, ``archive.py`` and ``savedmodel.py`` judge a file without TensorFlow;
``loading.py`` opens what passed, ``conversion.py`` translates it and compares the answers.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Any, ClassVar

from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.options import option
from dlas.graph.format import Format, formats
from dlas.graph.formats.keras import archive, hdf5, savedmodel
from dlas.graph.formats.keras.config import read_config
from dlas.graph.model import OPSET, Model, Step, step_versions
from dlas.graph.weights import WeightFile, WeightTensor

if TYPE_CHECKING:
    from dlas.graph.formats.keras.loading import Opened

_LIMIT = 1_800_000_000  # protobuf stops at 2 GiB
_ARCHIVE = b"PK"


@formats.register("keras")
class Keras(Format):
    """Reader of Keras 2 and Keras 3 files and of SavedModel folders."""

    name = "keras"
    summary = (
        "Keras 2 and 3 (.h5, .hdf5, .keras) and TensorFlow SavedModel folders; never runs code from the file"
    )
    requires: ClassVar[Mapping[str, str]] = {"tensorflow": "keras"}
    suffixes = (".h5", ".hdf5", ".keras")
    runtime = "keras"
    load_seconds = 120.0
    load_memory = 4 * 2**30

    @dataclass(frozen=True)
    class Options:
        """Options of the reader."""

        signature: str = option(
            "",
            "signature of a SavedModel to read; serving_default, or the only one, if empty",
            use="reading",
        )
        allow_nan: bool = option(False, "accept weights that are NaN or infinite", use="reading")
        max_bytes: int = option(_LIMIT, "largest model to read, weights included", low=1, use="reading")

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """An HDF5 file or a zip archive."""
        return head.startswith((hdf5.SIGNATURE, _ARCHIVE))

    @classmethod
    def recognises_folder(cls, path: Path) -> bool:
        """A folder with the program of a SavedModel in it."""
        return savedmodel.is_saved_model(path)

    @classmethod
    def unread(cls, path: Path) -> frozenset[str]:
        """A file has no signatures."""
        return frozenset() if path.is_dir() else frozenset({"signature"})

    @classmethod
    def companions(cls, path: Path) -> tuple[Path, ...]:
        """The files of a SavedModel folder."""
        try:
            return savedmodel.files(path) if path.is_dir() else ()
        except ModelError:
            return ()

    @classmethod
    def weights(cls, path: Path) -> WeightFile | None:
        """The arrays of an HDF5 file without a network, such as ``model.save_weights`` writes."""
        if path.is_dir() or _head(path) != hdf5.SIGNATURE:
            return None
        if hdf5.attribute(path, "model_config", path.name) is not None:
            return None
        size = path.stat().st_size
        found = hdf5.scan(path, path.name, size, allow_nan=True, limit=_LIMIT)
        return WeightFile("keras", tuple(WeightTensor(a.name, a.shape, a.dtype, a.nbytes) for a in found))

    def load(self, path: Path) -> Model:
        """Check a file or folder, let TensorFlow open it, translate it and compare the answers of both.

        Raises:
            ModelError: Missing, damaged, holding code or links to other files, NaN weights, or weights only.
            UnsupportedError: Layers or operators that are not plain Keras or that cannot be expressed; all are named.
            MissingDependencyError: TensorFlow is not installed.
        """
        from dlas.graph.formats.keras.conversion import to_graph

        options = self.options
        opened = open_network(path, options.signature, options.max_bytes, allow_nan=options.allow_nan)
        graph, notes = to_graph(opened, path.name, allow_nan=self.options.allow_nan)
        source = {"format": "keras", "path": path.name, "framework": opened.loader, "sha256": _digest(path)}
        versions = step_versions("tensorflow", "keras", "tf-keras", "tf2onnx", "onnx")
        recipe: dict[str, Any] = {"format": "keras", "opset": OPSET, "loader": opened.loader}
        if self.options.signature:
            recipe["signature"] = self.options.signature
        step = Step("import", recipe, versions, (*opened.notes, *notes))
        return Model(graph, source=source, history=(step,)).renamed(path.stem)


def open_network(
    path: Path, signature: str = "", max_bytes: int = _LIMIT, *, allow_nan: bool = False
) -> Opened:
    """Check a file or folder and let TensorFlow open it; arguments and errors as the options and :meth:`Keras.load`."""
    if path.is_dir():
        program = savedmodel.inspect(path, max_bytes)
        from dlas.graph.formats.keras.loading import open_saved_model

        return open_saved_model(path, program.signatures, signature)
    written_by = check(path, max_bytes, allow_nan=allow_nan)
    from dlas.graph.formats.keras.loading import open_keras

    return open_keras(path, written_by)


def check(path: Path, max_bytes: int = _LIMIT, *, allow_nan: bool = False) -> str:
    """Refuse a file that Keras must not see, without Keras; raises as :meth:`Keras.load`.

    Returns:
        The version of Keras that wrote it, or an empty string.
    """
    head, zipped = _head(path), path.suffix.lower() == ".keras"
    if zipped and head == hdf5.SIGNATURE:
        raise ModelError(f"{path.name} is an HDF5 file", "give it the ending .h5")
    if not zipped and head.startswith(_ARCHIVE):
        raise ModelError(f"{path.name} is a zip archive", "give it the ending .keras")
    size = path.stat().st_size
    if size > max_bytes:
        raise ModelError(f"{path.name} has {size} bytes, at most {max_bytes} are read", "raise max_bytes")
    if zipped:
        packed = archive.open_archive(path, allow_nan=allow_nan, limit=max_bytes)
        read_config(packed.config, path.name)
        return packed.written_by
    hdf5.scan(path, path.name, size, allow_nan=allow_nan, limit=max_bytes)
    config = hdf5.attribute(path, "model_config", path.name)
    if config is None:
        raise UnsupportedError(
            f"{path.name} holds weights only, not the network they belong to", "save the whole model"
        )
    read_config(config, path.name)
    return (hdf5.attribute(path, "keras_version", path.name) or b"").decode(errors="replace")


def _head(path: Path) -> bytes:
    try:
        with path.open("rb") as file:
            return file.read(len(hdf5.SIGNATURE))
    except OSError as error:
        raise ModelError(f"{path.name} cannot be read: {error.strerror}", "check its permissions") from error


def _digest(path: Path) -> str:
    digest = hashlib.sha256()
    for part in savedmodel.files(path) if path.is_dir() else (path,):
        if part != path:
            digest.update(f"{part.relative_to(path)}\0{part.stat().st_size}\0".encode())
        with part.open("rb") as file:
            while block := file.read(1 << 20):
                digest.update(block)
    return digest.hexdigest()
