"""Find the smallest change that makes a faulty region agree with the source."""

from __future__ import annotations

import math
from dataclasses import dataclass, replace
from time import monotonic

import onnx_ir as ir

from dlas.core.telling import Tell, now_and_then
from dlas.verify.localize.case import Case, Change, Proposal, explanations

_MOST_TRIALS = 600
_ROUNDS = 3  # changes that may be needed together in one region


@dataclass(frozen=True)
class Explained:
    """What a region's fault is.

    Attributes:
        proposal: The reason and the change; None where nothing explains it.
        before: Relative L2 under replay as it is.
        after: Relative L2 under replay with the change.
        trials: Changes that were tried.
    """

    proposal: Proposal | None
    before: float
    after: float
    trials: int


def explain(case: Case, deadline: float = math.inf, tell: Tell = lambda text: None) -> Explained:
    """Try explanations on a region, the cheapest first, then two or three together.

    Args:
        case: The region.
        deadline: Moment of ``time.monotonic`` at which the search gives up.
        tell: Receives the change at hand, now and then.
    """
    before = case.error()
    tell = now_and_then(tell)
    members = sorted((m for _, m in explanations.members()), key=lambda m: m.cost)
    base: list[Proposal] = []
    start, trials = before, 0
    for _ in range(_ROUNDS):
        best: tuple[float, Proposal] | None = None
        for member in members:
            for proposal in member().propose(case):
                if trials >= _MOST_TRIALS or monotonic() > deadline:
                    return Explained(None, before, before, trials)
                trials += 1
                tell(f"change {trials}: {proposal.kind} at {proposal.node}")
                error = case.error(_together([*base, proposal]))
                if error <= case.fine:
                    return Explained(_joined([*base, proposal]), before, error, trials)
                if best is None or error < best[0]:
                    best = (error, proposal)
        # One change that takes much of the error away may be one of several.
        if best is None or not best[0] < 0.5 * start:
            break
        base.append(best[1])
        start = best[0]
    return Explained(None, before, before, trials)


def _together(proposals: list[Proposal]) -> Change:
    def change(graph: ir.Model) -> None:
        for proposal in proposals:
            proposal.change(graph)

    return change


def _joined(proposals: list[Proposal]) -> Proposal:
    if len(proposals) == 1:
        return proposals[0]
    first = proposals[0]
    return replace(
        first,
        kind=" and ".join(dict.fromkeys(p.kind for p in proposals)),
        detail="; ".join(p.detail for p in proposals),
        change=_together(proposals),
    )
