"""``dlas profile``: where the time of a model goes."""

from __future__ import annotations

from typing import Annotated

import typer

from dlas.cli._shared import Architecture, Json, figure_text, say, write_json, write_table
from dlas.core.errors import UnsupportedError


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("profile")(profile)


def profile(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    backend: Annotated[
        str, typer.Option(help="Back end, such as onnxruntime or tvm:opt=O3.")
    ] = "onnxruntime",
    threads: Annotated[int, typer.Option(help="Threads.", min=1)] = 1,
    target: Annotated[str, typer.Option(help="Device, such as host:isa=x86-64-v3.")] = "host",
    architecture: Architecture = "",
    json: Json = False,
) -> None:
    """Time per layer as the back end itself reports it (medians, measured)."""
    from dlas import api
    from dlas.core.timing import Protocol

    (row,) = api.bench(
        api.load(model, architecture=architecture),
        [backend],
        threads=[threads],
        target=target,
        protocol=Protocol.quick(),
        layers=True,
        tell=lambda text: say("  " + text),
    )
    if str(row.outcome) != "ok" or not row.layers:
        raise UnsupportedError(f"{backend}: {row.reason}", "try --backend onnxruntime")
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
