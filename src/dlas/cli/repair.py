"""``dlas repair``: put a converted network right, with proof and a log that can be undone."""

from __future__ import annotations

from pathlib import Path
from typing import TYPE_CHECKING, Annotated

import typer

from dlas.cli._shared import Architecture, Data, Json, Split, check_target, say, write_json
from dlas.cli.localize import Budget
from dlas.core.errors import OptionError

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
    for given in filter(None, (source, target)):
        if out.exists() and out.resolve() == Path(api.model_path(given)).resolve():
            raise OptionError("-o", str(out), "another file than the two networks: repair never overwrites")
    check_target(out, False)
    if apply is not None or undo is not None:
        return _from_log(source, target, out, apply, undo, json)
    if not target:
        raise OptionError("target", "nothing", "the conversion to repair, behind its source")
    log = out.with_name(out.name + ".patches.json")
    check_free(log)
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
    written = ""
    if found.patches:
        from dlas.verify.repair.report import write_log

        notes = api.save(found.model, out).notes
        write_log(found, api.load(target, architecture=""), log)
        written = str(out)
    else:
        notes = ()
    if json:
        write_json({**found.to_dict(), "written": written, "patch_log": str(log) if written else ""})
    else:
        _show(found)
        for note in notes:
            say(f"note: {note}")
        say(
            f"wrote {out} and {log.name}" if written else f"{out} was not written: there is nothing to change"
        )
    return int(found.outcome in ("improved", "unchanged"))


def check_free(path: Path) -> None:
    """Raise OptionError when a file is there already."""
    if path.exists():
        raise OptionError(
            "-o", str(path.with_suffix("").with_suffix("")), f"a name for which {path.name} is free"
        )


def _from_log(source: str, target: str, out: Path, apply: Path | None, undo: Path | None, json: bool) -> int:
    from dlas import api
    from dlas.verify.repair.report import read_log, reapply

    if target or (apply is not None and undo is not None):
        raise OptionError("--apply and --undo", "two", "one of them, and one network")
    log = apply or undo
    assert log is not None
    changed = reapply(api.load(source), read_log(log), undo=undo is not None)
    written = api.save(changed, out)
    if json:
        write_json({"written": str(out), "patches": len(read_log(log)), "notes": list(written.notes)})
    else:
        say(f"wrote {out}: {'took back' if undo is not None else 'applied'} {len(read_log(log))} changes")
    return 0


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
    say(f"{found.outcome}: on {held} held-out samples {', '.join(words)}")
    say(
        f"{found.strategy}: {len(found.patches)} changes, {found.runs} runs of a network, {found.seconds:.1f} s"
    )
