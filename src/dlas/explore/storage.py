"""Where the rows of a study are kept.

A storage holds studies by name and, per study, one row per point key. Rows are written when a point is finished, in
one transaction, so a killed study has each finished point exactly once. SQLite is the default; anything that has
these few methods can stand in for it.
"""

from __future__ import annotations

import contextlib
import json
import sqlite3
import time
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from pathlib import Path
from typing import Any, Protocol

from dlas.core.errors import DlasError
from dlas.core.figure import Record
from dlas.explore.result import Point

SCHEMA = 2  # 2: what compression changed has a table of its own, because several processes add to it


_OWN = {("table", "studies"), ("table", "points"), ("table", "changes")}
_FACTS: Mapping[str, type] = {
    "keys": list, "objectives": list, "facts": dict, "environment": dict, "command": str, "stack": str,
}  # fmt: skip
_MALFORMED = (ValueError, TypeError, LookupError, AttributeError, RecursionError)


class Storage(Protocol):
    """What a study needs of a place to keep its rows."""

    def put_study(self, name: str, facts: Mapping[str, Any]) -> None:
        """Create the study or replace what is known about it (stack file, command, facts)."""
        ...

    def study(self, name: str) -> dict[str, Any]:
        """What :meth:`put_study` was given; raises DlasError when there is no such study."""
        ...

    def studies(self) -> list[str]:
        """Names of all studies, the one changed last first."""
        ...

    def put_changes(self, study: str, pipeline: str, changes: list[dict[str, Any]]) -> None:
        """Store what a compression pipeline changed, layer by layer."""
        ...

    def changes(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """What each pipeline changed."""
        ...

    def put_point(self, study: str, point: Point) -> None:
        """Store a finished point; a second write of the same key replaces the first."""
        ...

    def points(self, study: str, keys: Sequence[str] | None = None) -> dict[str, Point]:
        """Finished points of a study by key: all, or those of ``keys``."""
        ...

    def forget(self, study: str, keys: list[str]) -> None:
        """Remove points, to be tried again."""
        ...

    def close(self) -> None:
        """Give back what is held."""
        ...


@dataclass(frozen=True)
class Stamp:
    """When a study was changed last, and what differs after every change.

    Attributes:
        changed: Seconds since 1970.
        token: Another text after every write.
    """

    changed: float
    token: str


class SqliteStorage:
    """A study file: SQLite in WAL mode, safe to read while a study runs.

    Raises:
        DlasError: The file is not a study file, is newer than this program, or cannot be read or written (methods
            raise it too: a disk can fill up later).
    """

    def __init__(self, path: Path, *, create: bool = True) -> None:
        self.path = path
        if not create and not path.exists():
            raise DlasError(f"{path}: no such study file", "run `dlas run` or `dlas study run` first")
        try:
            if create:
                path.parent.mkdir(parents=True, exist_ok=True)
            with self._explained():
                self._db = sqlite3.connect(path, timeout=30.0, isolation_level=None)
            self._db.row_factory = sqlite3.Row
        except OSError as error:
            raise self._refusal(error) from error
        try:
            with self._explained():
                self._db.execute("PRAGMA trusted_schema = OFF")
                self._refuse_foreign()
                self._db.execute("PRAGMA journal_mode = WAL")
                self._migrate()
        except BaseException:
            self._db.close()
            raise

    def _refusal(self, error: Exception) -> DlasError:
        return DlasError(
            f"{self.path}: cannot be used as a study file: {error}", "name another folder with --out"
        )

    @contextlib.contextmanager
    def _explained(self) -> Iterator[None]:
        try:
            yield
        except (
            sqlite3.Error,
            UnicodeDecodeError,
        ) as error:  # no study file, damaged, locked for long, disk full
            raise self._refusal(error) from error

    @contextlib.contextmanager
    def _understood(self) -> Iterator[None]:
        """Rows that are there but make no sense are a damaged file."""
        try:
            yield
        except _MALFORMED as error:
            cause = " ".join(str(error).split())[:160]
            raise DlasError(
                f"{self.path}: the study in it is damaged: {type(error).__name__}: {cause}",
                "copy it again, or start a new one with --out",
            ) from error

    def _refuse_foreign(self) -> None:
        """Triggers, views, generated columns and the like would run with our queries; we write none of them."""
        for kind, name in self._db.execute("SELECT type, name FROM sqlite_master").fetchall():
            hidden = kind == "table" and any(
                column["hidden"]
                for column in self._db.execute("SELECT hidden FROM pragma_table_xinfo(?)", (name,))
            )
            if hidden or (
                (kind, name) not in _OWN and not (kind == "index" and name[:17] == "sqlite_autoindex_")
            ):
                raise DlasError(
                    f"{self.path}: it holds the {kind} {str(name)[:60]!r}, which no dlas wrote",
                    "name another study file",
                )

    def _migrate(self) -> None:
        version = self._db.execute("PRAGMA user_version").fetchone()[0]
        if version > SCHEMA:
            raise DlasError(
                f"{self.path}: written by a newer dlas (schema {version}, this one knows {SCHEMA})",
                "upgrade dlas",
            )
        if version == SCHEMA:
            return
        with self._transaction():
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS studies (name TEXT PRIMARY KEY, facts TEXT NOT NULL, changed REAL)"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS points (study TEXT NOT NULL, key TEXT NOT NULL, choices TEXT NOT NULL,"
                " outcome TEXT NOT NULL, baseline INTEGER NOT NULL, record TEXT NOT NULL, seconds REAL NOT NULL,"
                " finished REAL NOT NULL, PRIMARY KEY (study, key))"
            )
            self._db.execute(
                "CREATE TABLE IF NOT EXISTS changes (study TEXT NOT NULL, pipeline TEXT NOT NULL, rows TEXT NOT NULL,"
                " PRIMARY KEY (study, pipeline))"
            )
            for row in self._db.execute("SELECT name, facts FROM studies").fetchall():
                with self._understood():
                    for pipeline, rows in json.loads(row["facts"]).get("changes", {}).items():
                        self._insert_changes(row["name"], pipeline, rows)
            self._db.execute(f"PRAGMA user_version = {SCHEMA}")

    @contextlib.contextmanager
    def _transaction(self) -> Iterator[None]:
        with self._explained():
            self._db.execute("BEGIN IMMEDIATE")
            try:
                yield
                self._db.execute("COMMIT")
            except BaseException:
                if self._db.in_transaction:  # a full disk makes SQLite roll back by itself
                    self._db.execute("ROLLBACK")
                raise

    def _rows(self, query: str, *values: str) -> list[sqlite3.Row]:
        with self._explained():
            return self._db.execute(query, values).fetchall()

    def put_study(self, name: str, facts: Mapping[str, Any]) -> None:
        """Create or replace; see Storage."""
        with self._transaction():
            self._db.execute(
                # The newest is the one put last, even where the clock went back in between.
                "INSERT INTO studies VALUES (?, ?, MAX(?, (SELECT COALESCE(MAX(changed), 0) + 0.001 FROM studies)))"
                " ON CONFLICT (name) DO UPDATE SET facts = excluded.facts,"
                " changed = excluded.changed",
                (name, json.dumps(dict(facts)), time.time()),
            )

    def study(self, name: str) -> dict[str, Any]:
        """Facts of one study; see Storage."""
        rows = self._rows("SELECT facts FROM studies WHERE name = ?", name)
        if not rows:
            raise DlasError(
                f"{self.path} holds no study {name!r}", "it holds: " + (", ".join(self.studies()) or "none")
            )
        with self._understood():
            facts = {**{key: kind() for key, kind in _FACTS.items()}, **json.loads(rows[0]["facts"])}
            for key, kind in _FACTS.items():
                if not isinstance(facts[key], kind):
                    raise TypeError(f"{key} is {facts[key]!r:.40}")
            return facts

    def studies(self) -> list[str]:
        """Names, newest first; see Storage."""
        return [str(r["name"]) for r in self._rows("SELECT name FROM studies ORDER BY changed DESC")]

    def stamp(self, study: str) -> Stamp:
        """When a study was changed last; raises DlasError when there is no such study."""
        rows = self._rows(
            "SELECT changed, (SELECT COUNT(*) || ' ' || TOTAL(finished) || ' ' || MAX(finished) FROM points"
            " WHERE study = name) AS token, (SELECT MAX(finished) FROM points WHERE study = name) AS finished"
            " FROM studies WHERE name = ?",
            study,
        )
        if not rows:
            raise DlasError(f"{self.path} holds no study {study!r}", "it was removed meanwhile")
        with self._understood():
            changed = max(float(rows[0]["changed"]), float(rows[0]["finished"] or 0.0))
            return Stamp(changed, f"{rows[0]['changed']!r} {rows[0]['token']}")

    def put_changes(self, study: str, pipeline: str, changes: list[dict[str, Any]]) -> None:
        """Store what one pipeline changed; see Storage."""
        with self._transaction():
            self._insert_changes(study, pipeline, changes)

    def _insert_changes(self, study: str, pipeline: str, changes: list[dict[str, Any]]) -> None:
        self._db.execute(
            "INSERT OR REPLACE INTO changes VALUES (?, ?, ?)", (study, pipeline, json.dumps(changes))
        )

    def changes(self, study: str) -> dict[str, list[dict[str, Any]]]:
        """What all pipelines changed; see Storage."""
        rows = self._rows("SELECT pipeline, rows FROM changes WHERE study = ?", study)
        with self._understood():
            found = {str(row["pipeline"]): json.loads(row["rows"]) for row in rows}
            if not all(isinstance(r, list) and all(isinstance(c, dict) for c in r) for r in found.values()):
                raise TypeError("changes that are no table")
            return found

    def put_point(self, study: str, point: Point) -> None:
        """Store one point; see Storage."""
        record = json.dumps(point.record.to_dict())
        with self._transaction():
            self._db.execute(
                "INSERT OR REPLACE INTO points VALUES (?, ?, ?, ?, ?, ?, ?, ?)",
                (
                    study,
                    point.key,
                    json.dumps(dict(point.choices)),
                    str(point.record.outcome),
                    int(point.baseline),
                    record,
                    point.seconds,
                    time.time(),
                ),
            )

    def points(self, study: str, keys: Sequence[str] | None = None) -> dict[str, Point]:
        """Points by key; see Storage."""
        if keys is None:
            rows = self._rows("SELECT * FROM points WHERE study = ? ORDER BY rowid", study)
        else:
            query = "SELECT * FROM points WHERE study = ? AND key = ?"
            rows = [row for key in keys for row in self._rows(query, study, key)]
        with self._understood():
            return {str(row["key"]): _point(row) for row in rows}

    def forget(self, study: str, keys: list[str]) -> None:
        """Remove points; see Storage."""
        with self._transaction():
            self._db.executemany(
                "DELETE FROM points WHERE study = ? AND key = ?", [(study, key) for key in keys]
            )

    def close(self) -> None:
        """Close the file; see Storage."""
        self._db.close()


def _point(row: sqlite3.Row) -> Point:
    choices = json.loads(row["choices"])
    record = Record.from_dict(json.loads(row["record"]))
    texts = (*choices, *choices.values(), record.reason, record.stderr_tail)
    if not all(isinstance(text, str) for text in texts) or not isinstance(record.facts, dict):
        raise TypeError(f"the point {str(row['key'])[:20]!r} has choices that are no texts, or no facts")
    return Point(str(row["key"]), choices, record, bool(row["baseline"]), float(row["seconds"]))
