"""``dlas hw list``, ``verify``, ``area``, ``verilog`` and ``new``: the designs themselves."""

from __future__ import annotations

from dataclasses import dataclass
from pathlib import Path
from typing import TYPE_CHECKING, Annotated, Any

import typer

from dlas.cli._shared import (
    Architecture,
    Bar,
    Json,
    check_place,
    figure_text,
    say,
    write_json,
    write_table,
    write_text,
)
from dlas.cli.hw._shared import Chosen, told

if TYPE_CHECKING:
    from dlas.hardware.accelerator import Accelerator
    from dlas.hardware.synthesis.area import Area
    from dlas.hardware.synthesis.boards import Fit
    from dlas.hardware.synthesis.fmax import Routed
    from dlas.runtime.unit_profile import UnitProfile


def add_to(group: typer.Typer) -> None:
    """Enter the commands."""
    group.command("list")(list_accelerators)
    group.command("verify")(verify)
    group.command("area")(area)
    group.command("verilog")(verilog)
    group.command("new")(new)


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


def verify(
    accelerator: Chosen,
    trials: Annotated[int, typer.Option(help="Random layers.", min=1)] = 200,
    seed: Annotated[int, typer.Option(help="Of layers, inputs and back-pressure.", min=0)] = 0,
    json: Json = False,
) -> int:
    """Prove that model and RTL agree: results to the bit, every counter, also under back-pressure."""
    from dlas.hardware.accelerator import accelerator_for
    from dlas.hardware.verification import verify as compare

    with Bar() as bar:
        found = compare(accelerator_for(accelerator), trials=trials, seed=seed, tell=told(bar))
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
    model: Annotated[
        str,
        typer.Option(
            help="A quantised network: also count its cycles, so that area and speed stand side by side."
        ),
    ] = "",
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """Area by Yosys, whether boards hold it, and with --fmax the clock that nextpnr reaches on an ECP5."""
    from dlas import api
    from dlas.hardware.accelerator import accelerator_for
    from dlas.hardware.synthesis.area import area as area_of
    from dlas.hardware.synthesis.boards import BOARDS, fits
    from dlas.hardware.synthesis.fmax import fmax as clock_of
    from dlas.runtime.unit_profile import profile_units

    chosen = [accelerator_for(text) for text in accelerators]
    network = api.load(model, architecture=architecture) if model else None
    # First what takes a second and may be refused: synthesis takes minutes.
    profiles = [profile_units(network, accelerator) if network else None for accelerator in chosen]
    _refuse_nothing_in_common([profile for profile in profiles if profile])
    found = []
    for accelerator, ran in zip(chosen, profiles, strict=True):
        say(f"  {accelerator.spelled()}: Yosys")
        taken = area_of(accelerator, family=family, nodsp=nodsp)
        boards = [fits(taken, board) for board in BOARDS.values() if board.family == family]
        clock = None
        if fmax:
            say(f"  {accelerator.spelled()}: nextpnr")
            clock = clock_of(accelerator)
        found.append(_Built(accelerator, taken, boards, clock, ran))
    if json:
        write_json([one.to_dict() for one in found])
        return
    columns = ["accelerator", "LUTs", "flip-flops", "carries", "DSPs", "BRAM tiles", "fits", "MHz"]
    rows: list[list[str]] = []
    notes: list[str] = []
    for one in found:
        fit = ", ".join(f"{b.board.name} {'yes' if b.fits else 'no: ' + b.reason}" for b in one.boards)
        mhz = "" if one.clock is None else figure_text(next(iter(one.clock.figures.values())))
        counts = [f"{n:,}" for n in (one.area.luts, one.area.flip_flops, one.area.carries, one.area.dsps)]
        rows.append([one.name, *counts, f"{one.area.bram_tiles:g}", fit, mhz])
    if network is not None:
        columns += ["cycles", "speed", "speed per LUT", "energy"]
        notes += _beside_speed(rows, found, network.name, nodsp)
    write_table(columns, rows)
    say(f"area estimated for {family} by {found[0].area.flow}")
    for text in notes:
        say(text)
    for one in found:
        if one.clock is not None and one.clock.path:
            say(f"longest path of {one.name}: {one.clock.path}")
    if fmax:
        say("clock estimated for an ECP5 by nextpnr, out of context: open tools give none for 7 series")


@dataclass(frozen=True)
class _Built:
    accelerator: Accelerator
    area: Area
    boards: list[Fit]
    clock: Routed | None
    ran: UnitProfile | None

    @property
    def name(self) -> str:
        return self.accelerator.spelled()

    def to_dict(self) -> dict[str, Any]:
        return {
            "accelerator": self.name,
            "area": self.area.to_dict(),
            "boards": [board.to_dict() for board in self.boards],
            **({} if self.clock is None else {"fmax": self.clock.to_dict()}),
            **({} if self.ran is None else {"network": self.ran.to_dict()}),
        }


def _in_common(profiles: list[UnitProfile]) -> set[str]:
    """Layers that every accelerator takes."""
    return set.intersection(*({layer.name for layer in profile.layers} for profile in profiles))


def _refuse_nothing_in_common(profiles: list[UnitProfile]) -> None:
    from dlas.core.errors import UnsupportedError

    if profiles and not _in_common(profiles):
        names = ", ".join(profile.accelerator for profile in profiles)
        raise UnsupportedError(
            f"{names} take no layer of {profiles[0].model} in common",
            "compare accelerators of the same operators",
        )


def _beside_speed(rows: list[list[str]], found: list[_Built], network: str, nodsp: bool) -> list[str]:
    """Append the columns of speed, over the layers that every accelerator takes; returns what they mean."""
    from dlas.hardware.accelerated import CLOCK_MHZ
    from dlas.hardware.accelerator import Cycles
    from dlas.hardware.synthesis.energy import energy

    common = _in_common([one.ran for one in found if one.ran is not None])
    ran = [(one, one.ran.layers) for one in found if one.ran is not None]
    taken = [sum((x.counted for x in layers if x.name in common), Cycles()) for _, layers in ran]
    used = [
        energy(one.accelerator, cycles, clock_mhz=CLOCK_MHZ, nodsp=nodsp)
        for (one, _), cycles in zip(ran, taken, strict=True)
    ]
    for row, (one, _), cycles, spent in zip(rows, ran, taken, used, strict=True):
        speed = taken[0].total / cycles.total
        per_lut = speed * ran[0][0].area.luts / one.area.luts
        row += [
            f"{cycles.total:,}",
            f"{speed:.2f}x",
            f"{per_lut:.2f}x",
            f"{spent.relative_to(used[0]).value:.2f}x",
        ]
    return [
        f"cycles, simulated, of one row through the {len(common)} layers of {network} that all of them take; speed "
        f"(equal clocks) and energy against {found[0].name}",
        f"energy estimated at {CLOCK_MHZ:g} MHz from assumed energies per operation: a ratio, no joules",
    ]


def verilog(
    accelerator: Chosen,
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
