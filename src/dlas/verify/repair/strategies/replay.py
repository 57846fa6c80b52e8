"""Explain every faulty region by isolated replay, and apply the smallest change that makes it agree."""

from __future__ import annotations

from time import monotonic

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.graph.passes import remove_unused
from dlas.verify.localize.engine import FLOAT, Fault, find, tolerated
from dlas.verify.mutate.editing import forget_shapes
from dlas.verify.repair.job import Job, Mended, valid
from dlas.verify.repair.patch import Patch
from dlas.verify.repair.strategy import Strategy, strategies

_SWEEPS = 4  # repairing one region may bring another to light
_FIRST = 2  # rows of the first look
_ROWS = 32
_SAME = 1e-5  # relative L2 of the answers at which there is nothing left to look for

Kept = tuple[Fault, ir.Model, np.ndarray | None]


@strategies.register("replay")
class Replay(Strategy):
    """The default: localise, explain, change one region at a time, keep what makes no label worse.

    The first look is on two rows. It is good enough where the target then answers as the source on all rows;
    otherwise nothing of it is kept, and the rows that differ most are looked at.
    """

    name = "replay"
    summary = "isolated replay and the smallest explanation, one region at a time"

    def mend(self, job: Job) -> Mended:
        """Sweep over the faults until none is left, or none can be repaired."""
        several = len(job.source.graph.outputs) > 1  # the answers tell of the first one only
        coarse = tolerated(job.source, job.target) > FLOAT  # no answer will be as close as _SAME
        if several or coarse or job.rows <= _FIRST:
            return self._swept(job, job.output(job.target))
        log: list[str] = []
        try:
            faults = self._look(job, job.target, np.arange(_FIRST))
        except DlasError:  # other rows may tell more, or why not
            job.count(_FIRST, 2)
            faults = []
        steps = self._changed(job.target, faults, log)
        answer = job.output(steps[-1][1] if steps else job.target)
        if job.error(answer) <= _SAME:
            graph, patches = _patched(job.target, [(fault, changed, answer) for fault, changed in steps], log)
            return Mended(graph, patches, log)
        return self._swept(job, job.output(job.target) if steps else answer)

    def _swept(self, job: Job, answer: np.ndarray | None) -> Mended:
        """One region after the other, on the rows that differ most; ``answer`` is the target's as it is."""
        graph, patches = job.target, list[Patch]()
        log: list[str] = []
        seen: set[tuple[str, str]] = set()
        left: list[Fault] = []
        for sweep in range(1, _SWEEPS + 1):
            job.tell(f"sweep {sweep} of {_SWEEPS} at most")
            faults = self._look(job, graph, _worst(job, answer))
            left = [f for f in faults if (f.target_node, f.detail) not in seen]
            seen |= {(f.target_node, f.detail) for f in left}
            accepted = self._kept(job, graph, answer, left, log)
            if accepted:
                graph, more = _patched(graph, accepted, log)
                patches += more
                answer = accepted[-1][2]
            done = len(graph.graph.outputs) == 1 and job.error(answer) <= _SAME
            if not accepted or job.over or done:
                break
        notes = [f"left: {f.fault}: {f.detail}" for f in left if f.change is None]
        return Mended(graph, patches, log, notes)

    @staticmethod
    def _look(job: Job, graph: ir.Model, rows: np.ndarray) -> list[Fault]:
        """The faults of a graph as some of the rows show them."""
        x = {k: v[rows] for k, v in job.x.items()}
        left_s = max(1.0, job.deadline - monotonic())
        found = find(job.source, graph, x, job.fed(graph, rows), budget_s=left_s, labels=False, tell=job.tell)
        job.count(found.rows, found.runs)
        return found.faults

    def _kept(
        self, job: Job, graph: ir.Model, was: np.ndarray | None, faults: list[Fault], log: list[str]
    ) -> list[Kept]:
        """Changes to keep, each with the graph that it and those before it give, and an answer of that.

        All together, or where that is no change for the better, those that are one by themselves: each is proven by
        the replay, but where several faults are at work, putting one right need not show in the labels.
        """
        steps = self._changed(graph, faults, log)
        if not steps:
            return []
        now = job.output(steps[-1][1])
        if _better(job, was, now):
            return [(fault, changed, now) for fault, changed in steps]
        found: list[Kept] = []
        for fault, _ in steps if len(steps) > 1 else ():
            alone = self._changed(graph, [fault], []) if not job.over else []
            now = job.output(alone[0][1]) if alone else None
            if alone and _better(job, was, now):
                graph, was = alone[0][1], now
                found.append((fault, graph, now))
        kept = [fault for fault, _, _ in found]
        log += [f"dropped: {fault.detail}: labels get worse" for fault, _ in steps if fault not in kept]
        return found

    @staticmethod
    def _changed(graph: ir.Model, faults: list[Fault], log: list[str]) -> list[tuple[Fault, ir.Model]]:
        """The graph with the changes of one fault after the other; those that do not fit it are left out."""
        steps: list[tuple[Fault, ir.Model]] = []
        for fault in faults:
            if fault.change is None:
                log.append(f"not repaired: {fault.detail}")
                continue
            candidate = graph.clone()
            try:
                fault.change(candidate)
                candidate.graph.sort()
                remove_unused(candidate)  # constants that were replaced are dead weight
            except (DlasError, ValueError) as error:
                log.append(f"dropped: {fault.detail}: it does not fit the whole network: {error}")
                continue
            forget_shapes(candidate)  # a stride that is put right changes them
            if reason := valid(candidate):
                log.append(f"dropped: {fault.detail}: {reason}")
                continue
            steps.append((fault, candidate))
            graph = candidate
        return steps


def _patched(graph: ir.Model, accepted: list[Kept], log: list[str]) -> tuple[ir.Model, list[Patch]]:
    """The graph with changes that are kept, and the changes as patches."""
    patches: list[Patch] = []
    for fault, changed, _ in accepted:
        log.append(f"kept: {fault.detail}")
        patches.append(Patch.between(graph, changed, fault.detail, fault.to_dict()))
        graph = changed
    return graph, patches


def _worst(job: Job, answer: np.ndarray | None) -> np.ndarray:
    """The rows on which an answer is most wrong, in order; the first ones where there is no answer."""
    if answer is None or job.rows <= _ROWS:
        return np.arange(min(_ROWS, job.rows))
    wrong = np.square(answer.astype(np.float64) - job.wanted).reshape(job.rows, -1).sum(axis=1)
    return np.sort(np.argsort(-wrong, kind="stable")[:_ROWS])


def _better(job: Job, was: np.ndarray | None, now: np.ndarray | None) -> bool:
    """Whether an answer has no more wrong labels than another, or a smaller error.

    Where a second fault stands behind it, a repaired one need not bring any label back, but it may cost none that
    only it had kept right by chance, so the error decides.
    """
    worse = int(job.flipped(now).sum()) > int(job.flipped(was).sum())
    return not (worse and job.error(now) > job.error(was))
