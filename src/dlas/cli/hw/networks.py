"""``dlas hw run`` and ``dlas hw profile``: networks on accelerators."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import (
    Architecture,
    Bar,
    Data,
    Json,
    Preprocess,
    Split,
    check_place,
    count_text,
    figure_text,
    preprocessing_fields,
    say,
    size_text,
    write_json,
    write_table,
)
from dlas.cli.hw._shared import Level, told
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.runtime.accelerated import AcceleratedRun
    from dlas.runtime.unit_profile import LayerUnits, UnitProfile

Network = Annotated[str, typer.Argument(help="A quantised network: TFLite, or ONNX with int8 operators.")]
Accel = Annotated[str, typer.Option("--accel", help="Accelerator with its options, such as vm:units=4.")]


def add_to(group: typer.Typer) -> None:
    """Enter the commands."""
    group.command("run")(run)
    group.command("profile")(profile)


def run(
    model: Network,
    accel: Accel = "vm",
    level: Level = "tlm",
    data: Data = "",
    split: Split = "",
    rows: Annotated[int, typer.Option(help="Rows of the data set to run, one at a time.", min=1)] = 100,
    preprocess: Preprocess = "",
    clock_mhz: Annotated[
        float, typer.Option("--mhz", help="Clock that cycles are turned into time with.", min=1)
    ] = 100.0,
    threads: Annotated[int, typer.Option(help="Threads of what stays on the CPU.", min=1)] = 1,
    architecture: Architecture = "",
    report: Annotated[
        Path | None, typer.Option("--report", help="Write a page with the timeline (HTML).")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the page.")] = False,
    json: Json = False,
) -> None:
    """Run a network with its matrix products on an accelerator: accuracy, cycles by unit, where the time goes."""
    from dlas import api
    from dlas.cli._shared import dataset
    from dlas.hardware.accelerator import LEVELS, accelerator_for
    from dlas.runtime.accelerated import run_accelerated

    accelerator = accelerator_for(accel)
    if level not in LEVELS:
        raise OptionError("--level", level, "one of " + ", ".join(LEVELS))
    if report is not None:
        check_place(report, force)
    fields = preprocessing_fields(preprocess) if preprocess else None
    network = api.load(model, architecture=architecture, preprocessing=fields)
    samples = dataset(data, split, rows) if data else None
    with Bar() as bar:
        found = run_accelerated(
            network, accelerator, level=level, data=samples, rows=rows, clock_mhz=clock_mhz, threads=threads,
            tell=told(bar),
        )  # fmt: skip
    if json:
        write_json(found.to_dict())
    else:
        show(found)
    if report is not None:
        from dlas.report.accelerated import write_accelerated

        write_accelerated(found, report)
        say(f"wrote {report}")


def show(found: AcceleratedRun) -> None:
    """Print a run."""
    columns = ("layer", "operator", "on", "MACs", "cycles", "busy", "used", "in", "out")
    write_table(columns, [_row(layer) for layer in found.layers])
    total = found.cycles
    figures = found.figures
    say(f"{found.accelerator} ({found.level}), {found.verified}")
    say(
        f"{100 * found.offloaded:.1f} % of {count_text(sum(layer.macs for layer in found.layers))} MACs on the "
        f"accelerator: {total.total:,} cycles, {100 * total.utilisation:.1f} % of its multipliers used"
    )
    for name, words in (
        ("accelerator_ms", "accelerator, on an ideal bus"),
        ("array_idle_ms", "of it, the array idle"),
        ("dma_ms", "transfers beyond that"),
        ("cpu_ms", "CPU"),
        ("latency_ms", "together"),
    ):
        figure = figures[name]
        say(f"  {words}: {figure_text(figure)} ms ({figure.source}; {figure.note})")
    for name in ("identical_rows", "label_agreement", "top1", "top1_cpu"):
        if name in figures:
            say(f"  {name.replace('_', ' ')}: {figure_text(figures[name])} of {found.rows} rows")


def _row(layer: Any) -> tuple[str, ...]:
    macs = count_text(layer.macs)
    if layer.reason:
        return layer.name, layer.op, f"CPU: {layer.reason}", macs, "", "", "", "", ""
    cycles = layer.cycles
    busy = cycles.counters.get("compute", 0) / cycles.total if cycles.total else 0.0
    shares = f"{100 * busy:.1f} %", f"{100 * cycles.utilisation:.1f} %"
    sizes = size_text(cycles.bytes_in), size_text(cycles.bytes_out)
    return layer.name, layer.op, "accelerator", macs, f"{cycles.total:,}", *shares, *sizes


def profile(
    model: Network,
    accel: Annotated[
        list[str] | None,
        typer.Option(
            "--accel", help="Accelerator with its options; again for another beside it. Default: vm."
        ),
    ] = None,
    level: Level = "tlm",
    layers: Annotated[bool, typer.Option("--layers", help="Also every layer, with its buffers.")] = False,
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """Which unit of an accelerator bounds which layers, and what a change to it could bring at best."""
    from dlas import api
    from dlas.hardware.accelerator import accelerator_for
    from dlas.runtime.unit_profile import profile_units

    chosen = [accelerator_for(text) for text in accel or ["vm"]]
    network = api.load(model, architecture=architecture)
    found = []
    for accelerator in chosen:
        say(f"  {accelerator.spelled()} ({level})")
        found.append(profile_units(network, accelerator, level=level))
    if json:
        write_json([one.to_dict() for one in found])
        return
    columns = ("accelerator", "cycles", "unit", "busy", "bounds", "speed-up if it cost nothing")
    write_table(columns, [row for one in found for row in _units(one)])
    for one in found:
        say(
            f"{one.accelerator} ({one.level}), {one.verified}: in {100 * one.overhead:.1f} % of the cycles even the "
            f"busiest unit of the layer waits; {len(one.on_cpu)} layers with products are on the CPU"
        )
        if layers:
            columns = ("layer", "operator", "cycles", "bound by", "waits", *one.units, "buffers in use")
            write_table(columns, [_layer(layer, one.units) for layer in one.layers])
    say("cycles simulated")


def _units(found: UnitProfile) -> list[tuple[str, ...]]:
    rows = []
    for place, unit in enumerate(sorted(found.units, key=found.busy, reverse=True)):
        head = ("", "") if place else (found.accelerator, f"{found.cycles:,}")
        shares = (f"{100 * share:.1f} %" for share in (found.busy(unit), found.bound(unit)))
        rows.append((*head, unit, *shares, f"{found.best(unit):.2f}x"))
    return rows


def _layer(layer: LayerUnits, units: tuple[str, ...]) -> tuple[str, ...]:
    whole = max(layer.cycles, 1)
    busy = (f"{100 * layer.busy.get(unit, 0) / whole:.0f} %" for unit in units)
    buffers = ", ".join(
        f"{name} {100 * used / there:.0f} % of {size_text(there)}"
        for name, (used, there) in layer.buffers.items()
    )
    waits = f"{100 * layer.overhead / whole:.1f} %"
    return layer.name, layer.op, f"{layer.cycles:,}", layer.bound, waits, *busy, buffers
