"""``dlas data``: the data sets that can be used, or what one of them holds."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import Json, say, size_text, write_json, write_table

if TYPE_CHECKING:
    from dlas.data.dataset import DatasetFacts
    from dlas.data.details import DatasetDetails

_CLASSES_SHOWN = 20


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("data")(data)


def data(
    place: Annotated[
        str, typer.Argument(help="A data set to describe, or a folder to look in; default DLAS_DATA.")
    ] = "",
    json: Json = False,
) -> None:
    """Data sets found in a folder and those that come with dlas; of a single one what it holds."""
    from dlas.core.paths import data_root, resolve
    from dlas.data.details import described
    from dlas.data.find import find_datasets

    one = described(place) if place else None
    if one is not None:
        _show_one(one, json)
        return
    found = find_datasets(resolve(place, "folder") if place else None)
    if json:
        write_json(found)
        return
    _show_all(found)
    if not place and data_root() is None:
        say("DLAS_DATA is not set: only what comes with dlas is shown")


def _show_all(found: Sequence[DatasetFacts]) -> None:
    rows = [
        (
            f.name,
            f.kind,
            "" if f.rows is None else f.rows,
            f.split,
            ", ".join(f.columns),
            len(f.classes) or "",
            size_text(f.size_bytes) if f.size_bytes else "",
            f.problem,
        )
        for f in found
    ]
    write_table(("name", "kind", "rows", "split", "columns", "classes", "size", "problem"), rows)


def _show_one(found: DatasetDetails, json: bool) -> None:
    facts = found.facts
    if json:
        more = {"samples": found.samples, "class_rows": found.class_rows, "groups": found.groups}
        write_json({**vars(facts), **more})
        return
    rows = [
        ("name", facts.name),
        ("path", facts.path),
        ("kind", facts.kind),
        ("rows", "" if facts.rows is None else facts.rows),
        ("split", facts.split),
        ("columns", ", ".join(facts.columns)),
        ("samples", found.samples),
        ("classes", _classes(found)),
        *((name, ", ".join(f"{who} ({n})" for who, n in own.items())) for name, own in found.groups.items()),
        ("size", size_text(facts.size_bytes) if facts.size_bytes else ""),
        ("problem", facts.problem),
    ]
    write_table(("", ""), [row for row in rows if row[1] != ""])


def _classes(found: DatasetDetails) -> str:
    """How many there are, and the first with their rows."""
    names, counts = found.facts.classes, found.class_rows
    total = max(len(names), len(counts))
    if not total:
        return ""
    shown = [
        (names[i] if i < len(names) else str(i)) + (f" ({counts[i]})" if i < len(counts) else "")
        for i in range(min(total, _CLASSES_SHOWN))
    ]
    return f"{total}: " + ", ".join(shown) + (", …" if total > _CLASSES_SHOWN else "")
