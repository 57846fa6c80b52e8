"""``dlas report``: a stored study as one HTML page."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlas.cli._shared import say
from dlas.cli.study import stored_result


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("report")(report)


def report(
    database: Annotated[Path, typer.Argument(help="Study file, or the folder that holds it.")] = Path(
        "dlas-out"
    ),
    name: Annotated[str, typer.Option(help="Study; default the one that ran last.")] = "",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="Page to write; default report.html beside the study file."),
    ] = None,
) -> None:
    """Write the HTML report of a stored study."""
    from dlas.report.html import write_report

    path = database / "study.db" if database.is_dir() else database
    target = output or path.with_name("report.html")
    write_report(stored_result(path, name), target)
    say(f"wrote {target}")
