"""Results of finished mutants, one line of JSON each, so that a run that was stopped goes on where it was."""

from __future__ import annotations

import json
import os
from pathlib import Path
from typing import Any

from dlas.core.files import explain_write

_HINT = "choose another folder, or make room"


class Journal:
    """Lines of ``finished.jsonl`` in a folder; without a folder, nothing is kept."""

    def __init__(self, folder: Path | None) -> None:
        self._path = None if folder is None else folder / "finished.jsonl"
        text = self._path.read_text(errors="replace") if self._path and self._path.is_file() else ""
        self._known = _read(text)
        self._gap = "\n" if text and not text.endswith("\n") else ""

    def __len__(self) -> int:
        return len(self._known)

    def get(self, key: str) -> dict[str, Any] | None:
        """The result stored under ``key``."""
        return self._known.get(key)

    def put(self, key: str, result: dict[str, Any]) -> None:
        """Append a result in one write, which a kill leaves whole or cut off at the end; raises StorageError."""
        self._known[key] = result
        if self._path is None:
            return
        # A line that an earlier process did not finish must not run into this one.
        line = self._gap + json.dumps({"key": key, "result": result}) + "\n"
        self._gap = ""
        with explain_write(f"to {self._path}", _HINT):
            handle = os.open(self._path, os.O_WRONLY | os.O_APPEND | os.O_CREAT | os.O_CLOEXEC, 0o644)
            try:
                os.write(handle, line.encode())
            finally:
                os.close(handle)


def _read(text: str) -> dict[str, dict[str, Any]]:
    """Whatever lines are whole; others are done again."""
    found: dict[str, dict[str, Any]] = {}
    for line in text.splitlines():
        try:
            entry = json.loads(line)
            if isinstance(entry["result"], dict):
                found[str(entry["key"])] = entry["result"]
        except (ValueError, KeyError, TypeError):
            continue
    return found
