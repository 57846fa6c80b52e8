"""``dlas bench``: time a model on several back ends, or measure the limits of this machine."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._engine import Impl, Plugin, Policy, engine_choice
from dlas.cli._shared import (
    Architecture,
    Json,
    check_place,
    figure_text,
    guarded_target,
    say,
    size_text,
    write_json,
    write_table,
)
from dlas.core.errors import OptionError
from dlas.core.options import Choice, split_choices

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.runtime.bench import BenchRow
    from dlas.runtime.engine.explain import Explanation

ROOFLINE = "roofline"


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("bench")(bench)


def bench(
    model: Annotated[
        str,
        typer.Argument(
            help="Model file, or the name of a network dlas ships; or roofline: the limits of this machine."
        ),
    ],
    backends: Annotated[str, typer.Option(help="Back ends, such as onnxruntime,tvm:opt=O3; or all.")] = "all",
    threads: Annotated[str, typer.Option(help="Thread counts, such as 1,2.")] = "1",
    policy: Policy = "",
    impl: Impl = None,
    plugin: Plugin = None,
    target: Annotated[str, typer.Option(help="Device, such as host:isa=x86-64-v3.")] = "host",
    quick: Annotated[bool, typer.Option("--quick", help="Shorter timing protocol.")] = False,
    explain: Annotated[
        bool, typer.Option("--explain", help="Which layers each back end loses on, and by how much.")
    ] = False,
    report: Annotated[Path | None, typer.Option("--report", help="Page to write (HTML).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False,
    fresh: Annotated[
        bool, typer.Option("--fresh", help="Measure the limits of this machine again (roofline).")
    ] = False,
    architecture: Architecture = "",
    json: Json = False,
) -> int:
    """Latency of a model on every back end, interleaved, batch 1."""
    counts = thread_counts(threads)
    if model == ROOFLINE and not Path(ROOFLINE).exists():
        return roofline(counts, fresh, json)
    from dlas import api
    from dlas.core.timing import Protocol

    if report is not None:
        check_place(report, force)
    chosen = _chosen(backends, policy, impl, plugin)
    network = api.load(model, architecture=architecture)
    rows = api.bench(
        network,
        chosen,
        threads=counts,
        target=target,
        protocol=Protocol.quick() if quick else Protocol(),
        layers=explain,
        limits=True,
        fresh=fresh,
        tell=lambda text: say("  " + text),
    )
    found = api.explain(network, rows) if explain else []
    if report is not None:
        from dlas.report.bench import write_bench_page

        with guarded_target(report, force):
            write_bench_page(network.name, rows, found, report)
    if json:
        plain = [r.to_dict() for r in rows]
        write_json({"rows": plain, "explanations": [e.to_dict() for e in found]} if explain else plain)
    else:
        show(rows)
        for one in found:
            show_layers(one)
    if report is not None:
        say(f"wrote {report}")
    return 0 if all(str(r.outcome) in ("ok", "unsupported") for r in rows) else 1


def _chosen(backends: str, policy: str, impl: list[str] | None, plugin: list[Path] | None) -> list[str]:
    from dlas.runtime.backend import installed_backends

    chosen = installed_backends() if backends == "all" else split_choices(backends)
    if not policy and not impl and not plugin:
        return chosen
    if not any(Choice.parse(c).name == "engine" for c in chosen):
        given = {"--policy": policy, "--impl": " ".join(impl or ()), "--plugin": str((plugin or [""])[0])}
        name = next(name for name, value in given.items() if value)
        raise OptionError(name, given[name], "the back end engine among --backends")
    return [engine_choice(c, policy, impl, plugin) if Choice.parse(c).name == "engine" else c for c in chosen]


def show(rows: list[BenchRow]) -> None:
    """Print the table."""
    columns = ("back end", "threads", "latency ms (measured)", "ratio to the first", "GFLOP/s", "of the limit",
               "peak memory", "outcome", "notes")  # fmt: skip
    write_table(
        columns,
        [
            (
                r.backend,
                r.threads,
                figure_text(r.figures.get("latency_ms")),
                figure_text(r.figures.get("ratio")),
                figure_text(r.figures.get("gflops")),
                figure_text(r.figures.get("limit_fraction")),
                figure_text(r.figures.get("peak_memory_bytes")),
                str(r.outcome),
                "; ".join(filter(None, (r.reason, *r.notes, _flag(r)))),
            )
            for r in rows
        ],
    )
    if any("limit_fraction" in r.figures for r in rows):
        say("the limit: every layer at the speed that the measured roofline of this machine allows")
    if any(r.figures["limit_fraction"].value > 1 for r in rows if "limit_fraction" in r.figures):
        from dlas.runtime.engine.profile import FEWER

        say(FEWER)


def _flag(row: BenchRow) -> str:
    return row.figures["latency_ms"].note if "latency_ms" in row.figures else ""


def show_layers(found: Explanation) -> None:
    """Print times layer by layer, and who loses where."""
    from dlas.runtime.engine.explain import CAUTION

    rows = []
    for line in found.lines:
        best = line.best_of(found.shown)
        cells = [_time(line.milliseconds.get(b), b == best) for b in found.shown]
        rows.append((line.name, line.op, next(iter(line.impls.values()), ""), *cells))
    if rows:
        heads = [f"{b} ms" for b in found.shown]
        title = f"times of layers, {found.threads} thread{'s' if found.threads > 1 else ''}; * the fastest"
        write_table(("layer", "operator", "kernel", *heads), rows, title)
    for sentence in found.sentences():
        say(sentence)
    for backend, why in found.silent.items():
        say(f"{backend}: {why}")
    say(CAUTION)


def _time(milliseconds: float | None, best: bool) -> str:
    return "" if milliseconds is None else f"{milliseconds:.4f}{' *' if best else '  '}"


def roofline(counts: list[int], fresh: bool, json: bool) -> int:
    """What this machine can do at most, measured once per processor model."""
    from dlas.core.environment import cpu_model
    from dlas.hardware.cpu.roofline import LEVELS
    from dlas.hardware.cpu.roofline import roofline as measure

    found = [measure(count, fresh=fresh) for count in counts]
    if json:
        write_json([{"cpu": cpu_model(), **limits.to_dict()} for limits in found])
        return 0
    say(f"{cpu_model()}, {found[0].isa}")
    heads = [f"{limits.threads} thread{'s' if limits.threads > 1 else ''}" for limits in found]
    rows = [
        (_PEAKS.get(name, name), *(_limit(limits.peaks.get(name)) for limits in found))
        for name in found[0].peaks
    ]
    for level in LEVELS:
        size = found[0].capacities.get(level)
        name = f"reads from {level.upper()}" + (f" (up to {size_text(size)})" if size else "")
        rows.append((name, *(_limit(limits.bandwidths.get(level)) for limits in found)))
    write_table(("limit (measured)", *heads), rows)
    return 0


_PEAKS = {
    "fp32": "float32 multiply-add",
    "int8": "int8 products, 32-bit sums",
    "int8_acc16": "int8 products, 16-bit sums",
    "amx_int8": "int8 tiles (AMX)",
    "amx_bf16": "bfloat16 tiles (AMX)",
}


def _limit(figure: Figure | None) -> str:
    return "" if figure is None else f"{figure.value:.4g} {figure.unit}"


def thread_counts(text: str) -> list[int]:
    """``1,2`` as numbers."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if not counts or min(counts) < 1:
        raise OptionError("--threads", text, "whole numbers of at least 1, joined by commas")
    return counts
