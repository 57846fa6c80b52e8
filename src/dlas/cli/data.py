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
    from dlas.core.paths import data_root
    from dlas.data.find import find_datasets

    found = find_datasets(folder)
    if json:
        write_json(found)
        return
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
    if folder is None and data_root() is None:
        say("DLAS_DATA is not set: only what comes with dlas is shown")
