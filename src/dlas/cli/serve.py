"""``dlas serve``: stored studies in the browser."""

from __future__ import annotations

import json as json_format
import sys
from pathlib import Path
from typing import Annotated

import typer

from dlas.cli._shared import Json, Out, say


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("serve")(serve)


def serve(
    paths: Annotated[
        list[str] | None,
        typer.Argument(
            metavar="[PATH...]",
            help="Folders, study files, stack files or names of studies; default all of --out.",
        ),
    ] = None,
    out: Out = Path("dlas-out"),
    host: Annotated[
        str, typer.Option(help="Address to bind to; another than this machine's own lets others read.")
    ] = "127.0.0.1",
    port: Annotated[int, typer.Option(help="Port; 0 takes a free one.")] = 8000,
    open_browser: Annotated[bool, typer.Option("--open", help="Open it in the browser.")] = False,
    json: Json = False,
) -> None:
    """Show stored studies, also running ones, in the browser until Ctrl-C; nothing leaves this machine."""
    from dlas.report.server import serve as serve_studies

    def ready(url: str) -> None:
        sys.stdout.write((json_format.dumps({"url": url}) if json else url) + "\n")
        sys.stdout.flush()
        say("Ctrl-C ends it")
        if open_browser:
            _open(url)

    serve_studies(paths or [], out=out, host=host, port=port, ready=ready, tell=say)


def _open(url: str) -> None:
    """Open a browser without waiting for it: some stay in the foreground."""
    import threading
    import webbrowser

    def show() -> None:
        if not webbrowser.open(url):
            say("no browser was found; open the address yourself")

    threading.Thread(target=show, daemon=True).start()
