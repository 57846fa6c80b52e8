"""``dlas data``: the data sets that can be used."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlas.cli._shared import Json, say, size_text, write_json, write_table


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("data")(data)


def data(
    folder: Annotated[Path | None, typer.Argument(help="Folder to look in; default DLAS_DATA.")] = None,
    json: Json = False,
) -> None:
    """Data sets found in a folder and those that come with dlas."""
    from dlas.core.errors import DataError
    from dlas.core.paths import data_root
    from dlas.data.find import find_datasets

    place = folder or data_root()
    if place is not None and not place.is_dir():
        raise DataError(f"{place}: no such folder", "give a folder, or set DLAS_DATA to one")
    found = find_datasets(place)
    if json:
        write_json(found)
        return
    rows = [
        (
            f["name"],
            f["kind"],
            f["rows"] if f["rows"] is not None else "",
            ", ".join(f["columns"]),
            len(f["classes"]) or "",
            size_text(f["bytes"]) if f["bytes"] else "",
            f.get("note", ""),
        )
        for f in found
    ]
    write_table(("name", "kind", "rows", "columns", "classes", "size", "note"), rows)
    if place is None:
        say("DLAS_DATA is not set: only what comes with dlas is shown")
