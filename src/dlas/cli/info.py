"""``dlas info``: what a model file is."""

from __future__ import annotations

import math
from typing import TYPE_CHECKING, Annotated, Any

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

if TYPE_CHECKING:
    from dlas.core.figure import Figure
    from dlas.graph.model import Model, TensorSpec
    from dlas.graph.weights import WeightFile

_MOST_SHOWN, _LONGEST_TEXT = 6, 160  # values of a list and characters of a text in a table
_MOST_IN_JSON = 500_000  # values of a list; the largest vocabularies have fewer


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("info")(info)


def info(
    model: Annotated[str, typer.Argument(help="Model file, a network dlas ships, or an architecture.")],
    architecture: Architecture = "",
    layers: Annotated[bool, typer.Option("--layers/--no-layers", help="List the layers.")] = True,
    json: Json = False,
) -> None:
    """A model's inputs, layers, sizes, MACs, preprocessing and history; of a file of weights its tensors."""
    from dlas.api import is_architecture, model_path, untrained
    from dlas.graph.guard import import_contents
    from dlas.graph.weights import WeightFile

    found = untrained(model) if is_architecture(model) else import_contents(model_path(model), architecture)
    if isinstance(found, WeightFile):
        if json:
            write_json(_weights_json(found, model_path(model).stem))
        else:
            _show_weights(found, model_path(model).stem, layers)
    elif json:
        write_json(_network_json(found))
    else:
        _show_network(found, layers)


def _network_json(network: Model) -> dict[str, Any]:
    from dlas.graph.analysis import figures, layers, summary

    facts = summary(network)
    return {
        "name": network.name,
        "kind": facts["kind"],
        "source": dict(network.source),
        "inputs": network.inputs,
        "outputs": network.outputs,
        "figures": {k: f.to_dict() for k, f in figures(network).items()},
        "ops": facts["ops"],
        "preprocessing": network.preprocessing,
        "history": [s.to_dict() for s in network.history],
        "layers": layers(network),
    }


def _show_network(network: Model, with_layers: bool) -> None:
    from dlas.graph.analysis import figures, summary

    head = [("model", network.name), ("kind", summary(network)["kind"])]
    head += [
        ("source", ", ".join(f"{k} {v[:16]}" if k == "sha256" else v for k, v in network.source.items()))
    ]
    head += [("input", f"{s.name}: {s.dtype} [{_shape(s)}]") for s in network.inputs]
    head += [("output", f"{s.name}: {s.dtype} [{_shape(s)}]") for s in network.outputs]
    head += [(name, _number(figure)) for name, figure in figures(network).items()]
    if network.preprocessing is not None:
        head.append(("preprocessing", network.preprocessing.to_json()))
    head += [
        ("history", " ".join([s.action, *(f"{k}={_brief(v)}" for k, v in s.options.items())]))
        for s in network.history
    ]
    head += [("note", note) for step in network.history for note in step.notes]
    write_table(("", ""), head)
    if with_layers:
        _show_layers(network)
    if network.preprocessing is None:
        say("this file does not say what samples must go through; dlas run finds it out from labelled data")


def _show_layers(network: Model) -> None:
    from dlas.graph.analysis import layers

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
            for r in layers(network)
        ],
    )


def _weights_json(found: WeightFile, name: str) -> dict[str, Any]:
    return {
        "name": name,
        "kind": "weights",
        "format": found.format,
        "architecture": found.architecture,
        "note": found.note,
        "params": found.params,
        "weight_bytes": found.nbytes,
        "types": [{**vars(t), "bits_per_weight": t.bits_per_weight} for t in found.by_type()],
        "metadata": {k: _shortened(v, _MOST_IN_JSON) for k, v in found.metadata.items()},
        "tensors": [{**vars(t), "bits_per_weight": t.bits_per_weight} for t in found.tensors],
    }


def _show_weights(found: WeightFile, name: str, with_tensors: bool) -> None:
    bits = 8 * found.nbytes / found.params if found.params else 0.0
    head = [("file", name), ("kind", "weights without a graph"), ("format", found.format)]
    head += [("architecture", found.architecture)] if found.architecture else []
    head += [
        ("tensors", f"{len(found.tensors)}"),
        ("params", count_text(found.params)),
        ("weights", f"{size_text(found.nbytes)}, {bits:.4g} bits per weight"),
    ]
    write_table(("", ""), head)
    if found.metadata:
        write_table(("metadata", "value"), [(k, _value_text(v)) for k, v in found.metadata.items()])
    write_table(
        ("type", "tensors", "params", "size", "bits per weight"),
        [
            (t.dtype, t.tensors, count_text(t.size), size_text(t.nbytes), f"{t.bits_per_weight:.4g}")
            for t in found.by_type()
        ],
    )
    if with_tensors:
        write_table(
            ("tensor", "shape", "type", "bits per weight", "size"),
            [
                (
                    t.name,
                    "x".join(map(str, t.shape)),
                    t.dtype,
                    f"{t.bits_per_weight:.4g}",
                    size_text(t.nbytes),
                )
                for t in found.tensors
            ],
        )
    say(f"no network: {found.note}")


def _value_text(value: Any) -> str:
    """One line for a table: the first values of a list and how many there are, the start of a long text."""
    if isinstance(value, list) and len(value) > _MOST_SHOWN:
        return f"[{', '.join(_value_text(v) for v in value[:_MOST_SHOWN])}, … {len(value)} values]"
    if isinstance(value, list):
        return f"[{', '.join(map(_value_text, value))}]"
    text = " ".join(value.split()) if isinstance(value, str) else f"{value}"
    return text if len(text) <= _LONGEST_TEXT else f"{text[:_LONGEST_TEXT]}… {len(text)} characters"


def _shortened(value: Any, most: int) -> Any:
    """A value for JSON: lists beyond ``most`` as their start and length, numbers that JSON cannot spell as text."""
    if isinstance(value, list):
        short = [_shortened(v, most) for v in value[:most]]
        return short if len(value) <= most else {"first": short, "length": len(value)}
    return str(value) if isinstance(value, float) and not math.isfinite(value) else value


def _shape(spec: TensorSpec) -> str:
    return ", ".join(map(str, spec.shape))


def _brief(value: object) -> str:
    """An option of a step; a list that a method recorded by its length."""
    return f"[{len(value)}]" if isinstance(value, list) else str(value)


def _number(figure: Figure) -> str:
    value = count_text(figure.value) if figure.unit == "count" else figure_text(figure)
    return f"{value}  ({figure.source})"
