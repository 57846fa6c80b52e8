"""``dlas info``: what a model file is."""

from __future__ import annotations

from typing import Annotated

import typer

from dlas.cli._shared import (
    Architecture,
    Json,
    count_text,
    figure_text,
    say,
    size_text,
    write_json,
    write_table,
)


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("info")(info)


def info(
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    architecture: Architecture = "",
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="List the layers.")] = True,
    json: Json = False,
) -> None:
    """A model's inputs, layers, sizes, MACs, preprocessing and history."""
    from dlas.api import load
    from dlas.graph.analysis import figures, summary
    from dlas.graph.analysis import layers as layer_rows

    loaded = load(model, architecture=architecture)
    facts, numbers, rows = summary(loaded), figures(loaded), layer_rows(loaded)
    if json:
        write_json(
            {
                "name": loaded.name,
                "kind": facts["kind"],
                "source": dict(loaded.source),
                "inputs": loaded.inputs,
                "outputs": loaded.outputs,
                "figures": {k: f.to_dict() for k, f in numbers.items()},
                "ops": facts["ops"],
                "preprocessing": loaded.preprocessing,
                "history": [s.to_dict() for s in loaded.history],
                "layers": rows,
            }
        )
        return
    head = [("model", f"{loaded.name} ({facts['kind']})")]
    head += [
        ("source", ", ".join(f"{k} {v[:16]}" if k == "sha256" else f"{v}" for k, v in loaded.source.items()))
    ]
    head += [("input", f"{s.name}: {s.dtype} [{_shape(s)}]") for s in loaded.inputs]
    head += [("output", f"{s.name}: {s.dtype} [{_shape(s)}]") for s in loaded.outputs]
    head += [(name, _number(figure)) for name, figure in numbers.items()]
    if loaded.preprocessing is not None:
        head.append(("preprocessing", loaded.preprocessing.to_json()))
    head += [
        ("history", " ".join([s.action, *(f"{k}={v}" for k, v in s.options.items())])) for s in loaded.history
    ]
    head += [("note", note) for step in loaded.history for note in step.notes]
    write_table(("", ""), head)
    if layers:
        write_table(
            ("layer", "op", "output", "params", "bits", "weights", "MACs", "zeros"),
            [
                (
                    r.name,
                    r.op,
                    "x".join(map(str, r.output_shape or ())),
                    count_text(r.params) if r.params else "",
                    r.weight_bits or "",
                    size_text(r.weight_bytes) if r.weight_bytes else "",
                    count_text(r.macs) if r.macs else "",
                    f"{r.sparsity:.0%}" if r.params else "",
                )
                for r in rows
            ],
        )
    if loaded.preprocessing is None:
        say("this file does not say what samples must go through; dlas run finds it out from labelled data")


def _shape(spec) -> str:
    return ", ".join(map(str, spec.shape))


def _number(figure) -> str:
    value = count_text(figure.value) if figure.unit == "count" else figure_text(figure)
    return f"{value}  ({figure.source})"
