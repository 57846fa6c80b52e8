"""``dlas asymmetric``: what a matrix instruction of 8-bit by 4-bit operands would be worth for a network."""

from __future__ import annotations

from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import (
    Architecture,
    Data,
    Json,
    Split,
    count_text,
    pairs,
    say,
    write_json,
    write_table,
)
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.kernels.asymmetric.emulate import OverflowStats
    from dlas.kernels.asymmetric.study import AsymmetricStudy


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("asymmetric")(asymmetric)


def asymmetric(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    data: Data = "",
    split: Split = "",
    rows: Annotated[int, typer.Option(help="Rows of the data set to run.", min=1)] = 40,
    spill: Annotated[
        str,
        typer.Option(
            help="Distances in k between two additions into 32 bits to compare, none: only the last."
        ),
    ] = "none,256,64,32",
    accumulator: Annotated[
        str, typer.Option(help="What 16 bits do when they overflow: wrap or sat (clip).")
    ] = "sat",
    tolerance: Annotated[
        float, typer.Option(help="Share of additions that may overflow where a distance is chosen.")
    ] = 0.0005,
    pixels: Annotated[int, typer.Option(help="Rows of activations drawn per layer.", min=1)] = 2048,
    machine: Annotated[
        list[str] | None,
        typer.Option(help="Modelled processor, KEY=VALUE, such as loads_per_cycle=3 or vector_bits=256."),
    ] = None,
    array: Annotated[
        list[str] | None, typer.Option(help="Modelled systolic array, KEY=VALUE: rows=32, columns=32.")
    ] = None,
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """An 8x4-bit matrix instruction with 16-bit accumulators: what overflows, and what it gains (models)."""
    from dlas import api
    from dlas.core.options import build_options
    from dlas.kernels.asymmetric.survey import SurveyOptions
    from dlas.kernels.asymmetric.systolic import ArrayOptions
    from dlas.kernels.asymmetric.throughput import IssueOptions

    if not data:
        raise OptionError("--data", "", "a data set: overflows depend on what the network sees")
    options = SurveyOptions(accumulator, distances(spill), tolerance=tolerance, rows=pixels)
    issue = pairs("--machine", machine or [])
    if "spill" in issue:
        raise OptionError("--machine", f"spill={issue['spill']}", "none: each layer has its own, of --spill")
    found = api.asymmetric(
        model,
        data,
        split,
        rows=rows,
        options=options,
        machine=build_options(IssueOptions, issue, "--machine"),
        array=build_options(ArrayOptions, pairs("--array", array or []), "--array"),
        architecture=architecture,
    )
    if json:
        write_json(found.to_dict())
    else:
        show(found)


def distances(text: str) -> tuple[int | None, ...]:
    """Spill distances from ``none,256,64``; raises OptionError."""
    found: list[int | None] = []
    for part in text.split(","):
        word = part.strip()
        if word != "none" and not (word.isascii() and word.isdigit() and len(word) < 10):
            raise OptionError("--spill", text, "none or multiples of 8, joined by commas: none,256,64")
        found.append(None if word == "none" else int(word))
    return tuple(dict.fromkeys(found))


def show(found: AsymmetricStudy) -> None:
    """Print both tables and what they come to."""
    from dlas.kernels.asymmetric.study import spell

    spills = found.options.spills
    write_table(
        (
            "layer",
            "op",
            "activations",
            "depth",
            *(f"spill {spell(s)}" for s in spills),
            "chosen",
            "largest sum",
        ),
        [
            (
                layer.found.name,
                layer.found.op,
                "int8" if layer.found.signed else "uint8",
                layer.found.depth,
                *(_share(layer.found.stats[s]) for s in spills),
                spell(layer.found.spill),
                max(stats.largest for stats in layer.found.stats.values()),
            )
            for layer in found.layers
        ],
        title="Overflows of 16 bits: share of the additions / of the outputs (simulated)",
    )
    write_table(
        (
            "layer",
            "M x N x K",
            "MACs",
            "symmetric cycles",
            "asymmetric cycles",
            "speed-up",
            "systolic speed-up",
        ),
        [
            (
                layer.found.name,
                f"{layer.found.rows} x {layer.found.columns} x {layer.found.depth}",
                count_text(layer.macs),
                f"{layer.cycles['symmetric'].value:.0f}",
                f"{layer.cycles['asymmetric'].value:.0f}",
                f"{layer.speedup.value:.2f}x",
                f"{layer.array_speedup.value:.2f}x",
            )
            for layer in found.layers
        ],
        title="One sample at the chosen distances (estimated)",
    )
    for spill in spills:
        stats = found.overflow(spill)
        say(
            f"spill {spell(spill)}: {stats.overflows} of {count_text(stats.updates)} additions overflow, in "
            f"{stats.any_overflow} of {count_text(stats.outputs)} outputs; {stats.wrong} outputs are wrong (simulated)"
        )
    array = found.array
    say(f"all layers with the instruction: {found.speedup.value:.2f}x (estimated)")
    say(
        f"all layers on an array of {array.rows} x {array.columns}: {found.array_speedup.value:.2f}x (estimated)"
    )


def _share(stats: OverflowStats) -> str:
    return f"{stats.overflow_rate:.2%} / {stats.any_rate:.2%}" if stats.overflows else "0"
