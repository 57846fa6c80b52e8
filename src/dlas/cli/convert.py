"""``dlas convert``: from one file format to another, with proof."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlas.cli._shared import (
    Architecture,
    Data,
    Json,
    Split,
    check_place,
    check_target,
    guarded_target,
    pairs,
    say,
    size_text,
    write_json,
)
from dlas.cli.compare import show


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("convert")(convert)


def convert(
    source: Annotated[str, typer.Argument(help="Model file to read.")],
    target: Annotated[Path, typer.Argument(help="File to write; its ending names the format.")],
    data: Data = "",
    split: Split = "",
    architecture: Architecture = "",
    read: Annotated[
        list[str] | None,
        typer.Option(
            help="Option for reading the source, such as signature=serving; see `dlas list formats`."
        ),
    ] = None,
    write: Annotated[
        list[str] | None,
        typer.Option(help="Option for writing the target, such as batch=4; see `dlas list formats`."),
    ] = None,
    converter: Annotated[
        str,
        typer.Option(
            "--with",
            metavar="CONVERTER",
            help="Tool that writes the target instead of dlas, such as onnx2tf; see `dlas list converters`.",
        ),
    ] = "",
    check: Annotated[bool, typer.Option("--check/--no-check", help="Compare the two files.")] = True,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing file.")] = False,
    json: Json = False,
) -> int:
    """Convert a model file; says what could not be kept, and whether the result is still right."""
    from dlas import api

    if converter:
        from dlas.runtime.converter import converter_for

        for path in converter_for(converter).files(target):
            check_place(path, force)
    else:
        check_target(target, force)
    rows = api.dataset(data, split)
    with guarded_target(target, force):
        done = api.convert(
            source,
            target,
            architecture=architecture,
            data=rows,
            check=check,
            read=pairs("--read", read or ()),
            write=pairs("--write", write or ()),
            converter=converter,
            tell=lambda t: say("  " + t),
        )
    if json:
        write_json(done.to_dict())
    else:
        say(f"wrote {target} ({size_text(target.stat().st_size)})")
        for note in (*done.read, *done.written.notes):
            say(f"note: {note}")
        if done.check is not None:
            show(done.check)
        elif done.why_unchecked:
            say(f"not checked: {done.why_unchecked}")
    return 0 if done.check is None or done.check.right else 1
