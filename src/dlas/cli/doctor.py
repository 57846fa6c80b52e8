"""``dlas doctor``: what works on this machine."""

from __future__ import annotations

from typing import Annotated, Any

import typer

from dlas.cli._shared import Json, say, size_text, write_json, write_table


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("doctor")(doctor)


def doctor(
    json: Json = False,
    quick: Annotated[bool, typer.Option("--quick", help="Only look; do not try the back ends.")] = False,
    make_env: Annotated[
        list[str] | None,
        typer.Option(
            "--make-env",
            metavar="NAME",
            help="Build the side environment of a converter; nothing else is done.",
        ),
    ] = None,
) -> None:
    """Machine, libraries, side environments, hardware tools, and whether each back end really runs a network here."""
    if make_env:
        make_environments(make_env, json)
        return
    from dlas.core.cache import Cache
    from dlas.core.environment import fingerprint
    from dlas.core.paths import data_root

    machine = fingerprint()
    cache = Cache()
    found = {
        "machine": machine,
        "cache": {"folder": str(cache.root), "bytes": cache.size()},
        "data": str(data_root() or ""),
        "environments": environments(),
        "hardware": hardware_tools(),
        "backends": [] if quick else try_backends(),
    }
    if json:
        write_json(found)
        return
    rows = [
        ("processor", f"{machine['cpu']} ({machine['isa']})"),
        ("features", ", ".join(machine["cpu_flags"])),
        ("cores", f"{machine['cores_usable']} of {machine['cores']}"),
        ("memory", size_text(machine["memory_bytes"])),
        ("system", f"{machine['os']}, Python {machine['python']}"),
        ("libraries", ", ".join(f"{k} {v}" for k, v in machine["versions"].items())),
        ("cache", f"{found['cache']['folder']} ({size_text(found['cache']['bytes'])})"),
        ("DLAS_DATA", found["data"] or "not set"),
    ]
    write_table(("", ""), rows)
    columns = ("side environment", "state", "size", "what it is for", "versions")
    write_table(columns, [_environment_cells(e) for e in found["environments"]])
    columns = ("hardware tool", "version", "what it is for", "needs")
    write_table(columns, [(t["name"], t["version"], t["for"], t["missing"]) for t in found["hardware"]])
    if not quick:
        columns = ("back end", "state", "difference from the reference", "needs")
        cells = [(b["name"], b["state"], b["difference"], b["reason"]) for b in found["backends"]]
        write_table(columns, cells)


def hardware_tools() -> list[dict[str, str]]:
    """What simulates and synthesises accelerators; their exact models need none of it."""
    from dlas.hardware.simulation.tools import survey

    return survey()


def make_environments(names: list[str], json: bool) -> None:
    """Build side environments by name, one after the other; all names are looked up first."""
    from dlas.runtime.converter import side_environment

    wanted = [side_environment(name) for name in names]
    for environment in wanted:
        environment.build(tell=lambda text: say(f"  {text}"))
    if json:
        write_json([e for e in environments() if e["name"] in names])
        return
    for environment in wanted:
        say(f"{environment.name} is built in {environment.folder} ({size_text(environment.size())})")


def environments() -> list[dict[str, Any]]:
    """Every side environment: what it is for, whether it is built, where and how large."""
    from dlas.runtime.converter import side_environments

    return [
        {
            "name": e.name,
            "state": e.state(),
            "folder": str(e.folder),
            "bytes": e.size(),
            "summary": e.summary,
            "versions": dict(e.pins),
        }
        for e in side_environments()
    ]


def _environment_cells(environment: dict[str, Any]) -> tuple[str, ...]:
    """One line of the table: the versions of what the summary speaks of, not of all packages."""
    told = ("onnx2tf", "tensorflow", "litert-torch", "torch", "pnnx", "ncnn", "tflite2onnx", "onnx", "numpy")
    versions = ", ".join(f"{n} {environment['versions'][n]}" for n in told if n in environment["versions"])
    size = size_text(environment["bytes"]) if environment["bytes"] else ""
    return environment["name"], environment["state"], size, environment["summary"], versions


def try_backends() -> list[dict[str, Any]]:
    """Run the network dlas ships on every installed back end, in workers, and compare with the reference."""
    from dlas.api import compare
    from dlas.runtime.backend import backends

    model = "digits-cnn"
    ready = {name: member.missing() for name, member in backends.members()}
    report = compare(
        model, model, data="digits", split="test", paths=[n for n, m in ready.items() if not m], rows=20
    )
    ran = {row.path: row for row in report.paths}
    found = []
    for name, missing in ready.items():
        row = ran.get(name)
        if row is None:
            found.append({"name": name, "state": "absent", "difference": "", "reason": missing})
            continue
        difference = f"{row.comparison.max_abs:.2g}" if row.comparison else ""
        state = str(row.verdict) if row.comparison else str(row.outcome)
        found.append({"name": name, "state": state, "difference": difference, "reason": row.reason})
    return found
