"""``dlas hw``: accelerators, as exact models and as simulated hardware."""

from __future__ import annotations

from collections.abc import Callable
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
    write_text,
)
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.runtime.accelerated import AcceleratedRun

Accelerator = Annotated[str, typer.Argument(help="Accelerator with its options, such as vm:units=4.")]


def add_to(app: typer.Typer) -> None:
    """Enter the commands."""
    group = typer.Typer(help="Accelerators: run networks on them, prove them, measure them.", no_args_is_help=True,
                        rich_markup_mode=None)  # fmt: skip
    group.command("list")(list_accelerators)
    group.command("run")(run)
    group.command("verify")(verify)
    group.command("area")(area)
    group.command("verilog")(verilog)
    group.command("new")(new)
    app.add_typer(group, name="hw")


def list_accelerators(json: Json = False) -> None:
    """Every accelerator, with its options and what it needs."""
    from dlas.cli.listing import choices

    found = [c for c in choices() if c["family"] == "accelerator"]
    if json:
        write_json(found)
        return
    options = [", ".join(f"{name}={o['default']}" for name, o in c["options"].items()) for c in found]
    write_table(
        ("name", "what it is", "options", "needs"),
        [(c["name"], c["summary"], o, c["missing"] or "ready") for c, o in zip(found, options, strict=True)],
    )


def run(
    model: Annotated[str, typer.Argument(help="A quantised network: TFLite, or ONNX with int8 operators.")],
    accel: Annotated[
        str, typer.Option("--accel", help="Accelerator with its options, such as vm:units=4.")
    ] = "vm",
    level: Annotated[str, typer.Option(help="tlm: the exact model; rtl: the simulated hardware.")] = "tlm",
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
            tell=_told(bar),
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


def verify(
    accelerator: Accelerator,
    trials: Annotated[int, typer.Option(help="Random layers.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of layers, inputs and back-pressure.", min=0)] = 0,
    json: Json = False,
) -> int:
    """Prove that model and RTL agree: results to the bit, every counter, also under back-pressure."""
    from dlas.hardware.accelerator import accelerator_for
    from dlas.hardware.verification import verify as compare

    with Bar() as bar:
        found = compare(accelerator_for(accelerator), trials=trials, seed=seed, tell=_told(bar))
    if json:
        write_json(found.to_dict())
    elif found.passed:
        say(f"{found.accelerator}: {found.trials} layers equal, results and cycles, also under back-pressure")
    else:
        for line in found.failures[:20]:
            say(line)
        say(f"{found.accelerator}: {len(found.failures)} differences on {found.trials} layers")
    return 0 if found.passed else 1


def area(
    accelerators: Annotated[
        list[str], typer.Argument(help="Accelerators with their options, such as vm:units=4.")
    ],
    family: Annotated[str, typer.Option(help="FPGA family: xc7 or ecp5.")] = "xc7",
    nodsp: Annotated[bool, typer.Option("--nodsp", help="Build multipliers from LUTs.")] = False,
    fmax: Annotated[bool, typer.Option("--fmax", help="Also place and route on an ECP5 (minutes).")] = False,
    json: Json = False,
) -> None:
    """Area by Yosys, whether boards hold it, and with --fmax the clock that nextpnr reaches on an ECP5."""
    from dlas.hardware.accelerator import accelerator_for
    from dlas.hardware.synthesis.area import area as area_of
    from dlas.hardware.synthesis.boards import BOARDS, fits
    from dlas.hardware.synthesis.fmax import fmax as clock_of

    chosen = [accelerator_for(text) for text in accelerators]
    found = []
    for accelerator in chosen:
        say(f"  {accelerator.spelled()}: Yosys")
        taken = area_of(accelerator, family=family, nodsp=nodsp)
        boards = [fits(taken, board) for board in BOARDS.values() if board.family == family]
        clock = None
        if fmax:
            say(f"  {accelerator.spelled()}: nextpnr")
            clock = clock_of(accelerator)
        found.append((accelerator.spelled(), taken, boards, clock))
    if json:
        write_json([
            {
                "accelerator": name,
                "area": taken.to_dict(),
                "boards": [board.to_dict() for board in boards],
                **({} if clock is None else {"fmax": clock.to_dict()}),
            }
            for name, taken, boards, clock in found
        ])  # fmt: skip
        return
    columns = ("accelerator", "LUTs", "flip-flops", "carries", "DSPs", "BRAM tiles", "fits", "MHz")
    rows = []
    for name, taken, boards, clock in found:
        fit = ", ".join(f"{b.board.name} {'yes' if b.fits else 'no: ' + b.reason}" for b in boards)
        mhz = "" if clock is None else figure_text(next(iter(clock.figures.values())))
        counts = [f"{n:,}" for n in (taken.luts, taken.flip_flops, taken.carries, taken.dsps)]
        rows.append((name, *counts, f"{taken.bram_tiles:g}", fit, mhz))
    write_table(columns, rows)
    say(f"area estimated for {family} by {found[0][1].flow}")
    if fmax:
        say("clock estimated for an ECP5 by nextpnr, out of context: open tools give none for 7 series")


def verilog(
    accelerator: Accelerator,
    output: Annotated[
        Path | None, typer.Option("-o", "--output", help="File; default standard output.")
    ] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
) -> None:
    """The accelerator as Verilog."""
    from dlas.core.files import write_atomic
    from dlas.hardware.accelerator import accelerator_for
    from dlas.hardware.simulation.verilog import verilog as text_of

    if output is not None:
        check_place(output, force)
    text = text_of(accelerator_for(accelerator).design())
    if output is None:
        write_text(text)
    else:
        write_atomic(output, text.encode())
        say(f"wrote {output}")


def new(
    name: Annotated[str, typer.Argument(help="Name in kebab case, such as my-array.")],
    folder: Annotated[Path, typer.Option("--folder", help="Where to write the two files.")] = Path(),
) -> None:
    """Start an accelerator: a module with an array of its own, and a test that passes."""
    from dlas.hardware.skeleton import write_skeleton

    for path in write_skeleton(name, folder):
        say(f"wrote {path}")
    say("run the test with pytest; then change `product` and what `trial` draws")


def _told(bar: Bar) -> Callable[[float, str], None]:
    """A bar in thousandths."""
    bar.start(1000)
    done = 0

    def tell(fraction: float, text: str) -> None:
        nonlocal done
        bar.step(text)
        now = round(1000 * fraction)
        bar.advance(max(0, now - done))
        done = max(done, now)

    return tell
