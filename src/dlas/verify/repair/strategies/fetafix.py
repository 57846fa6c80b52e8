"""The published procedure of Fix-Con and FetaFix: try repairs image by image and layer by layer, judged by the labels.

Louloudakis, Gibson, Cano and Rajan, "Fix-Con: Automatic fault localization and repair of deep learning model
conversions between frameworks" (2023) and "FetaFix" (2025); the order of layers is that of their fault localisation
(ASE 2023). It is here to be compared with. Where the description leaves something open, this is what is done, chosen
in its favour:

* Label lists are compared by Kendall's tau-b over the union of both top-5 lists. Outputs that are no vector are
  flattened first, so that they have labels too; an image on which the target does not run is below any tau.
* Rows are given to the target in the layout that it takes. A change of the network's inputs is therefore kept only
  if tau rises; every other change is kept at an equal tau, as published.
* A layer without a convolution has no suspiciousness: such layers come after the convolutions, in order. The ranking
  is made anew in each round in which the network has changed, on at most 10,000 elements of a layer.
* Nodes of the same name must be of the same operator to match; of several without a name in common that match, the
  nearest is taken. A constant that only the source has (a dropped bias) counts as unequal; one that only the target
  has is left. ``min`` and ``max`` are the inputs of Clip as well.
* The anchors of ``graph`` are convolutions, or without any MatMul or Gemm; there, inputs and outputs of the network
  are anchors as well. At joins the path goes to the first input that is not constant, and whoever else reads a
  segment is wired to the source's counterpart.
* ``flatten`` inserts a Transpose where the tensor to be flattened has the source's sizes in another order.
* Weights are compared bit for bit, and what changes nothing is not run. A change that makes invalid ONNX is a crash.
* A round is one image. At the end, the network with the fewest dissimilar images of all rounds is the result.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError
from dlas.core.options import option
from dlas.core.telling import now_and_then
from dlas.verify.differential.ranking import kendall_tau_b
from dlas.verify.localize.edits import node_of
from dlas.verify.mutate.editing import forget_shapes
from dlas.verify.repair.job import Job, Mended, valid
from dlas.verify.repair.patch import Patch
from dlas.verify.repair.strategies import _layers, _suspicion, _whole
from dlas.verify.repair.strategies._matching import Change, Pairing
from dlas.verify.repair.strategy import Strategy, strategies

_ORDER = ("params", "params[conv]", "graph[add]", "graph", "hyperparams", "flatten")
_SEGMENTS = 4  # at one anchor
_CRASHED = -2.0  # below every tau


@dataclass(frozen=True)
class FetaFixOptions:
    """Options of the procedure, as published."""

    tau: float = option(
        0.98, "Kendall's tau of the top-5 labels from which on an image is fixed", low=-1.0, high=1.0
    )
    rounds: int = option(
        6, "rounds without a change in the share of dissimilar images before it stops", low=1
    )
    seed: int = option(0, "seed of the images that suspiciousness is computed on", low=0)


@strategies.register("fetafix")
class FetaFix(Strategy):
    """For comparison: copies what differs in the source, layer by layer, as long as an image's labels do not suffer."""

    name = "fetafix"
    summary = (
        "the published procedure: repairs tried image by image and layer by layer, judged by top-5 labels"
    )
    Options = FetaFixOptions

    def mend(self, job: Job) -> Mended:
        """Round after round, until no label differs, the share stays the same, or the budget is spent."""
        work = _Work(job, self.options)
        if job.wanted[0].size < 2:
            return Mended(
                job.target, [], notes=["left: the output is a single number, and this strategy needs labels"]
            )
        work.evaluate()
        explored: set[int] = set()
        series, unchanged = [work.share], 0
        best = (work.share, 0, job.target)
        reason = "no label differs"
        while work.dissimilar.any():
            left = [int(i) for i in np.flatnonzero(work.dissimilar) if int(i) not in explored]
            if job.over or unchanged >= self.options.rounds or not left:
                spent = "the budget is spent" if job.over else "every dissimilar image was tried"
                reason = f"unchanged in {unchanged} rounds" if unchanged >= self.options.rounds else spent
                break
            image = min(left, key=lambda i: work.taus[i])
            explored.add(image)
            job.tell(f"round {len(series)}: image {image}, {work.share:.1%} of {job.rows} dissimilar")
            before = len(work.patches)
            fixed = work.repair(image)
            if len(work.patches) > before:
                work.evaluate()
            series.append(work.share)
            unchanged = unchanged + 1 if series[-1] == series[-2] else 0
            if work.share <= best[0]:
                best = (work.share, len(work.patches), work.graph)
            word = "fixed" if fixed else "not fixed"
            work.log.append(f"round {len(series) - 1}: image {image} {word}, {work.share:.1%} dissimilar")
        work.log.append("dissimilar: " + " -> ".join(f"{s:.1%}" for s in series))
        work.log.append(f"stopped: {reason}")
        work.log.append(f"runs on a single image: {work.single_runs}")
        share, count, graph = best
        notes = [f"left: {share:.1%} of the images have another label"] if share else []
        return Mended(graph, work.patches[:count], work.log, notes)


@dataclass
class _Work:
    """A target on its way."""

    job: Job
    options: FetaFixOptions
    graph: ir.Model = field(init=False)
    patches: list[Patch] = field(default_factory=list)
    log: list[str] = field(default_factory=list)
    single_runs: int = 0

    def __post_init__(self) -> None:
        self.tell = now_and_then(self.job.tell)
        self.graph = self.job.target
        self.pairing = Pairing(self.job.source, self.graph)
        self.rng = np.random.default_rng(self.options.seed)
        self._ranked: tuple[ir.Model | None, list[str]] = (None, [])
        self.taus = np.full(self.job.rows, _CRASHED)
        self.dissimilar = np.ones(self.job.rows, bool)

    @property
    def share(self) -> float:
        """Share of images with another label."""
        return float(self.dissimilar.mean())

    def evaluate(self) -> None:
        """Run the whole set."""
        found = self.job.output(self.graph)
        if found is None:
            self.taus, self.dissimilar = np.full(self.job.rows, _CRASHED), np.ones(self.job.rows, bool)
            return
        a, b = (v.reshape(len(v), -1) for v in (self.job.wanted, found))
        self.taus, self.dissimilar = kendall_tau_b(a, b), a.argmax(1) != b.argmax(1)

    def repair(self, image: int) -> bool:
        """Try everything on one image; whether it is fixed then."""
        best = float(self.taus[image])
        for change in self._changes():
            if self.job.over:
                return False
            tau = self._tried(change, image, best)
            if tau is not None:
                best = tau
                if best >= self.options.tau:
                    return True
        return False

    def _changes(self) -> Iterator[Change]:
        """Every change that is proposed, each for the network as it is when its turn comes."""
        yield from _whole.proposals(self.pairing)
        ranked = self._suspects()
        for strategy in _ORDER:
            others = [str(n.name) for n in self.graph.graph if str(n.name) not in ranked]
            for name in [*ranked, *others]:
                yield from self._changes_of(strategy, name)

    def _changes_of(self, strategy: str, name: str) -> Iterator[Change]:
        for _ in range(_SEGMENTS):
            pairing = self.pairing
            try:
                layer = node_of(self.graph, name)
            except DlasError:  # a segment with it was replaced
                return
            for change in _layers.proposals(strategy, pairing, layer):
                yield change
                if self.pairing is not pairing:  # it was kept: what is left to do is looked for anew
                    break
            else:
                return

    def _suspects(self) -> list[str]:
        if self._ranked[0] is not self.graph:
            self._ranked = (self.graph, _suspicion.ranking(self.job, self.pairing, self.dissimilar, self.rng))
        return self._ranked[1]

    def _tried(self, change: Change, image: int, best: float) -> float | None:
        """Tau of the image with a change, which is kept; None where it is taken back."""
        candidate = self.graph.clone()
        try:
            change.edit(candidate)
            _clean(candidate)
        except (DlasError, ValueError) as error:
            self.log.append(f"rolled back: {change.strategy}: {change.title}: {error}")
            return None
        self.single_runs += 1
        self.tell(f"image {image}, change {self.single_runs}: {change.strategy}: {change.title}")
        tau = self._tau(candidate, image)
        if tau is None:
            self.log.append(f"rolled back: {change.strategy}: {change.title}: it does not run")
            return None
        if tau < best or (change.strategy == "inputs" and tau == best):
            self.log.append(f"reverted: {change.strategy}: {change.title}: tau {_word(best)} -> {_word(tau)}")
            return None
        if reason := valid(candidate):
            self.log.append(f"rolled back: {change.strategy}: {change.title}: {reason}")
            return None
        self.log.append(f"kept: {change.strategy}: {change.title}: tau {_word(best)} -> {_word(tau)}")
        evidence = {
            "strategy": change.strategy,
            "target_node": change.layer,
            "image": image,
            "tau_before": None if best == _CRASHED else round(best, 4),
            "tau_after": round(tau, 4),
        }
        self.patches.append(Patch.between(self.graph, candidate, change.title, evidence))
        self.graph, self.pairing = candidate, Pairing(self.job.source, candidate)
        return tau

    def _tau(self, graph: ir.Model, image: int) -> float | None:
        rows = slice(image, image + 1)
        found = self.job.output(graph, rows)
        if found is None:
            return None
        return float(kendall_tau_b(self.job.wanted[rows].reshape(1, -1), found.reshape(1, -1))[0])


def _clean(graph: ir.Model) -> None:
    """Drop what nothing reads any more, forget sizes that may be others now, and put nodes in order."""
    from onnx_ir.passes import common

    common.RemoveUnusedNodesPass()(graph)
    forget_shapes(graph)
    graph.graph.sort()


def _word(tau: float) -> str:
    return "none" if tau == _CRASHED else f"{tau:.2f}"
