"""What runs in the worker: one attempt with a hostile file, with its time and the memory it took."""

from __future__ import annotations

import time
from collections.abc import Callable
from pathlib import Path
from typing import Any

from dlas.core.errors import DlasError
from dlas.core.worker import child_memory, reset_peak


def attempt(kind: str, path: str) -> dict[str, Any]:
    """Do with the file what dlas would do, and say what came of it."""
    action = _ACTIONS[kind]
    action(None)  # imports are no cost of the file
    reset_peak()
    before, start = child_memory()["rss_bytes"], time.monotonic()
    error: BaseException | None = None
    try:
        action(Path(path))
    except BaseException as caught:
        error = caught
    return {
        "error": type(error).__name__ if error else "",
        "ours": isinstance(error, DlasError),
        "message": str(error) if error else "",
        "code": getattr(error, "exit_code", None),
        "seconds": time.monotonic() - start,
        "growth": child_memory()["peak_rss_bytes"] - before,
    }


def _load(path: Path | None) -> None:
    from dlas.graph import format as graph_format

    if path is not None:
        graph_format.load_model(path)


def _simplify(path: Path | None) -> None:
    import onnxscript.optimizer  # noqa: F401

    from dlas.graph.format import load_model
    from dlas.graph.passes import simplified

    if path is not None:
        simplified(load_model(path))


def _torch(path: Path | None) -> None:
    import torch  # noqa: F401

    from dlas.graph.formats._torch_checkpoint import assemble, read_state

    if path is not None:
        if path.suffix == ".pt2":
            _load(path)
        else:
            assemble(path.name, read_state(path), "", ())


def _data(path: Path | None) -> None:
    import pyarrow.parquet  # noqa: F401

    from dlas.data.find import load_dataset
    from dlas.data.preprocess import prepare
    from dlas.graph.preprocessing import Preprocessing

    if path is not None:
        prepare(load_dataset(path), Preprocessing(height=8, width=8))


def _study(path: Path | None) -> None:
    from dlas.explore.storage import SqliteStorage
    from dlas.explore.study import load_result

    if path is not None:
        storage = SqliteStorage(path)
        try:
            for name in storage.studies():
                load_result(storage, name)
            storage.put_study("again", {"keys": []})
        finally:
            storage.close()


def _stack(path: Path | None) -> None:
    from dlas.explore.spec import read_spec

    if path is not None:
        read_spec(path)


_ACTIONS: dict[str, Callable[[Path | None], None]] = {
    "load": _load,
    "simplify": _simplify,
    "torch": _torch,
    "data": _data,
    "study": _study,
    "stack": _stack,
}
