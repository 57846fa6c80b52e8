"""Checkpoints of training: all that a run needs to go on, after a kill, as if it had never stopped.

A checkpoint is one file: a line of JSON with what it belongs to and the hash of the rest, then tensors and plain
values as torch stores them, read without running any code. One that is damaged, or belongs to other weights, data,
options or code, is not used.
"""

from __future__ import annotations

import contextlib
import hashlib
import io
import json
import logging
import math
import os
import time
from collections.abc import Iterator
from contextvars import ContextVar
from dataclasses import dataclass
from pathlib import Path
from typing import Any

from dlas.core.errors import OptionError, StorageError
from dlas.core.files import write_atomic

log = logging.getLogger("dlas")

_FORMAT = "dlas checkpoint 1"
_INTERVAL_S = 10.0
_SHARE = 20  # saving takes at most one part in so many of the time
_HEADER_BYTES = 4096


@dataclass
class _Place:
    folder: Path
    given: int = 0


_place: ContextVar[_Place | None] = ContextVar("dlas_checkpoints", default=None)


@contextlib.contextmanager
def checkpoints_in(folder: Path | None) -> Iterator[None]:
    """Let every training inside the block keep its checkpoint in ``folder``, which is made when first needed.

    None lets none of them keep any: a method that writes its own, between trainings, has no use for others.

    The files stay until the caller, who knows when the result is safe, removes the folder.
    """
    token = _place.set(None if folder is None else _Place(Path(folder)))
    try:
        yield
    finally:
        _place.reset(token)


def next_checkpoint() -> Path | None:
    """File for the next training inside :func:`checkpoints_in`; None outside. The n-th gets the same one every time."""
    place = _place.get()
    if place is None:
        return None
    place.given += 1
    return place.folder / f"training-{place.given:03}.ckpt"


class Checkpoint:
    """The file of one training.

    Args:
        path: Where it is; the folder is made when first needed.
        identity: What the training depends on; only a file with the same one is read.

    Attributes:
        written: Whether this run has written it and still can.
    """

    def __init__(self, path: Path, identity: str) -> None:
        self.path = path
        self._identity = identity
        self._wait = self._interval = _interval()
        self._last = time.monotonic()
        self._usable = True
        self.written = False

    def read(self) -> dict[str, Any] | None:
        """The state last written by a training of the same identity, or None."""
        import torch

        try:
            with self.path.open("rb") as file:
                header = json.loads(file.readline(_HEADER_BYTES))
                if header["format"] != _FORMAT or header["identity"] != self._identity:
                    log.warning("%s belongs to another training: starting anew", self.path.name)
                    return None
                content = file.read(int(header["bytes"]) + 1)
            if hashlib.sha256(content).hexdigest() != header["sha256"]:
                raise ValueError("its content has changed")
            return torch.load(io.BytesIO(content), weights_only=True)
        except FileNotFoundError:
            return None
        except Exception as error:  # whatever the bytes in it do to a reader
            log.warning("%s is damaged, starting anew: %s", self.path.name, error)
            return None

    @property
    def due(self) -> bool:
        """Whether it is time to write again."""
        return self._usable and time.monotonic() - self._last >= self._wait

    def write(self, state: dict[str, Any]) -> None:
        """Replace the file by one with ``state``: tensors, plain values, and lists and dictionaries of these.

        Where that is impossible, the training goes on without checkpoints, and says so.
        """
        import torch

        started = time.monotonic()
        buffer = io.BytesIO()
        torch.save(state, buffer)
        content = buffer.getbuffer()
        header = {
            "format": _FORMAT,
            "identity": self._identity,
            "bytes": len(content),
            "sha256": hashlib.sha256(content).hexdigest(),
        }
        try:
            self.path.parent.mkdir(parents=True, exist_ok=True)
            write_atomic(self.path, b"\n".join((json.dumps(header).encode(), content)))
            self.written = True
        except (StorageError, OSError) as error:
            log.warning("training goes on without checkpoints: %s", error)
            self._usable = self.written = False
        self._last = time.monotonic()
        self._wait = max(self._interval, _SHARE * (self._last - started))


def _interval() -> float:
    """Seconds between checkpoints: ``DLAS_CHECKPOINT_SECONDS``, else 10."""
    given = os.environ.get("DLAS_CHECKPOINT_SECONDS", "")
    try:
        seconds = float(given or _INTERVAL_S)
    except ValueError:
        seconds = math.nan
    if not 0 <= seconds < math.inf:
        raise OptionError("DLAS_CHECKPOINT_SECONDS", given, "a number of seconds >= 0")
    return seconds
