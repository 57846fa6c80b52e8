"""``dlas compare``: is a converted or compiled network still right?"""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import Architecture, Data, Json, Split, figure_text, say, write_json, write_table
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.verify.compare import CompareReport, PathResult

FAIL_ON = ("none", "label-diff", "unexplained-flip", "score-only")


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("compare")(compare)


def compare(
    source: Annotated[str, typer.Argument(help="The network that is right by definition.")],
    targets: Annotated[
        list[str] | None, typer.Argument(help="Its conversions; none compares back ends on the source.")
    ] = None,
    data: Data = "",
    split: Split = "",
    paths: Annotated[
        str,
        typer.Option(help="Back ends to run the targets on as well, such as onnxruntime,tvm:opt=O3; or all."),
    ] = "",
    rows: Annotated[int, typer.Option(help="Rows to use at most.", min=1)] = 200,
    layers: Annotated[bool, typer.Option("--layers", help="Compare intermediate tensors by name.")] = False,
    architecture: Architecture = "",
    fail_on: Annotated[
        str, typer.Option(help="What makes the exit code 1: " + ", ".join(FAIL_ON))
    ] = "label-diff",
    json: Json = False,
) -> int:
    """Compare the answers of networks and back ends on the same rows, against the noise floor."""
    from dlas import api
    from dlas.runtime.backend import installed_backends

    if fail_on not in FAIL_ON:
        raise OptionError("--fail-on", fail_on, "one of " + ", ".join(FAIL_ON))
    chosen = installed_backends() if paths == "all" else split_choices(paths)
    if not targets and not chosen:
        chosen = installed_backends()
    found = api.compare(
        source,
        *(targets or [source]),
        data=data or None,
        split=split,
        paths=chosen,
        rows=rows,
        layers=layers,
        architecture=architecture,
        tell=lambda text: say("  " + text),
    )
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    return _exit_code(found, fail_on)


def split_choices(text: str) -> list[str]:
    """Split ``a,b:x=1,y=2,c`` into choices: a part with ``=`` and no ``:`` belongs to the one before it."""
    found: list[str] = []
    for part in filter(None, (p.strip() for p in text.split(","))):
        if found and "=" in part and ":" not in part:
            found[-1] += "," + part
        else:
            found.append(part)
    return found


def show(found: CompareReport) -> None:
    """Print a comparison."""
    from dlas.verify.differential import Verdict

    floor = found.floor
    top1 = f", top-1 {figure_text(found.source_top1)}" if found.source_top1 else ""
    say(
        f"source {found.source}: {found.rows} {'random ' if found.random else ''}rows{top1}; "
        f"noise floor {floor.flips} labels, {floor.max_abs:.2g} in any score"
    )
    rows = []
    for row in found.paths:
        c = row.comparison
        verdict = str(row.verdict) if c is not None else str(row.outcome)
        if c is not None and c.verdict in (Verdict.SHAPE, Verdict.NAN):
            rows.append((row.target, row.path, verdict, *[""] * 4, figure_text(row.top1), row.reason))
            continue
        rows.append(
            (
                row.target,
                row.path,
                verdict,
                figure_text(c.label_diff) if c else "",
                c.unexplained if c and c.label_diff else "",
                _sqnr_text(c.sqnr_db, c.max_abs) if c else "",
                f"{c.max_abs:.3g}" if c else "",
                figure_text(row.top1),
                row.reason,
            )
        )
    columns = (
        "target",
        "path",
        "verdict",
        "labels differ",
        "unexplained",
        "SQNR",
        "max diff",
        "top-1",
        "reason",
    )
    write_table(columns, rows)
    if found.layers:
        cells = [
            (
                r["tensor"],
                _sqnr_text(r["sqnr_db"], r["max_abs"]),
                f"{r['max_abs']:.3g}",
            )
            for r in found.layers
        ]
        write_table(("tensor", "SQNR", "max diff"), cells)


def _sqnr_text(decibels: float | None, max_abs: float) -> str:
    if decibels is None:
        return "none: source all 0" if max_abs else "identical"
    return f"{decibels:.1f} dB"


def _exit_code(found: CompareReport, fail_on: str) -> int:
    return int(any(_fails(row, fail_on) for row in found.paths)) if fail_on != "none" else 0


def _fails(row: PathResult, fail_on: str) -> bool:
    compared = row.comparison
    if compared is None:
        return str(row.outcome) != "unsupported"
    if not compared.verdict.right:
        return True
    if fail_on == "unexplained-flip":
        return compared.unexplained > 0
    return fail_on == "score-only" and str(compared.verdict) != "equal"
