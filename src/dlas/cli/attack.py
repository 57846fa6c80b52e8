"""``dlas attack``: how small a change, made on purpose, brings a network down?"""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import (
    Architecture,
    Bar,
    Data,
    Json,
    Split,
    check_place,
    say,
    size_text,
    write_json,
    write_table,
)
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.verify.attack.report import AttackReport, ModelResult


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("attack")(attack)


def attack(
    models: Annotated[
        list[str],
        typer.Argument(help="Networks. What the gradients of the first give is tried on all others as well."),
    ],
    data: Data = "",
    split: Split = "",
    attacks: Annotated[
        str, typer.Option(help="Attacks with their options, such as pgd:steps=40: `dlas list attack`.")
    ] = "fgsm,pgd,square",
    eps: Annotated[str, typer.Option(help="Largest change of a pixel, as a share of its range.")] = "8/255",
    rows: Annotated[int, typer.Option(help="Rows to use at most.", min=1)] = 200,
    path: Annotated[
        str, typer.Option(help="Back end that answers, such as tvm:O2; default the runtime of the file.")
    ] = "",
    value_range: Annotated[
        str,
        typer.Option("--range", help="LOW:HIGH, the values of samples that are arrays and no images."),
    ] = "0:1",
    seed: Annotated[int, typer.Option(help="Seed of every attack that draws.", min=0)] = 0,
    threads: Annotated[
        int, typer.Option(help="Threads of the gradients and of the runtime of the file.", min=1)
    ] = 1,
    architecture: Architecture = "",
    timeout_s: Annotated[
        float, typer.Option("--timeout", help="Seconds for compiling, and for 100 rows.", min=1)
    ] = 300.0,
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page with the table and pictures (HTML).")
    ] = None,
    fail_under: Annotated[
        float, typer.Option(help="Exit with 1 where the minimum over all attacks is lower.", min=0, max=1)
    ] = 0.0,
    json: Json = False,
) -> int:
    """Attack networks on the same rows: clean and robust accuracy, and whether gradients only hide."""
    from dlas import api
    from dlas.verify.attack.attack import parse_attacks, parse_eps
    from dlas.verify.paths import parse_paths

    parse_attacks(attacks, seed=seed)  # a wrong name or number is told before anything is read
    parse_eps(eps)
    parse_paths(path)
    values = _range(value_range)
    if report is not None:
        check_place(report, force=True)
    samples = api.dataset(data or None, split)
    if samples is None:
        raise OptionError("--data", data, "labelled rows: a file, a folder or a built-in name")
    with Bar() as bar:
        found = api.attack(
            *models,
            data=samples,
            attacks=attacks,
            eps=eps,
            rows=rows,
            path=path,
            value_range=values,
            seed=seed,
            threads=threads,
            architecture=architecture,
            timeout_s=timeout_s,
            progress=bar,
        )
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    if report is not None:
        from dlas.report.attack import write_attack

        write_attack(found, report)
        say(f"wrote {report}")
    below = [m.target for m in found.models if m.worst is not None and m.worst.value < fail_under]
    if below:
        say(f"fails: the minimum is below {100 * fail_under:g} %: {', '.join(below)}")
    lost = fail_under > 0 and any(m.worst is None for m in found.models)
    return int(bool(below) or lost)


def show(found: AttackReport) -> None:
    """Print a report: one line per network, one column per attack."""
    say(
        f"{found.rows} rows of {found.data}, eps {eps_text(found.eps)}"
        + (f"; transfer from {found.source}" if found.source else "")
    )
    titles = found.titles
    columns = ["network", "runs on", "size", "clean", *titles, "minimum"]
    rows = []
    for model in found.models:
        by_title = {r.title: _share(r.robust) or "none" for r in model.results}
        rows.append(
            [
                model.target,
                model.path,
                size_text(model.size_bytes) if model.size_bytes else "",
                _share(model.clean) or model.reason,
                *[by_title.get(title, "") for title in titles],
                _share(model.worst),
            ]
        )
    write_table(columns, rows, "% of rows answered rightly, 95 % interval")
    for model in found.models:
        _remarks(model)


def _remarks(model: ModelResult) -> None:
    for warning in model.warnings:
        say(f"{model.target}: {warning}")
    for note in model.notes:
        say(f"{model.target}: {note}")
    reasons = {r.reason: r for r in model.results if r.reason and r.reason not in " ".join(model.notes)}
    for reason, result in reasons.items():
        say(f"{model.target}: no {result.title}: {reason}")


def _share(figure: Figure | None) -> str:
    if figure is None:
        return ""
    low, high = 100 * (figure.low or 0), 100 * (figure.high or 0)
    return f"{100 * figure.value:.1f} [{low:.1f}, {high:.1f}]"


def eps_text(eps: float) -> str:
    """``8/255`` where it is a whole number of steps of a pixel, else the number."""
    steps = eps * 255
    return f"{round(steps)}/255" if abs(steps - round(steps)) < 1e-6 else f"{eps:g}"


def _range(text: str) -> tuple[float, float]:
    low, sign, high = text.partition(":")
    try:
        values = float(low), float(high)
    except ValueError:
        values = 0.0, 0.0
    if not sign or not -float("inf") < values[0] < values[1] < float("inf"):
        raise OptionError("--range", text, "LOW:HIGH, such as -1:1")
    return values
