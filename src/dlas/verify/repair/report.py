"""Repair a converted file: in a worker, proven on rows that no choice was made on, with a log that can be undone."""

from __future__ import annotations

import json
from collections.abc import Mapping
from dataclasses import dataclass
from pathlib import Path
from time import monotonic
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir

from dlas.core.errors import ModelError
from dlas.core.figure import Source
from dlas.core.options import Choice
from dlas.core.telling import Tell, tell_caller
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.verify.differential import Comparison, compare_outputs
from dlas.verify.localize.report import in_worker, opened, paired_rows
from dlas.verify.repair.job import Job, Mended, valid
from dlas.verify.repair.patch import Patch
from dlas.verify.repair.strategy import strategies
from dlas.verify.running import Subject

LOG_VERSION = 1


@dataclass(frozen=True)
class RepairReport:
    """What a repair did.

    Attributes:
        source: File name of the network that is right.
        target: File name of the one repaired.
        strategy: How.
        outcome: ``repaired`` (right on the held-out rows), ``improved``, ``unchanged`` or ``nothing to repair``.
        before: Comparison with the source on the held-out rows as it was.
        after: The same with the changes.
        patches: The changes, in the order they are applied.
        log: One line per decision.
        notes: What is left.
        chosen_rows: Rows that choices were made on.
        runs: Runs of a whole network on these rows; one on a single row counts as its share.
        seconds: Time taken.
        model: The repaired network.
        target_hash: Hash of the network that was repaired.
    """

    source: str
    target: str
    strategy: str
    outcome: str
    before: Comparison
    after: Comparison
    patches: tuple[Patch, ...]
    log: tuple[str, ...]
    notes: tuple[str, ...]
    chosen_rows: int
    runs: float
    seconds: float
    model: Model
    target_hash: str

    def to_dict(self) -> dict[str, Any]:
        """Plain dictionary, fit for JSON; without the weights in the patches."""
        return {
            "figures": str(Source.MEASURED),
            "source": self.source,
            "target": self.target,
            "strategy": self.strategy,
            "outcome": self.outcome,
            "before": self.before.to_dict(),
            "after": self.after.to_dict(),
            "patches": [{"title": p.title, **p.evidence} for p in self.patches],
            "log": list(self.log),
            "notes": list(self.notes),
            "chosen_rows": self.chosen_rows,
            "runs": self.runs,
            "seconds": self.seconds,
        }


def repair_file(
    source: Subject,
    target: Subject,
    *,
    data: Dataset | None = None,
    rows: int = 200,
    strategy: str = "replay",
    minimal: bool = False,
    budget_s: float = 300.0,
    tell: Tell = lambda text: None,
) -> RepairReport:
    """Change ``target`` until it answers as ``source`` does.

    Args:
        source: The network that is right by definition.
        target: Its conversion.
        data: Samples; without them random numbers are fed.
        rows: Samples at most: the first half is for choosing, the other half for the last word.
        strategy: ``replay``, or ``fetafix`` for the published procedure.
        minimal: Drop every change whose removal changes nothing.
        budget_s: Seconds.
        tell: Receives one line per step.

    Raises:
        DataError: The samples do not fit, or fewer than two.
        ModelError: The source gives no finite numbers, or the outputs differ in number or size.
    """
    x, y = paired_rows(source, target, data, rows)
    count = len(next(iter(x.values())))
    if count < 2:
        raise ModelError("repair needs two samples at least: one to choose by and one to prove it")
    own = data is not None and target.model.preprocessing is not None
    tell(
        f"repair {target.path.name} by {strategy}: {count - count // 2} rows to choose by, {count // 2} held out"
    )
    found = in_worker(
        "dlas.verify.repair.report:work", source.model.to_bytes(), target.model.to_bytes(), x, y if own else None,
        str(Choice.parse(strategy)), minimal, budget_s, budget_s=budget_s, tell=tell,
    )  # fmt: skip
    before = compare_outputs(found["wanted"], found["was"])
    after = compare_outputs(found["wanted"], found["now"])
    patches = tuple(Patch.from_dict(p) for p in found["patches"])
    repaired = Model.from_proto(onnx.ModelProto.FromString(found["graph"])).ir
    step = Step(
        "repair",
        {"strategy": strategy, "source": source.path.name},
        step_versions(),
        tuple(p.title for p in patches),
    )
    return RepairReport(
        source.path.name,
        target.path.name,
        strategy,
        _outcome(before, after, bool(patches)),
        before,
        after,
        patches,
        tuple(found["log"]),
        tuple(found["notes"]),
        count - count // 2,
        found["runs"],
        found["seconds"],
        target.model.with_step(repaired, step),
        target.model.hash,
    )


def work(
    source: bytes,
    target: bytes,
    x: Mapping[str, np.ndarray],
    y: Mapping[str, np.ndarray] | None,
    strategy: str,
    minimal: bool,
    budget_s: float,
) -> dict[str, Any]:
    """In a worker: repair on the first half of the rows, answers on the other; plain values only."""
    begun = monotonic()
    choice = Choice.parse(strategy)
    whole = Job(opened(source), opened(target), x, y, deadline=begun + budget_s, tell=tell_caller)
    count = len(next(iter(x.values())))
    job, held = whole.on(slice(0, count - count // 2)), whole.on(slice(count - count // 2, count))
    mended = strategies.get(choice.name)(**choice.as_dict()).mend(job)
    if minimal:
        mended = reduced(job, mended)
    was, now = held.output(job.target), held.output(mended.graph)
    nothing = np.full(held.wanted.shape, np.nan, np.float32)
    return {
        "wanted": held.wanted,
        "was": nothing if was is None else was,
        "now": nothing if now is None else now,
        "patches": [p.to_dict() for p in mended.patches],
        "graph": ir.to_proto(mended.graph).SerializeToString(deterministic=True),
        "log": mended.log,
        "notes": mended.notes,
        "runs": round(job.runs, 2),
        "seconds": monotonic() - begun,
    }


def reduced(job: Job, mended: Mended) -> Mended:
    """Without every change whose removal moves no answer (delta debugging, one change at a time)."""
    patches, graph = list(mended.patches), mended.graph
    whole = job.output(graph)
    log = list(mended.log)
    for number, patch in enumerate(list(patches), 1):
        job.tell(f"leave out change {number} of {len(mended.patches)}")
        rest = [p for p in patches if p is not patch]
        candidate = job.target
        try:
            for other in rest:
                candidate = other.apply(candidate)
        except ModelError:
            continue  # a later change stands on this one
        found = job.output(candidate)
        same = found is not None and whole is not None and job.error(found) <= 1.01 * job.error(whole) + 1e-7
        if same and not (job.flipped(found) & ~job.flipped(whole)).any():
            patches, graph = rest, candidate
            log.append(f"not needed: {patch.title}")
    return Mended(graph, patches, log, mended.notes)


def _outcome(before: Comparison, after: Comparison, changed: bool) -> str:
    if not changed:
        return "nothing to repair" if str(before.verdict) == "equal" else "unchanged"
    if after.verdict.right and after.relative_l2 <= max(1e-3, before.relative_l2 / 10):
        return "repaired"
    if after.verdict.right and not before.verdict.right:
        return "repaired"
    better = after.relative_l2 < before.relative_l2 or len(after.flips) < len(before.flips)
    return "improved" if better else "unchanged"


def write_log(report: RepairReport, path: Path) -> None:
    """Write the changes so that they can be applied to the target again, or undone."""
    from dlas.core.files import write_atomic

    content = {
        "dlas_repair": LOG_VERSION,
        "source": report.source,
        "target": report.target,
        "target_hash": report.target_hash,
        "strategy": report.strategy,
        "outcome": report.outcome,
        "log": list(report.log),
        "patches": [p.to_dict() for p in report.patches],
    }
    write_atomic(path, json.dumps(content, indent=1).encode())


def read_log(path: Path) -> list[Patch]:
    """The changes of a log; raises ModelError when it is missing or damaged."""
    try:
        content = json.loads(path.read_bytes())
    except OSError as error:
        raise ModelError(
            f"{path}: {error.strerror}", "give the .patches.json that `dlas repair` wrote"
        ) from error
    except (ValueError, RecursionError) as error:
        raise ModelError(
            f"{path} is no patch log: {error}", "give the .patches.json that `dlas repair` wrote"
        ) from error
    if not isinstance(content, dict) or content.get("dlas_repair") != LOG_VERSION:
        raise ModelError(
            f"{path} is no patch log of this version", "give the .patches.json that `dlas repair` wrote"
        )
    if not isinstance(content.get("patches"), list):
        raise ModelError(f"{path} holds no list of patches", "make it again with `dlas repair`")
    return [Patch.from_dict(p) for p in content["patches"]]


def reapply(model: Model, patches: list[Patch], *, undo: bool = False) -> Model:
    """A network with the changes of a log, or without them.

    Raises:
        ModelError: The changes do not fit the network, or what they give is none.
    """
    graph = opened(model.to_bytes())
    for patch in reversed(patches) if undo else patches:
        graph = patch.undo(graph) if undo else patch.apply(graph)
    if reason := valid(graph):
        raise ModelError(
            f"the changes of the log give no valid network: {reason}", "make the log again with `dlas repair`"
        )
    step = Step("undo repair" if undo else "repair", {}, step_versions(), tuple(p.title for p in patches))
    return model.with_step(graph, step)
