"""``dlas compress``: apply compression methods to a model file."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import (
    Architecture,
    Bar,
    Data,
    Json,
    Split,
    check_target,
    figure_text,
    guarded_target,
    method_options,
    say,
    size_text,
    write_json,
    write_table,
)
from dlas.core.errors import DlasError

if TYPE_CHECKING:
    from dlas.compress.method import Method, Plan
    from dlas.data.dataset import Dataset
    from dlas.graph.model import Model, Step


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    settings = {"ignore_unknown_options": True, "allow_extra_args": True}
    app.command("compress", context_settings=settings)(compress)


def compress(
    context: typer.Context,
    model: Annotated[str, typer.Argument(help="Model file, or the name of a network dlas ships.")],
    methods: Annotated[
        list[str],
        typer.Argument(
            help="Methods in order, such as int8 or magnitude:sparsity=0.8; see `dlas list compress`."
        ),
    ],
    output: Annotated[
        Path | None,
        typer.Option(
            "-o",
            "--output",
            help="File to write; its ending names the format. Default NAME-METHODS, in the model's own format where "
            "that can be written, else .onnx.",
        ),
    ] = None,
    data: Data = "",
    split: Split = "",
    rows: Annotated[int, typer.Option(help="Rows handed to the method, 0 for all.")] = 0,
    architecture: Architecture = "",
    plan: Annotated[bool, typer.Option("--plan", help="Only say what would change.")] = False,
    force: Annotated[bool, typer.Option("--force", help="Replace an existing output file.")] = False,
    json: Json = False,
) -> None:
    """Compress a network. Options of a single method may follow as --sparsity 0.8."""
    from dlas.api import load, prepared_for
    from dlas.cli._shared import dataset

    members = _members([*methods, *context.args])
    target = output or _default_target(model, members)
    if not plan:
        check_target(target, force)
    found = dataset(data, split, rows)
    network = load(model, architecture=architecture)
    if found is not None:
        network, note = prepared_for(network, found)
        if note:
            say(note)
    if plan:
        _show_plans(_plans(network, members, found), json)
    else:
        small = _applied(network, members, found)
        with guarded_target(target, force):
            _write(network, small, target, json)


def _show_front(step: Step) -> None:
    """The networks a step chose from, where it tried several."""
    front = step.options.get("front")
    if not isinstance(front, list):
        return
    rows = []
    for point in front:
        sqnr = point.get("sqnr_db")
        rows.append(
            (
                "chosen" if point.get("chosen") else point.get("rank") or "",
                len(point.get("float_layers", ())),
                size_text(point["size_bytes"]),
                _percent(point.get("label_diff")),
                "same answers" if sqnr is None else f"{sqnr:.1f} dB",
                _percent(point.get("held_out_label_diff")),
                f"{point['latency_ms']:.3g}" if "latency_ms" in point else "",
            )
        )
    columns = ("rank", "float layers", "size", "labels differ", "SQNR", "on other rows", "ms")
    write_table(columns, rows, title=f"{step.action}: from int8 to float")


def _percent(share: float | None) -> str:
    return "" if share is None else f"{100 * share:.2f} %"


def _members(arguments: list[str]) -> list[Method]:
    from dlas.compress.method import methods
    from dlas.core.options import Choice

    names, options = method_options(arguments)
    choices = [Choice.parse(n) for n in names]
    if options and len(choices) != 1:
        raise DlasError("options can follow one method only", "write them behind it: magnitude:sparsity=0.8")
    return [methods.get(c.name)(**{**c.as_dict(), **options}) for c in choices]


def _default_target(model: str, members: list[Method]) -> Path:
    from dlas.api import is_architecture, model_path
    from dlas.graph.format import format_for

    steps = "-".join(m.name for m in members)
    if is_architecture(model):
        return Path(f"{model.partition(':')[0]}-{steps}.onnx")
    source = model_path(model)
    ending = source.suffix.lower() if format_for(source).can_write else ".onnx"
    return Path(f"{source.stem}-{steps}{ending}")


def _plans(network: Model, members: list[Method], data: Dataset | None) -> list[Plan]:
    """What each method would change; all but the last are carried out, as the next one sees their result."""
    from dlas.compress.method import costs_for
    from dlas.runtime.costs import engine_costs

    plans = []
    with Bar() as bar:
        bar.start(len(members))
        for at, member in enumerate(members):
            bar.step(f"compress: {member.name}")
            given = costs_for(member, engine_costs)
            plans.append(member.plan(network, data, **given))
            if at < len(members) - 1:
                network = member.apply(network, data, **given)
            bar.advance()
    return plans


def _applied(network: Model, members: list[Method], data: Dataset | None) -> Model:
    """The network after all methods, with progress in hundredths; what was done before is in the cache."""
    from dlas.compress.method import compress_once
    from dlas.core.cache import Cache
    from dlas.runtime.costs import engine_costs

    cache = Cache()
    with Bar() as bar:
        bar.start(100)
        for member in members:
            bar.step(f"compress: {member.name}")
            done = 0

            def tell(fraction: float, text: str) -> None:
                nonlocal done
                units = int(100 * fraction) // len(members) - done
                done += units
                bar.step(text)
                bar.advance(units)

            network = compress_once(cache, member, network, data, tell, engine_costs)
    return network


def _show_plans(plans: list[Plan], json: bool) -> None:
    if json:
        write_json(plans)
        return
    for found in plans:
        rows = [(c.layer, c.what, c.before, c.after) for c in found.changes]
        write_table(("layer", "what", "before", "after"), rows, title=found.method)
        for name, figure in found.expected.items():
            say(f"expected {name}: {figure_text(figure)} ({figure.source})")
        for note in found.notes:
            say(f"note: {note}")


def _write(before: Model, after: Model, target: Path, json: bool) -> None:
    from dlas.api import save
    from dlas.graph.analysis import figures, file_figures
    from dlas.graph.changes import diff
    from dlas.graph.format import companions, format_for

    written = save(after, target)
    files = [target, *companions(target)]
    size = sum(f.stat().st_size for f in files)
    old, new = figures(before), figures(after)
    if format_for(target).name != "onnx":
        new.update(file_figures(files, f"{format_for(target).name} file"))
    changes = diff(before, after)
    notes = [*(n for s in after.history[len(before.history) :] for n in s.notes), *written.notes]
    if json:
        write_json(
            {
                "output": str(written.path),
                "bytes": size,
                "before": {k: f.to_dict() for k, f in old.items()},
                "after": {k: f.to_dict() for k, f in new.items()},
                "changes": changes,
                "notes": notes,
                "history": [s.to_dict() for s in after.history],
            }
        )
        return
    write_table(
        ("layer", "op", "before", "after"), [(c["layer"], c["op"], c["before"], c["after"]) for c in changes]
    )
    for step in after.history[len(before.history) :]:
        _show_front(step)
    for name in new:
        if name in old and old[name].value != new[name].value:
            texts = [
                figure_text(f) + (f" ({f.note})" if old[name].note != new[name].note else "")
                for f in (old[name], new[name])
            ]
            say(f"{name}: {' -> '.join(texts)} ({new[name].source})")
    for note in notes:
        say(f"note: {note}")
    say(f"wrote {written.path} ({size_text(size)})")
