"""Explain every faulty region by isolated replay, and apply the smallest change that makes it agree."""

from __future__ import annotations

from time import monotonic

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.graph.passes import remove_unused
from dlas.verify.localize.engine import Fault, find
from dlas.verify.repair.job import Job, Mended, valid
from dlas.verify.repair.patch import Patch
from dlas.verify.repair.strategy import Strategy, strategies

_SWEEPS = 4  # repairing one region may bring another to light
_ROWS = 32
_SAME = 1e-5  # relative L2 of the answers at which there is nothing left to look for


@strategies.register("replay")
class Replay(Strategy):
    """The default: localise, explain, change one region at a time, keep what makes no label worse."""

    name = "replay"
    summary = "isolated replay and the smallest explanation, one region at a time"

    def mend(self, job: Job) -> Mended:
        """Sweep over the faults until none is left, or none can be repaired."""
        graph, patches = job.target, list[Patch]()
        log: list[str] = []
        seen: set[tuple[str, str]] = set()
        left: list[Fault] = []
        answer = job.output(graph)
        for _ in range(_SWEEPS):
            rows = {k: v[:_ROWS] for k, v in job.x.items()}
            given = {k: v[:_ROWS] for k, v in job.fed(graph).items()}
            found = find(job.source, graph, rows, given, budget_s=max(1.0, job.deadline - monotonic()))
            # The source once; the target as it is, walked through, once more after each region that is put right,
            # and once for the labels of each.
            for _ in range(3 + 2 * len(found.faults)):
                job.count(found.rows)
            left = [f for f in found.faults if (f.target_node, f.detail) not in seen]
            accepted = False
            for fault in left:
                if job.over:
                    break
                seen.add((fault.target_node, fault.detail))
                tried = self._tried(job, graph, answer, fault, log)
                if tried is not None:
                    patches.append(Patch.between(graph, tried[0], fault.detail, fault.to_dict()))
                    (graph, answer), accepted = tried, True
            done = len(graph.graph.outputs) == 1 and job.error(answer) <= _SAME
            if not accepted or job.over or done:
                break
        notes = [f"left: {f.fault}: {f.detail}" for f in left if f.change is None]
        return Mended(graph, patches, log, notes)

    @staticmethod
    def _tried(
        job: Job, graph: ir.Model, was: np.ndarray | None, fault: Fault, log: list[str]
    ) -> tuple[ir.Model, np.ndarray | None] | None:
        """The graph with the change of a fault and its answer, or None where that is no change for the better."""
        if fault.change is None:
            log.append(f"not repaired: {fault.detail}")
            return None
        candidate = graph.clone()
        try:
            fault.change(candidate)
            candidate.graph.sort()
            remove_unused(candidate)  # constants that were replaced are dead weight
        except (DlasError, ValueError) as error:
            log.append(f"dropped: {fault.detail}: it does not fit the whole network: {error}")
            return None
        if reason := valid(candidate):
            log.append(f"dropped: {fault.detail}: {reason}")
            return None
        now = job.output(candidate)
        # Where a second fault stands behind it, a repaired one need not bring any label back, but it may cost none
        # that only it had kept right by chance: the replay has proven it, so the error decides ties.
        worse = int(job.flipped(now).sum()) > int(job.flipped(was).sum())
        if worse and job.error(now) > job.error(was):
            log.append(f"dropped: {fault.detail}: labels get worse")
            return None
        log.append(f"kept: {fault.detail}")
        return candidate, now
