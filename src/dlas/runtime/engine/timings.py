"""What was measured before, so that it need not be measured again: kernels on shapes, and plans of networks."""

from __future__ import annotations

import contextlib
import json
import sqlite3
from collections.abc import Iterator
from pathlib import Path
from typing import Any

from dlas.core.cache import default_root, key_of

_FILE = "timing.sqlite"


class Timings:
    """A table of JSON values by content key, in the cache folder; losing it costs time only.

    Args:
        path: The database; ``timing.sqlite`` in the cache folder unless given.
    """

    def __init__(self, path: Path | None = None) -> None:
        self.path = path or default_root() / _FILE

    def get(self, *parts: Any) -> Any | None:
        """The stored value, or None."""
        with self._open() as database:
            found = database.execute("SELECT value FROM timings WHERE key = ?", (key_of(*parts),)).fetchone()
        return None if found is None else json.loads(found[0])

    def put(self, value: Any, *parts: Any) -> None:
        """Store ``value`` (fit for JSON)."""
        with self._open() as database:
            database.execute(
                "INSERT OR REPLACE INTO timings VALUES (?, ?)", (key_of(*parts), json.dumps(value))
            )

    def clear(self) -> None:
        """Forget everything."""
        with self._open() as database:
            database.execute("DELETE FROM timings")

    @contextlib.contextmanager
    def _open(self) -> Iterator[sqlite3.Connection]:
        self.path.parent.mkdir(parents=True, exist_ok=True)
        database = self._connect()
        try:
            with database:
                yield database
        finally:
            database.close()

    def _connect(self) -> sqlite3.Connection:
        for attempt in (1, 2):
            database = sqlite3.connect(self.path, timeout=30)
            try:
                database.execute(
                    "CREATE TABLE IF NOT EXISTS timings (key TEXT PRIMARY KEY, value TEXT NOT NULL)"
                )
                return database
            except sqlite3.DatabaseError:
                database.close()
                if attempt == 2:
                    raise
                self.path.unlink(missing_ok=True)  # damaged: what it held can be measured again
        raise AssertionError("unreachable")
