"""``dlas hw llm`` and ``dlas hw dqa``: accelerators that take no convolutions."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any, TypeVar

import typer

from dlas.cli._shared import Bar, Json, count_text, figure_text, say, write_json, write_table
from dlas.cli.hw._shared import Level, told
from dlas.core.errors import OptionError

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator
    from dlas.hardware.accelerators._bfp.llm import LlmReport
    from dlas.hardware.accelerators._bfp.report import ProductReport

K = TypeVar("K", bound="Accelerator")


def add_to(group: typer.Typer) -> None:
    """Enter the commands."""
    group.command("llm")(llm)
    group.command("dqa")(dqa)


def llm(
    file: Annotated[Path, typer.Argument(help="A language model in GGUF.")],
    accel: Annotated[
        str, typer.Option("--accel", help="bfp with its options, such as bfp:lanes=32.")
    ] = "bfp",
    tokens: Annotated[
        int, typer.Option(help="Tokens that are generated, and tokens of a prompt.", min=1)
    ] = 16,
    board: Annotated[
        str, typer.Option(help="Whose processor computes what the accelerator does not take.")
    ] = "kv260",
    clock_mhz: Annotated[float, typer.Option("--mhz", help="Clock of accelerator and bus.", min=1)] = 200.0,
    tensor: Annotated[
        str,
        typer.Option(help="Run the product with this tensor instead, and compare it with exact arithmetic."),
    ] = "",
    inputs: Annotated[int, typer.Option(help="With --tensor: rows of activations.", min=1)] = 1,
    level: Level = "tlm",
    json: Json = False,
) -> None:
    """A language model in block formats on the accelerator bfp: tokens per second, and what bounds it."""
    from dlas.hardware.accelerators._bfp.accelerator import BfpAccelerator
    from dlas.hardware.accelerators._bfp.llm import llm_report
    from dlas.hardware.accelerators._bfp.report import product_report

    accelerator = _of_kind(accel, BfpAccelerator, "bfp")
    if tensor:
        product = product_report(file, tensor, accelerator, inputs=inputs, level=level)
        write_json(product.to_dict()) if json else _show_product(product)
        return
    found = llm_report(file, accelerator, tokens=tokens, board=board, clock_mhz=clock_mhz)
    write_json(found.to_dict()) if json else _show_llm(found)


def _show_product(found: ProductReport) -> None:
    cost = found.cost
    write_table(("counter", "cycles"), [(name, f"{count:,}") for name, count in found.counters.items()])
    say(
        f"{cost.tensor} ({cost.type}, {cost.outputs} x {cost.k}) by {cost.inputs} rows on {found.accelerator} "
        f"({found.level}): {count_text(cost.cycles.macs)} MACs, "
        f"{100 * cost.cycles.utilisation:.1f} % of the multipliers used, the bus busy "
        f"{100 * cost.bus_utilisation:.1f} %, bound by the {cost.bound}; cycles simulated"
    )
    say(
        f"largest difference from exact sums: {found.difference:.2g} of the largest output (float32 between blocks)"
    )


def _show_llm(found: LlmReport) -> None:
    kinds: dict[str, list[Any]] = {}
    for cost in found.products:
        kinds.setdefault(cost.type, []).append(cost)
    rows = []
    for kind, costs in kinds.items():
        cycles = sum(cost.all_cycles.total for cost in costs)
        bus = sum(cost.bus_cycles * cost.times for cost in costs)
        macs, moved = (sum(getattr(cost.all_cycles, name) for cost in costs) for name in ("macs", "bytes_in"))
        count = sum(cost.times for cost in costs)
        rows.append(
            (
                kind,
                count,
                count_text(macs),
                f"{moved / 2**20:.1f} MiB",
                f"{cycles:,}",
                f"{100 * bus / cycles:.1f} %",
            )
        )
    write_table(
        ("format", "products", "MACs", "weights and inputs", "cycles", "bus busy"), rows, title="one token"
    )
    for entry in found.on_cpu[:5]:
        say(f"on the CPU: {entry.tensor} ({entry.reason})")
    if len(found.on_cpu) > 5:
        say(f"and {len(found.on_cpu) - 5} more tensors")
    say(
        f"{found.file} ({found.architecture}) on {found.accelerator} at {found.clock_mhz:g} MHz beside {found.board}'s "
        f"processor; the format changes {found.switches} times a token"
    )
    for name, words in (
        ("tokens_per_s", "tokens per second, one by one"),
        ("prompt_tokens_per_s", f"tokens per second of a prompt of {found.tokens}"),
        ("latency_ms", "ms per token"),
        ("accelerator_ms", "of it the accelerator, ms"),
        ("dma_ms", "transfers beyond an ideal bus, ms"),
        ("cpu_ms", "the CPU, ms"),
        ("accelerated_macs", "products on the accelerator"),
        ("bus_bound", "cycles in products that the bus bounds"),
    ):
        figure = found.figures[name]
        say(f"  {words}: {figure_text(figure)} ({figure.source}{'; ' + figure.note if figure.note else ''})")


def dqa(
    accel: Annotated[str, typer.Option("--accel", help="dqa with its options, such as dqa:n=4.")] = "dqa",
    sizes: Annotated[
        str, typer.Option(help="Values per channel, such as 49,196,784,3136.")
    ] = "49,196,784,3136",
    runs: Annotated[int, typer.Option(help="Channels per size.", min=1)] = 20,
    level: Level = "tlm",
    seed: Annotated[int, typer.Option(help="Of the channels.", min=0)] = 0,
    json: Json = False,
) -> None:
    """What quantising activations costs: DQA's unit beside one that searches for its scale, size by size."""
    from dlas.hardware.accelerators._dqa.accelerator import DqaAccelerator
    from dlas.hardware.accelerators._dqa.comparison import compare_units

    accelerator = _of_kind(accel, DqaAccelerator, "dqa")
    with Bar() as bar:
        found = compare_units(accelerator, _sizes(sizes), runs=runs, level=level, seed=seed, tell=told(bar))
    if json:
        write_json(found.to_dict())
        return
    columns = (
        "values",
        "store",
        "restore",
        "search",
        "ratio",
        "bits per value",
        "search's bits",
        "rms error",
        "search's",
    )
    rows = []
    for row in found.rows:
        cycles = (f"{group['total'].value:,.0f}" for group in (row.store, row.restore, row.noisy))
        names = ("ratio", "bits_per_value", "noisy_bits_per_value", "rms_error", "noisy_rms_error")
        rows.append((f"{row.values:,}", *cycles, *(figure_text(row.figures[name]) for name in names)))
    write_table(columns, rows)
    say(
        f"{found.accelerator} ({found.level}): {found.exact} channels, every code came back as it was stored; "
        "cycles are medians, simulated for DQA's unit; the unit that searches is a cycle model only"
    )


def _sizes(text: str) -> list[int]:
    parts = [part.strip() for part in text.split(",")]
    if not all(part.isascii() and part.isdecimal() for part in parts):
        raise OptionError("--sizes", text, "whole numbers joined by commas, such as 49,196")
    return [int(part) for part in parts]


def _of_kind(text: str, kind: type[K], name: str) -> K:
    from dlas.hardware.accelerator import accelerator_for

    found = accelerator_for(text)
    if not isinstance(found, kind):
        raise OptionError("--accel", text, f"{name} with its options")
    return found
