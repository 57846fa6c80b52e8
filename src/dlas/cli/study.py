"""``dlas study``: run, show and export studies."""

from __future__ import annotations

import csv as csv_format
import io
import json as json_format
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import Json, Out, say, write_json, write_table
from dlas.core.errors import DlasError, OptionError

if TYPE_CHECKING:
    from dlas.explore.result import StudyResult

FORMATS = ("csv", "json", "parquet")


def add_to(app: typer.Typer) -> None:
    """Enter the commands."""
    group = typer.Typer(help="Run, show and export studies.", no_args_is_help=True, rich_markup_mode=None)
    group.command("run")(run)
    group.command("show")(show)
    group.command("export")(export)
    app.add_typer(group, name="study")


def run(
    file: Annotated[Path, typer.Argument(help="Stack file with lists.")],
    settings: Annotated[
        list[str] | None, typer.Option("--set", help="Change a key: data.path=rows.parquet.")
    ] = None,
    fresh: Annotated[bool, typer.Option("--fresh", help="Measure again what is already stored.")] = False,
    out: Out = Path("dlas-out"),
    json: Json = False,
) -> None:
    """Run the stacks of a file; goes on where an earlier run was stopped. Several [[model]] tables: a study each."""
    from dlas.cli.run import parse_settings, reported, run_spec, show_result
    from dlas.explore.spec import read_specs

    specs = read_specs(file, parse_settings(settings or []))
    found = []
    for spec in specs:
        result = run_spec(spec, out, fresh=fresh)
        page = out / f"{'report' if len(specs) == 1 else spec.name}.html"
        if json:
            found.append(reported(result, page))
        else:
            show_result(result, page)
    if json:
        write_json(found[0] if len(specs) == 1 else found)


def show(
    name: Annotated[str, typer.Argument(help="Study; default the one that ran last.")] = "",
    out: Out = Path("dlas-out"),
    all_studies: Annotated[bool, typer.Option("--list", help="Only list the studies of the file.")] = False,
    json: Json = False,
) -> None:
    """Print a stored study."""
    from dlas.cli.run import show_table
    from dlas.explore.storage import SqliteStorage

    if all_studies:
        storage = SqliteStorage(out / "study.db", create=False)
        counts = [(s, len(storage.points(s))) for s in storage.studies()]
        storage.close()
        if json:
            write_json([{"name": n, "points": c} for n, c in counts])
        else:
            write_table(("study", "points"), counts)
        return
    result = stored_result(out / "study.db", name)
    if json:
        write_json(result.to_dict())
    else:
        show_table(result)


def export(
    output: Annotated[
        Path, typer.Option("-o", "--output", help="File to write; its ending names the format.")
    ],
    name: Annotated[str, typer.Argument(help="Study; default the one that ran last.")] = "",
    out: Out = Path("dlas-out"),
) -> None:
    """Write a study's rows as CSV, JSON or Parquet, one row per point."""
    from dlas.core.files import write_atomic

    kind = output.suffix.lstrip(".").lower()
    if kind not in FORMATS:
        raise OptionError("--output", str(output), "a file ending in ." + ", .".join(FORMATS))
    rows = flat_rows(stored_result(out / "study.db", name))
    if kind == "json":
        content: str | bytes = json_format.dumps(rows, indent=1)
    elif kind == "csv":
        content = _csv(rows)
    else:
        content = _parquet(rows)
    write_atomic(output, content)
    say(f"wrote {output} ({len(rows)} rows)")


def stored_result(path: Path, name: str) -> StudyResult:
    """A study from its file; the last one by default."""
    from dlas.explore.storage import SqliteStorage
    from dlas.explore.study import load_result

    storage = SqliteStorage(path, create=False)
    try:
        known = storage.studies()
        if not known:
            raise DlasError(f"{path} holds no study", "run `dlas run` or `dlas study run` first")
        return load_result(storage, name or known[0])
    finally:
        storage.close()


def flat_rows(result: StudyResult) -> list[dict[str, Any]]:
    """One flat dictionary per point: choices, outcome, and each figure with interval and source."""
    rows = []
    for point in result.points:
        row: dict[str, Any] = {"study": result.name, "key": point.key, **point.choices}
        row |= {
            "outcome": str(point.record.outcome),
            "verdict": point.record.facts.get("verdict", ""),
            "reason": point.record.reason,
            "baseline": point.baseline,
            "pareto": point.key in result.pareto,
        }
        for figure_name, figure in sorted(point.record.figures.items()):
            row[figure_name] = figure.value
            if figure.low is not None:
                row[f"{figure_name}_low"], row[f"{figure_name}_high"] = figure.low, figure.high
            row[f"{figure_name}_source"] = str(figure.source)
        rows.append(row)
    columns = list(dict.fromkeys(key for row in rows for key in row))
    return [{column: row.get(column) for column in columns} for row in rows]


def _csv(rows: list[dict[str, Any]]) -> str:
    text = io.StringIO()
    writer = csv_format.DictWriter(text, rows[0] if rows else [], lineterminator="\n")
    writer.writeheader()
    writer.writerows(rows)
    return text.getvalue()


def _parquet(rows: list[dict[str, Any]]) -> bytes:
    import pyarrow as arrow
    import pyarrow.parquet as parquet

    sink = io.BytesIO()
    parquet.write_table(arrow.Table.from_pylist(rows), sink)
    return sink.getvalue()
