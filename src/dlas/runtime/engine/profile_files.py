"""A profile as a file: JSON, CSV, or a trace for Chrome and Perfetto."""

from __future__ import annotations

import csv
import io
import json
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from dlas.core.errors import OptionError
from dlas.core.files import write_atomic
from dlas.runtime.engine.profile import Profile


def write_profile(profile: Profile, path: Path) -> None:
    """Write as the ending of ``path`` says: ``.trace.json`` (Chrome's tracing format), ``.json`` or ``.csv``.

    Raises:
        OptionError: Another ending.
        StorageError: The folder does not exist or cannot be written, or the disk is full.
    """
    write_atomic(path, writer_for(path)(profile))


def writer_for(path: Path) -> Callable[[Profile], str]:
    """What writes files of this ending; raises OptionError where nothing does."""
    for ending, writer in _WRITERS.items():
        if path.name.endswith(ending):
            return writer
    raise OptionError("-o", str(path), "a file that ends in .json, .csv or .trace.json")


def as_json(profile: Profile) -> str:
    """Everything."""
    return json.dumps(profile.to_dict(), indent=1) + "\n"


def as_csv(profile: Profile) -> str:
    """A line per step."""
    rows: Sequence[dict[str, Any]] = [
        {k: v for k, v in row.to_dict().items() if k != "nodes"} for row in profile.rows
    ]
    text = io.StringIO()
    writer = csv.DictWriter(text, fieldnames=list(rows[0]) if rows else ["name"], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def as_trace(profile: Profile) -> str:
    """One run with the median time of every step, for chrome://tracing and Perfetto."""
    events: list[dict[str, Any]] = [
        {
            "name": "process_name", "ph": "M", "pid": 1, "tid": 1,
            "args": {"name": f"{profile.model} on {profile.backend}, {profile.threads} thread(s)"},
        }
    ]  # fmt: skip
    start = 0.0
    for row in profile.rows:
        arguments = {
            k: v for k, v in row.to_dict().items() if k not in ("name", "milliseconds") and v is not None
        }
        taken = 1e3 * row.milliseconds
        at = {"ph": "X", "pid": 1, "tid": 1, "ts": start, "dur": taken}
        events.append({"name": row.name, "cat": row.op, **at, "args": arguments})
        start += taken
    return json.dumps({"displayTimeUnit": "ns", "traceEvents": events}, indent=1) + "\n"


_WRITERS: dict[str, Callable[[Profile], str]] = {".trace.json": as_trace, ".json": as_json, ".csv": as_csv}
