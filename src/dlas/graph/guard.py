"""The front door for model files: read in a process of its own, under a limit of time and memory.

Readers check what a file claims before they believe it, but they stand on native code (protobuf, the ONNX checker and
version converter, PyTorch, TensorFlow) that a crafted file may crash, hang or inflate. Whatever happens in there, the
caller gets a Model or one line.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping
from dataclasses import replace
from pathlib import Path
from typing import TYPE_CHECKING, Any

from dlas.core import errors
from dlas.core.errors import DlasError, ModelError
from dlas.core.figure import Outcome
from dlas.core.worker import Worker, WorkerFailure
from dlas.graph.weights import WeightFile

if TYPE_CHECKING:
    from dlas.graph.model import Model

_SECONDS_PER_BYTE = 1 / 20e6  # beside the format's own time: a file of 1 GB gets 50 s more
_LARGEST = (
    2_000_000_000  # bytes that count: nothing larger is read, however large a file (with holes) says it is
)
_MEMORY_PER_BYTE = 8  # beside the format's own need: parsed, checked, inferred and serialised copies


def import_model(path: Path, architecture: str = "", **given: Any) -> Model:
    """Read a network from a file of any format, safely.

    Args:
        path: Model file, or a folder that a format knows.
        architecture: For formats that have the option: bare checkpoints.
        given: Options of the format's reader.

    Raises:
        OptionError: An option has a value that is not accepted, or would be ignored.
        UnknownNameError: The format has no such option.
        ModelError: The file is missing, damaged or hostile: its reader crashed or went beyond the limits.
        UnsupportedError: It uses operators that cannot be expressed; all are named.
        MissingDependencyError: The library that reads it is not installed.
    """
    found = _imported(path, architecture, given, "dlas.graph.guard:_read")
    assert not isinstance(found, WeightFile), "only _inspect answers with weights"
    return found


def import_contents(path: Path, architecture: str = "") -> Model | WeightFile:
    """As :func:`import_model`, but a file of weights that no network can be made of is described instead of refused.

    Where the user names an architecture, it must fit.
    """
    return _imported(path, architecture, {}, "dlas.graph.guard:_inspect")


def _imported(path: Path, architecture: str, given: Mapping[str, Any], reader: str) -> Model | WeightFile:
    # The child imports while this process does the same: they overlap on two cores.
    with Worker(name="reader", preload=("dlas.graph.format",)) as worker:
        from dlas.graph.format import Format, identify
        from dlas.graph.model import Model

        member = identify(path)
        size = _size([path])
        worker.memory_bytes = member.load_memory + _MEMORY_PER_BYTE * size
        options = dict(given)
        if architecture:
            options["architecture"] = architecture
        member.reading(
            path, **options
        )  # a wrong option is the caller's mistake: told before anything is read
        limit = member.load_seconds + _SECONDS_PER_BYTE * size
        place = str(path.absolute())
        try:
            if member.companions.__func__ is not Format.companions.__func__:
                # Only the file says which others belong to it, so it is asked in there.
                size += worker.call("dlas.graph.guard:_companion_bytes", place, timeout_s=limit)
                size = min(size, _LARGEST)
                worker.memory_bytes = member.load_memory + _MEMORY_PER_BYTE * size
                limit = member.load_seconds + _SECONDS_PER_BYTE * size
            answer = worker.call(reader, place, options, timeout_s=limit)
        except WorkerFailure as failure:
            raise _explained(path, failure) from failure
        if "refusal" in answer:
            raise _refusal(answer["refusal"])
        if "weights" in answer:
            return WeightFile.from_dict(answer["weights"])
        import onnx

        return Model.from_proto(onnx.ModelProto.FromString(answer["model"]))


def _read(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """In the child: the network as ONNX bytes, or the refusal as plain values."""
    from dlas.graph.format import load_model

    try:
        return {"model": load_model(Path(path), **options).to_bytes()}
    except DlasError as error:
        kind = next(c.__name__ for c in type(error).__mro__ if getattr(errors, c.__name__, None) is c)
        return {"refusal": {"kind": kind, "message": error.message, "hint": error.hint}}


def _inspect(path: str, options: dict[str, Any]) -> dict[str, Any]:
    """In the child: as :func:`_read`, or the weights and why they are no network."""
    from dlas.graph.format import identify

    answer = _read(path, options)
    if "refusal" not in answer or "architecture" in options:
        return answer
    try:
        found = identify(Path(path)).weights(Path(path))
    except DlasError:  # the refusal says more
        return answer
    if found is None:
        return answer
    return {"weights": replace(found, note=answer["refusal"]["message"]).to_dict()}


def _refusal(refusal: dict[str, str]) -> DlasError:
    """The error that the child raised, of the same class; its own constructor may take other arguments."""
    kind = getattr(errors, refusal["kind"])
    error = kind.__new__(kind)
    DlasError.__init__(error, refusal["message"], refusal["hint"])
    return error


def _explained(path: Path, failure: WorkerFailure) -> DlasError:
    what = "took too long" if failure.outcome == Outcome.TIMEOUT else "failed"
    hint = "the file is damaged, made to do harm, or more than this reader was made for; download or export it again"
    return ModelError(f"{path.name}: reading it {what}: {failure.reason}", hint)


def _companion_bytes(path: str) -> int:
    """In the child: bytes of the other files that belong to a model file, or of what is in a folder."""
    from dlas.graph.format import companions

    return _size([p for p in companions(Path(path)) if p.is_file() and p != Path(path)])


def _size(files: Iterable[Path]) -> int:
    """Bytes of files; a folder counts nothing."""
    return min(_LARGEST, sum(p.stat().st_size for p in files if p.is_file()))
