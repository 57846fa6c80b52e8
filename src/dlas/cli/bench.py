"""``dlas bench``: time a model on several back ends."""

from __future__ import annotations

from typing import Annotated

import typer

from dlas.cli._shared import Architecture, Json, figure_text, say, write_json, write_table
from dlas.core.errors import OptionError
from dlas.core.options import split_choices


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("bench")(bench)


def bench(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    backends: Annotated[str, typer.Option(help="Back ends, such as onnxruntime,tvm:opt=O3; or all.")] = "all",
    threads: Annotated[str, typer.Option(help="Thread counts, such as 1,2.")] = "1",
    target: Annotated[str, typer.Option(help="Device, such as host:isa=x86-64-v3.")] = "host",
    quick: Annotated[bool, typer.Option("--quick", help="Shorter timing protocol.")] = False,
    architecture: Architecture = "",
    json: Json = False,
) -> int:
    """Latency of a model on every back end, interleaved, batch 1."""
    from dlas import api
    from dlas.core.timing import Protocol
    from dlas.runtime.backend import installed_backends

    chosen = installed_backends() if backends == "all" else split_choices(backends)
    rows = api.bench(
        api.load(model, architecture=architecture),
        chosen,
        threads=thread_counts(threads),
        target=target,
        protocol=Protocol.quick() if quick else Protocol(),
        tell=lambda text: say("  " + text),
    )
    if json:
        write_json([r.to_dict() for r in rows])
    else:
        write_table(
            (
                "back end",
                "threads",
                "latency ms (measured)",
                "ratio to the first",
                "peak memory",
                "outcome",
                "notes",
            ),
            [
                (
                    r.backend,
                    r.threads,
                    figure_text(r.figures.get("latency_ms")),
                    figure_text(r.figures.get("ratio")),
                    figure_text(r.figures.get("peak_memory_bytes")),
                    str(r.outcome),
                    "; ".join(filter(None, (r.reason, *r.notes, _flag(r)))),
                )
                for r in rows
            ],
        )
    return 0 if all(str(r.outcome) in ("ok", "unsupported") for r in rows) else 1


def _flag(row) -> str:
    return row.figures["latency_ms"].note if "latency_ms" in row.figures else ""


def thread_counts(text: str) -> list[int]:
    """``1,2`` as numbers."""
    try:
        counts = [int(part) for part in text.split(",")]
    except ValueError:
        counts = [0]
    if not counts or min(counts) < 1:
        raise OptionError("--threads", text, "whole numbers of at least 1, joined by commas")
    return counts
