"""``dlas run``: the main job."""

from __future__ import annotations

import shlex
import sys
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import (
    Architecture,
    Bar,
    Data,
    Json,
    Out,
    Preprocess,
    Split,
    figure_text,
    preprocessing_fields,
    say,
    write_json,
    write_table,
)
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.explore.result import Point, StudyResult
    from dlas.explore.spec import StudySpec


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("run")(run)


def run(
    subject: Annotated[
        str,
        typer.Argument(
            metavar="[STACK.toml | MODEL]", help="Stack file or model file; none runs the default."
        ),
    ] = "",
    data: Data = "",
    split: Split = "",
    calibration: Annotated[
        str, typer.Option(help="Rows compression may look at; default a part of --data.")
    ] = "",
    methods: Annotated[
        list[str] | None,
        typer.Option("--compress", help="Pipeline such as 'channel:ratio=0.5 + int8' (repeat)."),
    ] = None,
    backends: Annotated[list[str] | None, typer.Option("--backend", help="Back end (repeat).")] = None,
    threads: Annotated[str, typer.Option(help="Thread counts, such as 1,2.")] = "",
    rows: Annotated[int, typer.Option(help="Rows to judge on, 0 for all.", min=0)] = 0,
    architecture: Architecture = "",
    preprocess: Preprocess = "",
    settings: Annotated[
        list[str] | None,
        typer.Option("--set", help="Change a key of the stack file: data.path=rows.parquet (repeat)."),
    ] = None,
    quick: Annotated[bool, typer.Option("--quick", help="Shorter timing protocol.")] = False,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is already stored.")] = False,
    out: Out = Path("dlas-out"),
    json: Json = False,
) -> None:
    """Compress, convert, check, measure and report: a stack file, a model, or the embedded default."""
    given = {
        "data": data,
        "split": split,
        "calibration": calibration,
        "compress": methods or [],
        "backends": backends or [],
        "threads": threads,
        "rows": rows,
        "architecture": architecture,
        "preprocess": preprocess,
        "quick": quick,
    }
    spec = spec_for(subject, given, settings or [])
    result = run_spec(spec, out, fresh=fresh)
    if json:
        write_json(reported(result, out / "report.html"))
    else:
        show_result(result, out / "report.html")


def spec_for(subject: str, given: dict[str, Any], settings: list[str]) -> StudySpec:
    """The study a command line asks for: a stack file, a model with defaults, or the embedded default."""
    from dlas.explore.spec import embedded_spec, model_spec, read_spec

    overrides = parse_settings(settings)
    tables = _tables(given)
    if not subject:
        return embedded_spec(overrides, tables)
    if subject.endswith(".toml"):
        return read_spec(Path(subject), overrides, tables)
    return model_spec(subject, overrides, tables)


def parse_settings(settings: list[str]) -> dict[str, str]:
    """``--set TABLE.KEY=VALUE`` options as dotted key to value text."""
    overrides: dict[str, str] = {}
    for text in settings:
        key, sign, value = text.partition("=")
        if not sign:
            raise OptionError("--set", text, "TABLE.KEY=VALUE, such as data.path=rows.parquet")
        overrides[key.strip()] = value
    return overrides


def _tables(given: dict[str, Any]) -> dict[str, dict[str, Any]]:
    """Options of the command line in the form of a stack file; only what was given."""
    from dlas.cli.bench import thread_counts

    tables: dict[str, dict[str, Any]] = {
        "data": {
            "path": given["data"],
            "split": given["split"],
            "calibration": given["calibration"],
            "rows": given["rows"],
        },
        "model": {
            "architecture": given["architecture"],
            "preprocessing": preprocessing_fields(given["preprocess"]),
        },
        "compress": {"pipeline": given["compress"]},
        "runtime": {
            "backend": given["backends"],
            "threads": thread_counts(given["threads"]) if given["threads"] else [],
        },
        "study": {"timing": "quick" if given["quick"] else ""},
    }
    return {name: {k: v for k, v in table.items() if v} for name, table in tables.items()}


def run_spec(spec: StudySpec, out: Path, *, fresh: bool) -> StudyResult:
    """Run with a progress bar; on Ctrl-C the report of what is finished is written before leaving."""
    from dlas.explore.study import Study

    command = shlex.join(["dlas", *sys.argv[1:]])
    with Bar() as bar:
        study = Study(spec, out, progress=bar, command=command)
        try:
            return study.run(fresh=fresh)
        except KeyboardInterrupt:
            partial = study.stored()
            if partial is not None and partial.points:
                from dlas.report.html import write_report

                write_report(partial, out / "report.html")
                say(f"report of the {len(partial.points)} finished points: {out / 'report.html'}")
            raise


def show_result(result: StudyResult, path: Path) -> None:
    """Print the table and the Pareto set, write the report to ``path``, say where."""
    show_table(result)  # first: what was measured is shown even where the page finds no room
    reported(result, path)
    say(f"report: {path}")


def reported(result: StudyResult, path: Path) -> dict[str, Any]:
    """Write the report; the result as a plain dictionary that says where."""
    from dlas.report.html import write_report

    write_report(result, path)
    return {**result.to_dict(), "report": str(path)}


_SETBACKS = 8  # lines on a screen
_SHOWN = ("top1", "agreement", "latency_ms", "speedup", "peak_memory_bytes", "model_bytes")


def show_table(result: StudyResult) -> None:
    """Print every point, then the Pareto set."""
    facts = result.facts
    say(
        f"{facts['model']} on {facts['dataset']}: {facts['rows']} rows, {len(result.points)} points"
        + (f", {result.pending} not tried yet" if result.pending else "")
    )
    for note in facts.get("notes", []):
        say(f"note: {note}")
    several = len({p.choices.get("target") for p in result.points}) > 1
    columns = (
        "",
        "compress",
        "back end",
        *(["target"] if several else []),
        "threads",
        "right?",
        "top-1",
        "same label",
        "latency ms",
        "speed-up",
        "peak memory",
        "model",
        "reason",
    )
    sources = sorted(
        {str(f.source) for p in result.points for n, f in p.record.figures.items() if n in _SHOWN}
    )
    title = f"figures of this table: {' and '.join(sources)}" if sources else ""
    write_table(columns, [_row(p, result, several) for p in result.points], title=title)
    front = [p for p in result.points if p.key in result.pareto]
    names = " and ".join(str(o) for o in result.objectives)
    write_table(
        ("Pareto set", *(o.figure for o in result.objectives)),
        [
            (p.label, *(figure_text(p.record.figures.get(o.figure)) for o in result.objectives))
            for p in sorted(front, key=lambda p: p.record.figures[result.objectives[0].figure].value)
        ],
        title=f"no other point is better in both {names}" if front else "no point has all of " + names,
    )
    _show_setbacks(result)


def _show_setbacks(result: StudyResult) -> None:
    """Say which points compute less than the uncompressed network and take longer."""
    from dlas.explore.setbacks import setbacks

    found = setbacks(result)
    if found:
        say(
            "fewer multiply-accumulates than the uncompressed network on the baseline's back end, and more time:"
        )
    for setback in found[:_SETBACKS]:
        say(f"  {setback.label}: {setback.sentence}")
    if len(found) > _SETBACKS:
        say(f"  and {len(found) - _SETBACKS} more; the report has them")


def _row(point: Point, result: StudyResult, several: bool) -> tuple[object, ...]:
    figures, facts = point.record.figures, point.record.facts
    speedup = figures.get("speedup")
    return (
        "*" if point.key in result.pareto else ("=" if point.baseline else ""),
        point.choices["compress"],
        point.choices["backend"],
        *([point.choices.get("target", "")] if several else []),
        point.choices["threads"],
        facts.get("verdict", str(point.record.outcome)),
        figure_text(figures.get("top1")),
        figure_text(figures.get("agreement")),
        _latency(figures.get("latency_ms")) + (" noisy" if _noisy(point) else ""),
        speedup_text(speedup),
        figure_text(figures.get("peak_memory_bytes")),
        figure_text(figures.get("model_bytes")),
        point.record.reason,
    )


def _latency(figure: Figure | None) -> str:
    """What was not measured says so in the cell: the column holds both."""
    from dlas.core.figure import Source

    source = "" if figure is None or figure.source == Source.MEASURED else f" {figure.source}"
    return figure_text(figure, 4) + source


def speedup_text(figure: Figure | None) -> str:
    """``2.24x``; with a ``~`` where the interval holds 1, so that neither side may be called faster."""
    if figure is None:
        return ""
    from dlas.core.timing import is_clear

    return f"{figure.value:.2f}x" + ("" if is_clear(figure) else " ~")


def _noisy(point: Point) -> bool:
    figure = point.record.figures.get("latency_ms")
    return figure is not None and figure.note == "noisy"
