"""``dlas compare MODEL --passes TOOL``: which pass of an optimiser breaks a network?"""

from __future__ import annotations

from typing import TYPE_CHECKING

from dlas.cli._shared import figure_text, say, write_json, write_table

if TYPE_CHECKING:
    from dlas.verify.passes import PassReport, PassResult


def passes_command(
    source: str,
    tool: str,
    data: str = "",
    split: str = "",
    rows: int = 200,
    json: bool = False,
    *,
    architecture: str = "",
    each: bool = False,
) -> int:
    """Try an optimiser on a network, print what became of it, and return the exit code.

    Args:
        source: Model file, or the name of a network dlas ships.
        tool: Optimiser as written, such as ``onnxoptimizer`` or ``ort:level=basic``.
        data: Data set; random rows without one.
        split: Split of the data set.
        rows: Rows to use at most.
        json: Print JSON instead of tables.
        architecture: For a bare checkpoint.
        each: Try each pass alone even where the whole optimiser is right.

    Returns:
        1 if the optimiser breaks the network, else 0.
    """
    from dlas import api
    from dlas.core.options import Choice
    from dlas.verify.passes import blame, pass_tools

    choice = Choice.parse(tool)
    member = pass_tools.get(choice.name)(**choice.as_dict())
    report = blame(
        api.load(source, architecture=architecture),
        member,
        data=api.dataset(data or None, split),
        rows=rows,
        each=each,
        tell=lambda text: say("  " + text),
    )
    if json:
        write_json(report.to_dict())
    else:
        show_passes(report)
    return int(not report.right)


def show_passes(report: PassReport) -> None:
    """Print a report."""
    floor = report.floor
    say(
        f"{report.tool} {report.version} on {report.source}: {report.rows} {'random ' if report.random else ''}rows; "
        f"noise floor {floor.flips} labels, {floor.max_abs:.2g} in any score"
    )
    columns = ("pass", "outcome", "changed", "labels differ", "max diff", "reason")
    whole = [("no pass", report.idle), *((f"all of {b.name}", b) for b in report.bundles)]
    write_table(
        columns, [_row(name, found) for name, found in [*whole, *((p.name, p) for p in report.passes)]]
    )
    if report.culprits:
        rows = [(" + ".join(c.passes), c.outcome, c.reason) for c in report.culprits]
        write_table(("to blame", "outcome", "reason"), rows)
    elif not report.right:
        say(
            "it breaks the network before any pass runs"
            if report.idle.outcome.broken
            else "no pass and no set of passes breaks it: what it does besides them is to blame"
        )
    _sum_up(report)


def _row(name: str, found: PassResult) -> tuple[object, ...]:
    compared = found.comparison
    return (
        name,
        found.outcome,
        "yes" if found.changed and not found.outcome.broken else "" if found.outcome.broken else "no",
        figure_text(compared.label_diff) if compared else "",
        f"{compared.max_abs:.3g}" if compared else "",
        found.reason,
    )


def _sum_up(report: PassReport) -> None:
    if not report.passes:
        return
    broken = [p.name for p in report.passes if p.outcome.broken]
    words = f"{len(report.passes) - len(broken)} of {len(report.passes)} passes are fine alone"
    say(words + (": not " + ", ".join(broken) if broken else ""))
