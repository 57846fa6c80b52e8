"""``dlas profile``: where the time of a model goes."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._engine import Impl, Isa, Plugin, Policy, engine_choice, engine_target
from dlas.cli._shared import (
    Architecture,
    Json,
    check_place,
    count_text,
    figure_text,
    guarded_target,
    say,
    write_json,
    write_table,
)
from dlas.core.errors import OptionError, UnsupportedError

if TYPE_CHECKING:
    from dlas.runtime.engine.profile import Profile, Row


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("profile")(profile)


def profile(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    backend: Annotated[
        str, typer.Option(help="Back end, such as onnxruntime; by default the engine, which tells most.")
    ] = "",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    policy: Policy = "",
    impl: Impl = None,
    plugin: Plugin = None,
    isa: Isa = "",
    runs: Annotated[int, typer.Option(help="Runs behind every median.", min=1, max=100_000)] = 50,
    target: Annotated[str, typer.Option(help="Device, such as host:isa=x86-64-v3.")] = "host",
    output: Annotated[
        Path | None,
        typer.Option("-o", "--output", help="File to write: .json, .csv or .trace.json (Chrome, Perfetto)."),
    ] = None,
    report: Annotated[
        Path | None, typer.Option("--report", help="Page to write (HTML): roofline, times, table.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the files.")] = False,
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """Time of every step, against what this machine could do (medians, measured)."""
    from dlas import api
    from dlas.runtime.engine.profile_files import write_profile, writer_for

    if output is not None:
        writer_for(output)
    for path in filter(None, (output, report)):
        check_place(path, force)
    backend = backend or _default()
    choice = engine_choice(backend, policy, impl, plugin)
    network = api.load(model, architecture=architecture)
    device = engine_target(target, isa)
    if choice.partition(":")[0] != "engine":
        if output is not None or report is not None:
            option = "-o" if output is not None else "--report"
            raise OptionError(
                option, str(output or report), f"none with {backend}; the back end engine writes files"
            )
        _simple(network, choice, threads, device, json)
        return
    found = api.profile(
        network, choice, threads=threads, target=device, runs=runs, tell=lambda text: say("  " + text)
    )
    if output is not None:
        with guarded_target(output, force):
            write_profile(found, output)
    if report is not None:
        from dlas.report.profile import write_profile_page

        with guarded_target(report, force):
            write_profile_page(found, report)
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    for path in filter(None, (output, report)):
        say(f"wrote {path}")


def _default() -> str:
    """The engine, or where it was not built the back end that is always here."""
    from dlas.runtime.backend import backends

    missing = backends.get("engine").missing()
    if missing:
        say(f"engine is {missing}: profile onnxruntime instead")
    return "onnxruntime" if missing else "engine"


def show(found: Profile) -> None:
    """Print a profile."""
    for note in found.notes:
        say(note)
    columns = ("layer", "operator", "kernel", "layout", "ms", "share", "MACs", "bytes in + out + weights", "GFLOP/s",
               "FLOP/byte", "attainable", "of it", "bound by")  # fmt: skip
    rows = [_cells(row) for row in found.rows]
    kept = [i for i in range(len(columns)) if any(row[i] for row in rows)]
    write_table([columns[i] for i in kept], [[row[i] for i in kept] for row in rows])
    whole = f"whole network {found.whole_ms:.4g} ms"
    if found.backend != "engine":
        say(f"layers together {found.steps_ms:.4g} ms by the clock of {found.backend}; {whole} without it")
        _candidates(found)
        return
    if found.interrupted:
        whole += f", of which {found.cpu_ms:.4g} ms processor time"
        say("other programs took the processor in between: shares and sums are of the processor time")
    say(
        f"steps {found.steps_ms:.4g} ms + call {found.call_ms:.2g} ms: {abs(found.difference):.1%} "
        f"{'more' if found.difference >= 0 else 'less'} than the {whole}, without clocks"
        + ("" if found.adds_up else "; beyond 3 %, so the machine is not quiet")
    )
    if not found.interrupted:
        say(f"overhead of profiling: {found.clock_cost:.1%}")
    for sentence in found.summary():
        say(sentence)
    _candidates(found)


def _candidates(found: Profile) -> None:
    if len(found.candidates) > 1:
        listed = sorted(found.candidates.items(), key=lambda item: item[1])
        say("whole networks compared: " + ", ".join(f"{name} {ms:.4g} ms" for name, ms in listed))


def _cells(row: Row) -> list[str]:
    work, rate = row.work, row.gflops
    sizes = (
        ""
        if work is None
        else " + ".join(_short_size(n) for n in (work.bytes_in, work.bytes_out, work.bytes_weights))
    )
    return [
        row.name,
        row.op,
        row.impl,
        row.layout,
        f"{row.milliseconds:.4f}",
        f"{row.share:.1%}",
        count_text(work.macs) if work is not None and work.macs else "",
        sizes,
        "" if rate is None else f"{rate:.3g}",
        "" if work is None or not work.operations else f"{work.intensity:.3g}",
        "" if row.attainable is None else f"{row.attainable:.3g}",
        "" if row.fraction is None else f"{row.fraction:.0%}",
        row.bound,
    ]


def _short_size(count: int) -> str:
    for unit, size in (("M", 2**20), ("K", 2**10)):
        if count >= size:
            return f"{count / size:.3g}{unit}"
    return str(count)


def _simple(network, backend: str, threads: int, target: str, json: bool) -> None:
    """Time per layer as another back end itself reports it."""
    from dlas import api
    from dlas.core.timing import Protocol

    (row,) = api.bench(
        network,
        [backend],
        threads=[threads],
        target=target,
        protocol=Protocol.quick(),
        layers=True,
        tell=lambda text: say("  " + text),
    )
    if str(row.outcome) != "ok" or not row.layers:
        raise UnsupportedError(f"{backend}: {row.reason}", "try --backend engine")
    if json:
        write_json(row.to_dict())
        return
    total = sum(layer["milliseconds"] for layer in row.layers)
    write_table(
        ("layer", "op", "ms (measured)", "share"),
        [
            (
                layer["name"],
                layer["op"],
                f"{layer['milliseconds']:.4f}",
                f"{layer['milliseconds'] / total:.1%}",
            )
            for layer in row.layers
        ],
    )
    say(
        f"layers together {total:.3f} ms; whole network {figure_text(row.figures['latency_ms'])} ms without profiling"
    )
