"""Study files with made-up studies in them."""

from __future__ import annotations

from pathlib import Path

from dlas.explore.result import StudyResult
from dlas.explore.storage import SqliteStorage


def store(folder: Path, result: StudyResult, tried: int | None = None) -> Path:
    """Write a study as a run would, with its first ``tried`` points (all by default); returns its file."""
    path = folder / "study.db"
    storage = SqliteStorage(path)
    keys = [p.key for p in result.points]
    storage.put_study(
        result.name,
        {
            "keys": keys,
            "objectives": [str(o) for o in result.objectives],
            "command": result.command,
            "stack": result.stack,
            "environment": dict(result.environment),
            "facts": {k: v for k, v in result.facts.items() if k != "baseline"},
        },
    )
    for variant, rows in result.changes.items():
        storage.put_changes(result.name, variant, rows)
    add(storage, result, 0, len(keys) if tried is None else tried)
    storage.close()
    return path


def add(storage: SqliteStorage, result: StudyResult, first: int, last: int) -> None:
    """Points ``first`` to before ``last``."""
    for point in result.points[first:last]:
        storage.put_point(result.name, point)
