"""``dlas repair``: put a converted network right, with proof and a log that can be undone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import Architecture, Data, Json, Split, check_target, guarded_target, say, write_json
from dlas.cli.localize import Budget
from dlas.core.errors import DlasError, OptionError

if TYPE_CHECKING:
    from dlas.verify.repair.report import RepairReport


def add_to(app: typer.Typer) -> None:
    """Enter the command."""
    app.command("repair")(repair)


def repair(
    source: Annotated[
        str, typer.Argument(help="The network that is right; with --apply or --undo, the target.")
    ],
    target: Annotated[str, typer.Argument(help="Its conversion; not with --apply or --undo.")] = "",
    out: Annotated[
        Path | None, typer.Option("-o", "--out", help="File to write; its ending names the format.")
    ] = None,
    data: Data = "",
    split: Split = "",
    rows: Annotated[
        int, typer.Option(help="Samples at most: half to choose by, half to prove.", min=2)
    ] = 200,
    strategy: Annotated[
        str, typer.Option(help="How: replay, or fetafix (the published procedure).")
    ] = "replay",
    minimal: Annotated[bool, typer.Option("--minimal", help="Drop changes that are not needed.")] = False,
    budget: Budget = 300.0,
    apply: Annotated[
        Path | None, typer.Option("--apply", help="Only apply the changes of this log to the target.")
    ] = None,
    undo: Annotated[
        Path | None, typer.Option("--undo", help="Only take the changes of this log back.")
    ] = None,
    architecture: Architecture = "",
    json: Json = False,
) -> int:
    """Change a conversion until it answers as its source does; neither file is changed."""
    from dlas import api

    if out is None:
        raise OptionError("-o", "nothing", "the file to write the repaired network to")
    log = out.with_name(out.name + ".patches.json")
    from_log = apply is not None or undo is not None
    for place in (out,) if from_log else (out, log):
        if place.exists():
            raise DlasError(f"{place} exists", "name another file with -o: repair never overwrites")
    check_target(out, False)
    if from_log:
        return _from_log(source, target, out, apply, undo, json)
    if not target:
        raise OptionError("target", "nothing", "the conversion to repair, behind its source")
    found = api.repair(
        source,
        target,
        data=data or None,
        split=split,
        rows=rows,
        strategy=strategy,
        minimal=minimal,
        budget_s=budget,
        architecture=architecture,
        tell=lambda text: say("  " + text),
    )
    notes = _written(found, out, log) if found.patches else ()
    if json:
        places = {"written": str(out), "patch_log": str(log)} if found.patches else {}
        write_json({**found.to_dict(), "written": "", "patch_log": "", **places})
    else:
        _show(found)
        for note in notes:
            say(f"note: {note}")
        say(
            f"wrote {out} and {log.name}"
            if found.patches
            else f"{out} was not written: there is no change to keep"
        )
    return int(found.outcome in ("improved", "unchanged"))


def _written(found: RepairReport, out: Path, log: Path) -> tuple[str, ...]:
    """Write the network and its log, both or none; what could not be kept."""
    from dlas import api
    from dlas.verify.repair.report import write_log

    with guarded_target(out, False), guarded_target(log, False):
        write_log(found, log)
        try:
            return tuple(api.save(found.model, out).notes)
        except BaseException:
            log.unlink(missing_ok=True)
            raise


def _from_log(source: str, target: str, out: Path, apply: Path | None, undo: Path | None, json: bool) -> int:
    from dlas import api
    from dlas.verify.repair.report import read_log, reapply

    if target:
        raise OptionError(
            "target", target, "nothing: --apply and --undo work on one network and ask no other"
        )
    if apply is not None and undo is not None:
        raise OptionError("--apply", str(apply), "nothing beside --undo")
    log = apply or undo
    assert log is not None
    patches = read_log(log)
    changed = reapply(api.load(source), patches, undo=undo is not None)
    with guarded_target(out, False):
        written = api.save(changed, out)
    if json:
        write_json({"written": str(out), "patches": len(patches), "notes": list(written.notes)})
    else:
        say(f"wrote {out}: {'took back' if undo is not None else 'applied'} {_changes(len(patches))}")
    return 0


def _changes(count: int) -> str:
    return "1 change" if count == 1 else f"{count} changes"


def _show(found: RepairReport) -> None:
    for line in found.log:
        say(line)
    for note in found.notes:
        say(note)
    held = found.before.rows
    words = []
    for name, c in (("before", found.before), ("after", found.after)):
        flips = f"{len(c.flips)} of {held} labels differ, " if c.label_diff else ""
        words.append(f"{name} {c.verdict} ({flips}relative error {c.relative_l2:.2g})")
    say(f"{found.outcome}: on {held} held-out samples {', '.join(words)}, measured")
    say(
        f"{found.strategy}: {_changes(len(found.patches))}, {found.runs:g} runs of a network, {found.seconds:.1f} s"
    )
