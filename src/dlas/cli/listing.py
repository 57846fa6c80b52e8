"""``dlas list``: every choice of every layer, with what it needs."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlas.cli._shared import Json, write_json, write_table


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("list")(list_choices)


def list_choices(
    layer: Annotated[
        str, typer.Argument(help="A layer (data, models, compress, ...) or a family (method, backend, ...).")
    ] = "",
    json: Json = False,
) -> None:
    """Every choice, by layer, with what it needs."""
    from dlas.core.errors import UnknownNameError

    found = choices()
    if layer:
        kept = [c for c in found if layer in (c["layer"], c["family"], c["family"] + "s")]
        if not kept:
            raise UnknownNameError("layer", layer, {c["layer"] for c in found} | {c["family"] for c in found})
        found = kept
    if json:
        write_json(found)
        return
    rows = [
        (c["layer"], c["family"], c["name"], c["summary"], _options(c["options"]), c["missing"] or "ready")
        for c in found
    ]
    write_table(("layer", "family", "name", "what it does", "options", "needs"), rows)


def choices() -> list[dict[str, Any]]:
    """One dictionary per registered member."""
    from dlas.compress.method import methods
    from dlas.core.options import describe_options
    from dlas.data.dataset import loaders
    from dlas.graph.format import formats
    from dlas.hardware.accelerator import accelerators
    from dlas.hardware.target import targets
    from dlas.kernels.kernel import kernels
    from dlas.models.architecture import architectures
    from dlas.runtime.backend import backends
    from dlas.runtime.converter import converters
    from dlas.verify.attack.attack import attacks
    from dlas.verify.localize.case import explanations
    from dlas.verify.mutate.mutation import mutations
    from dlas.verify.passes.tool import pass_tools
    from dlas.verify.repair.strategy import strategies

    families = (
        ("data", loaders),
        ("models", architectures),
        ("graph", formats),
        ("kernels", kernels),
        ("compress", methods),
        ("runtime", backends),
        ("runtime", converters),
        ("hardware", targets),
        ("hardware", accelerators),
        ("verify", attacks),
        ("verify", mutations),
        ("verify", pass_tools),
        ("verify", explanations),
        ("verify", strategies),
    )
    found = []
    for layer, registry in families:
        for name, member in registry.survey():
            broken = isinstance(member, Exception)
            found.append(
                {
                    "layer": layer,
                    "family": registry.family,
                    "name": name,
                    "summary": "" if broken else member.summary,
                    "options": {} if broken else describe_options(member.Options),
                    "missing": f"broken: {type(member).__name__}: {member}" if broken else member.missing(),
                }
            )
    return found


def _options(options: dict[str, dict[str, Any]]) -> str:
    """Names and defaults, those for one use together: ``max_nodes=10000 (reading); batch=1 (writing)``."""
    by_use: dict[str, list[str]] = {}
    for name, o in options.items():
        by_use.setdefault(o.get("use", ""), []).append(f"{name}={o['default']}")
    return "; ".join(", ".join(texts) + (f" ({use})" if use else "") for use, texts in by_use.items())
