"""``dlas compare``: is a converted or compiled network still right?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import Architecture, Data, Json, Split, figure_text, say, write_json, write_table
from dlas.core.errors import DlasError, OptionError

if TYPE_CHECKING:
    from dlas.verify.differential.compare import CompareReport, PathResult
    from dlas.verify.differential.gate import Failure
    from dlas.verify.differential.matrix import LabelMatrix

FAIL_ON = ("none", "label-diff", "unexplained-flip", "score-only")
_FLIPS = 20  # rows of the table; --json and --csv have more
_MATRIX = 13  # paths whose matrix still fits on a screen; --json and --report have all


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("compare")(compare)


def compare(
    source: Annotated[str, typer.Argument(help="The network that is right by definition.")],
    targets: Annotated[
        list[str] | None,
        typer.Argument(help="Its conversions; none runs the source itself on the paths."),
    ] = None,
    data: Data = "",
    split: Split = "",
    paths: Annotated[
        str,
        typer.Option(
            help="Back ends to run the targets on as well, such as ort:O0,tvm:O0..O3@x86-64-v3/2,openvino:bf16; "
            "all (installed ones), or levels (every level of each). Without any and without a target: ONNX Runtime "
            "without optimisation, and every installed back end as it is by default.",
        ),
    ] = "",
    rows: Annotated[int, typer.Option(help="Rows to use at most.", min=1)] = 200,
    layers: Annotated[bool, typer.Option("--layers", help="Compare intermediate tensors by name.")] = False,
    architecture: Architecture = "",
    no_time: Annotated[bool, typer.Option("--no-time", help="Do not time the paths.")] = False,
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds for compiling, and for 64 rows.", min=1)
    ] = 300.0,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page with matrix, paths and flips (HTML).")
    ] = None,
    junit: Annotated[
        Path | None, typer.Option("--junit", help="Write JUnit XML, a test case per path.")
    ] = None,
    csv: Annotated[Path | None, typer.Option("--csv", help="Write a line per row and path (CSV).")] = None,
    fail_on: Annotated[
        str, typer.Option(help="What makes the exit code 1: " + ", ".join(FAIL_ON))
    ] = "label-diff",
    baseline: Annotated[
        Path | None, typer.Option("--baseline", help="Earlier --json output: fail only on what is worse.")
    ] = None,
    passes: Annotated[
        str,
        typer.Option(
            help="Find the pass of an optimiser that breaks the source: onnxoptimizer, onnxslim ..."
        ),
    ] = "",
    json: Json = False,
) -> int:
    """Compare the answers of networks and back ends on the same rows, against the noise floor."""
    if fail_on not in FAIL_ON:
        raise OptionError("--fail-on", fail_on, "one of " + ", ".join(FAIL_ON))
    if passes:
        _only_with_passes({"TARGET": targets, "--paths": paths, "--report": report, "--junit": junit, "--csv": csv,
                           "--layers": layers, "--baseline": baseline})  # fmt: skip
        from dlas.cli._passes import passes_command

        return passes_command(source, passes, data, split, rows, json, architecture=architecture)
    from dlas import api
    from dlas.verify.differential import gate
    from dlas.verify.differential.times import PROTOCOL
    from dlas.verify.paths import USUAL, parse_paths

    chosen = paths or ("" if targets else USUAL)
    parse_paths(chosen)  # a wrong name is told before anything is read
    _writable({"--report": report, "--junit": junit, "--csv": csv})
    before = gate.read_baseline(baseline) if baseline else None
    samples = api.dataset(data or None, split)
    found = api.compare(
        source,
        *(targets or []),
        data=samples,
        paths=[chosen],
        rows=rows,
        layers=layers,
        timing=None if no_time else PROTOCOL,
        architecture=architecture,
        timeout_s=timeout_s,
        tell=lambda text: say("  " + text),
    )
    failures = gate.failures(found, fail_on, before)
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    _write(found, failures, samples, report, junit, csv)
    for failure in failures[:10]:
        say(f"fails: {failure.path.target} on {failure.path.path}: {failure.reason}")
    if len(failures) > 10:
        say(f"fails: {len(failures) - 10} more")
    return int(bool(failures))


def _only_with_passes(given: dict[str, Any]) -> None:
    for name, value in given.items():
        if value:
            raise OptionError(name, str(value), "nothing beside --passes, which looks at the source alone")


def _writable(files: dict[str, Path | None]) -> None:
    """Refuse a place that cannot be written before minutes are spent."""
    for name, path in files.items():
        if path is not None and (path.is_dir() or not path.parent.is_dir()):
            what = "it is a folder" if path.is_dir() else f"{path.parent} is not a folder"
            raise DlasError(f"{name} {path}: {what}", "name a file in a folder that exists")


def _write(
    found: CompareReport,
    failures: list[Failure],
    samples: Any,
    report: Path | None,
    junit: Path | None,
    csv: Path | None,
) -> None:
    from dlas.verify.differential.flips import write_csv
    from dlas.verify.differential.junit import write_junit

    if junit is not None:
        write_junit(found, failures, junit)
    if csv is not None:
        write_csv(found, csv)
    if report is not None:
        from dlas.report.compare import write_comparison

        write_comparison(found, report, samples)
    for path in filter(None, (report, junit, csv)):
        say(f"wrote {path}")


def show(found: CompareReport) -> None:
    """Print a comparison."""
    floor = found.floor
    top1 = f", top-1 {figure_text(found.source_top1)}" if found.source_top1 else ""
    say(
        f"source {found.source}: {found.rows} {'random ' if found.random else ''}rows{top1}; "
        f"noise floor {floor.flips} of {floor.rows} labels, {floor.max_abs:.2g} in any score"
    )
    cells = [_cells(row) for row in found.paths]
    columns = [
        c for c in dict.fromkeys(name for row in cells for name in row) if any(r.get(c) for r in cells)
    ]
    columns.sort(key=_COLUMNS.index)
    write_table(columns, [[row.get(c, "") for c in columns] for row in cells])
    _show_flips(found)
    if found.matrix is not None and len(found.matrix.names) > 2:
        _show_matrix(found.matrix)
    if found.base:
        say(f"times: median of one inference over that of the source on {found.base}, 95 % interval")
    if found.layers:
        rows = [
            (r["tensor"], _sqnr_text(r["sqnr_db"], r["max_abs"]), f"{r['max_abs']:.3g}") for r in found.layers
        ]
        write_table(("tensor", "SQNR", "max diff"), rows)


_COLUMNS = [
    "target", "path", "verdict", "labels differ", "unexplained", "tau", "RBO", "SQNR", "max diff", "top-1", "McNemar p",
    "clipped", "time", "reason",
]  # fmt: skip


def _cells(row: PathResult) -> dict[str, object]:
    """Cells of a row by column; those that say nothing are missing."""
    cells: dict[str, object] = {
        "target": row.target,
        "path": row.path,
        "verdict": row.shown,
        "reason": row.why,
    }
    if row.time is not None:
        cells["time"] = _time_text(row)
    compared = row.comparison
    if compared is None:
        return cells
    cells["top-1"] = figure_text(row.top1)
    if row.shown in ("shape", "nan"):
        return cells
    cells["SQNR"] = _sqnr_text(compared.sqnr_db, compared.max_abs)
    cells["max diff"] = f"{compared.max_abs:.3g}"
    if compared.label_diff is not None:
        low, high = 100 * (compared.label_diff.low or 0), 100 * (compared.label_diff.high or 0)
        cells["labels differ"] = f"{figure_text(compared.label_diff)} [{low:.2f}, {high:.2f}]"
        cells["unexplained"] = compared.unexplained
    if row.kendall_tau is not None and row.rank_biased_overlap is not None:
        cells["tau"], cells["RBO"] = f"{row.kendall_tau:.3f}", f"{row.rank_biased_overlap:.3f}"
    if row.mcnemar_p is not None:
        cells["McNemar p"] = f"{row.mcnemar_p:.2g}"
    if row.clipped is not None:
        cells["clipped"] = f"{100 * row.clipped:.2g} %"
    return cells


def _time_text(row: PathResult) -> str:
    time = row.time
    if time is None or time.latency is None:
        return ""
    if time.ratio is None:
        return f"{time.latency.value:.3g} ms"
    return f"{time.latency.value:.3g} ms, {figure_text(time.ratio)}×"


def _show_flips(found: CompareReport) -> None:
    rows = [flip for flip in found.flips if flip.unexplained]
    if not rows:
        return
    cells = [
        (
            r.row,
            "" if r.truth is None else r.truth,
            r.source_label,
            f"{r.margin:.3g}",
            "; ".join(f"{k} on {who}" for k, who in r.told_by(found, rounding=False).items()),
        )
        for r in rows[:_FLIPS]
    ]
    more = f", the first {_FLIPS}" if len(rows) > _FLIPS else ""
    title = f"{len(rows)} rows with labels that rounding does not explain{more}"
    write_table(("row", "label", "source", "margin", "other label"), cells, title)


def _show_matrix(matrix: LabelMatrix) -> None:
    if not matrix.counts.any():
        say("no label differs between any two paths")
        return
    if len(matrix.names) > _MATRIX:
        say(f"the matrix of {len(matrix.names)} paths is in --json and --report")
        return
    rows = [
        [f"{i} {name}", *(f"{100 * n / matrix.rows:.3g}" for n in matrix.counts[i])]
        for i, name in enumerate(matrix.names)
    ]
    write_table(
        ["", *map(str, range(len(matrix.names)))], rows, f"% of labels that differ, {matrix.rows} rows"
    )


def _sqnr_text(decibels: float | None, max_abs: float) -> str:
    if decibels is None:
        return "none: source all 0" if max_abs else "identical"
    return f"{decibels:.1f} dB"
