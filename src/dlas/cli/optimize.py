"""``dlas optimize``: choose a kernel for every layer and store the plan."""

from __future__ import annotations

from pathlib import Path
from typing import Annotated

import typer

from dlas.cli._shared import Architecture, Json, say, write_json, write_table


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("optimize")(optimize)


def optimize(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    policy: Annotated[
        str,
        typer.Option(
            help="portfolio (whole networks timed), measure (kernels timed), rules, or fixed (--impl)."
        ),
    ] = "portfolio",
    impl: Annotated[
        list[str] | None,
        typer.Option(
            help="Kernel to use, such as Conv=gspc or node:/layer1/conv=onnxruntime; the last one wins."
        ),
    ] = None,
    without: Annotated[
        list[str] | None, typer.Option("--no-pass", help="Pass of the engine to leave out.")
    ] = None,
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    isa: Annotated[str, typer.Option(help="Instruction set, such as x86-64-v3.")] = "native",
    exact: Annotated[
        bool, typer.Option("--exact", help="Leave out kernels that differ by more than rounding (winograd).")
    ] = False,
    plugin: Annotated[
        list[Path] | None,
        typer.Option(help="Shared object with layers of your own; loading it runs its code."),
    ] = None,
    output: Annotated[Path | None, typer.Option("-o", "--output", help="Plan file to write (JSON).")] = None,
    force: Annotated[bool, typer.Option("--force", help="Overwrite the output.")] = False,
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """Choose a kernel for every layer of a network on this machine."""
    from dlas import api
    from dlas.core.errors import OptionError

    if output is not None and output.exists() and not force:
        raise OptionError("-o", str(output), "a file that is not there yet, or --force")
    plan, rows = api.optimize(
        api.load(model, architecture=architecture),
        policy=policy,
        impl=impl or (),
        without=without or (),
        threads=threads,
        isa=isa,
        exact=exact,
        plugins=plugin or (),
    )
    if output is not None:
        plan.write(output)
    if json:
        write_json({"plan": plan.to_dict(), "output": None if output is None else str(output)})
        return
    write_table(("layer", "operator", "kernel", "layouts"), rows)
    for name, milliseconds in sorted(plan.measured_ms.items(), key=lambda item: item[1]):
        say(f"  {name}: {milliseconds:.4f} ms (measured, lower quartile)")
    say(f"the whole network runs on {plan.backend}" if plan.backend else "own kernels, as listed")
    if output is not None:
        say(f"wrote {output}")
