"""TensorFlow Lite flatbuffers, read and written over the schema that ai-edge-litert ships.

``rules.py`` holds the table of operators and ``ops/`` their translations, each in both directions. ``reader.py`` and
``writer.py`` walk the graph; ``layout.py`` explains how NHWC and NCHW are brought together.
"""

from __future__ import annotations

import hashlib
from collections.abc import Mapping
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, ClassVar

from dlas.core.errors import DlasError, ModelError
from dlas.core.files import write_atomic
from dlas.core.options import option
from dlas.graph.format import Format, Written, formats
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.preprocessing import Preprocessing

Layouts = dict[str, dict[str, tuple[int, ...]]]


@dataclass(frozen=True)
class TfliteOptions:
    """Options of the tflite format.

    Attributes:
        batch: Size that a dynamic first axis is bound to when writing (a tflite file has fixed shapes).
        dynamic_batch: When reading, leave the first axis open where the file and its operators allow it.
    """

    batch: int = option(1, "size of the batch axis in a written file", low=1, use="writing")
    dynamic_batch: bool = option(
        True, "leave the batch axis open when reading, where the file allows it", use="reading"
    )


@formats.register("tflite")
class Tflite(Format):
    """TensorFlow Lite: float32, float16 weights, dynamic range, int8 and uint8."""

    name = "tflite"
    summary = "TensorFlow Lite flatbuffers: float32, float16 weights, int8 and uint8"
    Options = TfliteOptions
    requires: ClassVar[Mapping[str, str]] = {"ai_edge_litert": "tflite"}
    suffixes = (".tflite",)
    runtime = "litert"
    can_write = True

    @classmethod
    def recognises(cls, head: bytes) -> bool:
        """Whether the file identifier at byte 4 is ``TFL3``."""
        return head[4:8] == b"TFL3"

    def load(self, path: Path) -> Model:
        """Read a file; the Model keeps its names, order, dtypes and NHWC shapes.

        Raises:
            ModelError: Missing, truncated, of another type, or not a valid network.
            UnsupportedError: It uses operators that cannot be expressed; all of them are named with their count.
            MissingDependencyError: ai-edge-litert is not installed.
        """
        data = _read(path)
        return from_bytes(data, path.stem, path.name, dynamic_batch=self.options.dynamic_batch)

    def save(self, model: Model, path: Path) -> Written:
        """Write ``model``; its 4-D NCHW inputs become NHWC, see :func:`read_layouts`.

        Raises:
            UnsupportedError: Operators that tflite lacks (all named), or shapes that are not fixed.
        """
        data, notes = to_bytes(model, self.options.batch)
        write_atomic(path, data)
        free = [s.name for s in model.inputs if s.shape and isinstance(s.shape[0], str)]
        if free:
            fixed = f"the batch of {', '.join(free[:8])} is fixed to {self.options.batch} (option batch)"
            notes = (fixed, *notes)
        return Written(path, notes)


def from_bytes(data: bytes, name: str, file_name: str = "", *, dynamic_batch: bool = True) -> Model:
    """A Model from the content of a tflite file; raises as :meth:`Tflite.load`."""
    from dlas.graph.formats.tflite.flat import parse
    from dlas.graph.formats.tflite.reader import to_onnx

    network = parse(data, file_name or name)
    proto, notes = to_onnx(network, name, dynamic_batch)
    stored = network.metadata
    source = {
        "format": "tflite",
        "path": file_name,
        "sha256": hashlib.sha256(data).hexdigest(),
        "framework": network.description,
    }
    step = Step("import", {"format": "tflite"}, step_versions("onnx", "ai-edge-litert"), notes)
    return Model.from_proto(
        proto,
        name,
        source=source,
        preprocessing=_restored(stored, proto.graph.input),
        history=(*_past(stored), step),
    )


def to_bytes(model: Model, batch: int = 1) -> tuple[bytes, tuple[str, ...]]:
    """The content of a tflite file, and notes on what could not be kept; raises as :meth:`Tflite.save`."""
    from dlas.graph.formats.tflite.lowering import lower
    from dlas.graph.formats.tflite.writer import Writer
    from dlas.graph.passes import bind_batch, simplify

    # With all sizes known there is nothing to bind, whatever the first axis stands for.
    fixed = batch == 1 and not any(spec.is_dynamic for spec in model.inputs)
    graph = (model if fixed else bind_batch(model, batch)).editable()
    simplify(graph)
    graph = lower(graph)
    graph.graph.sort()
    writer = Writer(graph.graph)
    metadata: dict[str, Any] = {
        "name": model.name,
        "source": dict(model.source),
        "history": [step.to_dict() for step in model.history],
    }
    if model.preprocessing is not None:
        metadata["preprocessing"] = asdict(model.preprocessing)
    return writer.write(metadata), tuple(writer.notes)


def read_layouts(source: str | Path | bytes) -> Layouts:
    """How the tensors of a file that dlas wrote relate to those of the Model it came from.

    Args:
        source: Path or content of a tflite file.

    Returns:
        ``{"inputs": {name: perm}, "outputs": {name: perm}}``: feed ``x.transpose(perm)``, and an output is
        ``y.transpose(argsort(perm))`` of what the interpreter gives. Empty for a file that dlas did not write.

    Raises:
        ModelError: Not a tflite file, or its metadata is damaged.
    """
    from dlas.graph.formats.tflite.flat import read_metadata

    data, name = (
        (source, "the file") if isinstance(source, bytes) else (_read(Path(source)), Path(source).name)
    )
    stored = read_metadata(data, name).get("layouts", {})
    try:
        return {
            side: {str(tensor): tuple(int(a) for a in perm) for tensor, perm in stored.get(side, {}).items()}
            for side in ("inputs", "outputs")
        }
    except (AttributeError, TypeError, ValueError) as error:
        raise ModelError(
            f"{name}: the layouts that dlas stored are damaged: {error}", "export it again"
        ) from error


def _read(path: Path) -> bytes:
    try:
        return path.read_bytes()
    except OSError as error:
        raise ModelError(f"{path} cannot be read: {error.strerror}", "check the path") from error


def _restored(stored: Mapping[str, Any], inputs: Any) -> Preprocessing | None:
    """The preprocessing that dlas stored, with the layout that the file's own input has."""
    fields = stored.get("preprocessing")
    if not fields:
        return None
    try:
        found = Preprocessing.from_dict(fields)
        layouts = stored.get("layouts", {}).get("inputs", {})
        if len(inputs) == 1 and layouts.get(inputs[0].name) == [0, 2, 3, 1] and found.layout == "NCHW":
            found = replace(found, layout="NHWC")
        return found
    except (DlasError, AttributeError, TypeError) as error:
        raise ModelError(
            f"the preprocessing that dlas stored is damaged: {error}", "export it again"
        ) from error


def _past(stored: Mapping[str, Any]) -> tuple[Step, ...]:
    try:
        return tuple(
            Step(s["action"], s["options"], s["versions"], tuple(s["notes"]))
            for s in stored.get("history", ())
        )
    except (KeyError, TypeError) as error:
        raise ModelError(f"the history that dlas stored is damaged: {error}", "export it again") from error


__all__ = ["Tflite", "TfliteOptions", "from_bytes", "read_layouts", "to_bytes"]
