"""``dlas localize``: where does a converted network go wrong, and why?"""

from __future__ import annotations

import os
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import Architecture, Data, Json, Split, say, write_json, write_table
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.verify.localize.report import LocalizeReport

_SHOWN = 20  # faults in the table; a conversion with more is another network
_NOTES = 3

Budget = Annotated[float, typer.Option("--budget", help="Seconds for the search.", min=1)]


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("localize")(localize)


def localize(
    source: Annotated[str, typer.Argument(help="The network that is right by definition.")],
    target: Annotated[str, typer.Argument(help="Its conversion; none with --path.")] = "",
    path: Annotated[
        str,
        typer.Option(help="A back end that gives other answers on the same network, such as tvm:O3."),
    ] = "",
    data: Data = "",
    split: Split = "",
    rows: Annotated[int, typer.Option(help="Samples to feed at most.", min=1)] = 32,
    budget: Budget = 300.0,
    reproducers: Annotated[
        Path | None,
        typer.Option(help="Folder for one small ONNX file per fault, with inputs and the expected result."),
    ] = None,
    architecture: Architecture = "",
    json: Json = False,
) -> int:
    """Find the operators of a conversion (or on a back end) that do something else, and what is wrong with them."""
    from dlas import api

    if reproducers is not None:
        _check_folder(reproducers)
    found = api.localize(
        source,
        target or None,
        path=path,
        data=data or None,
        split=split,
        rows=rows,
        budget_s=budget,
        architecture=architecture,
        tell=lambda text: say("  " + text),
    )
    written = found.write_reproducers(reproducers) if reproducers is not None else []
    if json:
        write_json({**found.to_dict(), "reproducers": [str(p) for p in written]})
    else:
        _show(found)
        for file in written:
            say(f"reproducer {file}, samples in {file.with_suffix('.npz').name}")
    return int(bool(found.faults) or not found.explained)


def _check_folder(folder: Path) -> None:
    """Refuse a place for a folder that cannot be one, before any work is done for it."""
    there = next((p for p in (folder, *folder.parents) if p.exists()), Path())
    if not there.is_dir() or not os.access(there, os.W_OK | os.X_OK):
        what = "not writable" if there.is_dir() else "no folder"
        raise OptionError("--reproducers", str(folder), f"a folder to write to; {there} is {what}")


def _show(found: LocalizeReport) -> None:
    kind = "random " if found.random else ""
    flips = "" if found.flips is None else f", {found.flips} of {found.rows} labels differ"
    say(
        f"{found.target} against {found.source}: measured on {found.rows} {kind}samples{flips}; tensors that agree "
        f"within {found.tolerance:g}: {found.matched}, typically within {found.typical:.1g}"
    )
    for note in found.notes[:_NOTES]:
        say(f"note: {note}")
    if len(found.notes) > _NOTES:
        say(f"note: {len(found.notes) - _NOTES} more, see --json")
    if not found.faults:
        if found.explained:
            rest = "; the labels differ by rounding that adds up" if found.flips else ""
            say(f"no fault found: every output follows from operators that agree{rest}")
        else:
            say(
                "no fault found, but more labels differ than rounding explains: feed more samples with --rows, and "
                "look at the layers with `dlas compare --layers`"
            )
        return
    rows = [
        (
            number,
            f["fault"],
            f["target_node"],
            f["source_node"],
            error_text(f["error_before"]),
            "" if f["error_after"] is None else error_text(f["error_after"]),
            "" if f["flips"] is None else f["flips"],
            f["detail"],
        )
        for number, f in enumerate(found.faults[:_SHOWN], 1)
    ]
    columns = ("fault", "class", "in target", "in source", "error", "mended", "labels", "what is wrong")
    write_table(columns, rows)
    if len(found.faults) > _SHOWN:
        say(f"{len(found.faults) - _SHOWN} more, see --json; perhaps the two are not the same network")
    hints: dict[str, list[str]] = {}
    for number, fault in enumerate(found.faults[:_SHOWN], 1):
        if fault["hint"]:
            hints.setdefault(fault["hint"], []).append(str(number))
    for hint, numbers in hints.items():
        say(f"fault{'s' if len(numbers) > 1 else ''} {', '.join(numbers)}: {hint}")
    origin = ", ".join(
        f"{k} {v}" for k, v in found.origin.items() if k in ("framework", "producer", "format") and v
    )
    if origin:
        say(f"the target says of itself: {origin}")


def error_text(value: Any) -> str:
    """A relative error for a table; None stands for one that cannot be computed."""
    return "no result" if value is None else f"{value:.2g}"
