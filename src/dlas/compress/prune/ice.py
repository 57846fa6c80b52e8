"""ICE-Pruning: channels leave step by step, and training between the steps is spent only where it pays.

Hu et al. 2025 (arXiv:2505.07411). One step takes channels from one layer, in forward order. Three savings, each of
which can be switched off: fine-tune only when the accuracy has fallen (``decide``), freeze layers while fine-tuning
(``freeze``), and lower the learning rate as the network shrinks (``adapt_lr``). With all of them off this is plain
iterative pruning: an epoch after every step. ``paper=true`` follows the published rules to the letter, except that the
rows that judge are a split of the training rows.

Takes at most one epoch per step, so minutes to hours. On small networks with few steps a probe or tuning costs more
than it saves: leave ``freeze`` at ``prefix`` and ``tune`` off there.
"""

from __future__ import annotations

import itertools
import math
from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.prune import _ice_rules as rules
from dlas.compress.prune._ice_run import Run, State
from dlas.compress.prune._rounds import (
    LEAST_TRAINING,
    LEAST_VALIDATION,
    Clock,
    Rows,
    Trail,
    rows_of,
    with_graph,
)
from dlas.compress.prune._targets import Selection, counts_for, remaining, seconds_of, select, weights
from dlas.compress.training import AUGMENTATIONS, DivergedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.model import Model, Step, step_versions

CRITERIA = ("l1", "random", "entropy", "mean-activation")
_DECISIONS = ("running", "original")
_FREEZES = ("prefix", "least-moved", "none")
_GRID: dict[str, tuple[float, ...]] = {
    "freeze_ratio": (0.3, 0.9),
    "lr": (0.001, 0.005),
    "lr_pivot": (0.1, 0.15, 0.2),
    "lr_steepness": (40.0, 50.0, 60.0),
    "lr_drop": (6e-4, 7e-4, 8e-4),
}
_THRESHOLDS = {True: (0.5, 1.5), False: (0.5, 1.5, 3.0, 6.0)}


@dataclass(frozen=True)
class Options:
    """Options of ``ice``."""

    ratio: float = option(0.5, "fraction of the channels each step removes, rounded up", low=0.0, below=1.0)
    target_sparsity: float = option(
        0.0, "fraction of the weights to remove; in place of ratio, 0 leaves it at that", low=0.0, below=1.0
    )
    criterion: Literal["l1", "random", "entropy", "mean-activation"] = option(
        "l1", "what makes a channel important", choices=CRITERIA
    )
    layers: str = option("*", "layers that may lose channels, such as layer1.*|layer2.*")
    include_residual: bool = option(False, "also prune channels that several layers compute together")
    decide: bool = option(True, "fine-tune only when the accuracy has fallen; false does it after every step")
    decision: Literal["running", "original"] = option(
        "running",
        "a fall is measured from what the last fine-tuning reached, or from the network before pruning",
        choices=_DECISIONS,
    )
    threshold: float | None = option(
        None,
        "fall of the validation accuracy, in percentage points, that asks for it; none is 6, or 1.5 with paper",
        low=0.0,
    )
    freeze: Literal["prefix", "least-moved", "none"] = option(
        "prefix",
        "what stands still: all before the pruned layers, what a probe moved least, or nothing",
        choices=_FREEZES,
    )
    freeze_ratio: float = option(0.5, "fraction of the layers that least-moved freezes", low=0.0, high=1.0)
    adapt_lr: bool = option(True, "lower the learning rate as the network shrinks")
    lr: float = option(0.005, "learning rate of a network nothing was removed from", low=0.0)
    lr_drop: float = option(7.5e-4, "how far it falls", low=0.0)
    lr_pivot: float = option(
        0.12, "fraction of the weights whose removal makes half the fall", low=0.0, below=0.5
    )
    lr_steepness: float = option(50.0, "how sudden the fall is", low=0.0)
    distill: bool = option(True, "add the distance to the answers of the network before pruning to the loss")
    temperature: float = option(2.0, "temperature of these answers", low=0.1)
    epochs: int = option(1, "epochs of a fine-tuning", low=1)
    final_epochs: int = option(4, "epochs after the last step, with a cosine schedule", low=0)
    rows: int = option(0, "training rows per epoch; 0 uses all", low=0)
    validation: float = option(
        0.1, "fraction of the rows that judge and are not trained on", low=0.01, high=0.5
    )
    batch_size: int = option(128, "rows per step of training", low=1)
    augment: Literal["none", "flip", "shift", "flip-shift"] = option(
        "flip", "how images are varied", choices=AUGMENTATIONS
    )
    budget: str = option(
        "", "time for everything, such as 30m: no fine-tuning begins that would not end in it"
    )
    tune: bool = option(False, "try settings on a small part of the rows first")
    tune_draws: int = option(6, "settings to try", low=1)
    tune_share: float = option(0.02, "fraction of the rows to try them on", low=0.0, high=1.0)
    accuracy_budget: float = option(
        1.0, "percentage points that weigh as much as all the time, in tuning", low=0.01
    )
    paper: bool = option(False, "the published rules: decision=original, freeze=least-moved, no final epochs")
    threads: int = option(2, "threads of torch", low=1)
    seed: int = option(0, "seed of the training, the draws and random", low=0)

    def __post_init__(self) -> None:
        seconds_of(self.budget, "ice")
        if self.adapt_lr:
            rules.learning_rate(1.0, **_curve(self))

    @property
    def in_force(self) -> Options:
        """These options after ``paper`` has been heard, with a number for the threshold."""
        if not self.paper:
            return replace(self, threshold=6.0 if self.threshold is None else self.threshold)
        threshold = 1.5 if self.threshold is None else self.threshold
        return replace(self, threshold=threshold, decision="original", freeze="least-moved", final_epochs=0)


def _curve(options: Options) -> dict[str, float]:
    names = {"base": "lr", "drop": "lr_drop", "pivot": "lr_pivot", "steepness": "lr_steepness"}
    return {ours: getattr(options, theirs) for ours, theirs in names.items()}


@methods.register("ice")
class Ice(Method):
    """Iterative channel pruning with fine-tuning where it pays."""

    name = "ice"
    summary = (
        "Iterative channel pruning that decides when to fine-tune, what to freeze, and how fast to learn"
    )
    needs_data = True
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Channels that leave at each step, with the cost before and after; needs no rows."""
        chosen, ratio, counts = self._aim(model)
        before, total = chosen.macs, weights(chosen.graph)
        changes = tuple(
            Change(g.name, f"remove {n} of {g.size} channels", f"{g.size} channels", f"{g.size - n} channels")
            for g, n in zip(chosen.groups, counts, strict=True)
            if n
        )
        graph = chosen.graph.clone()
        found = channels.groups(graph).prunable
        doomed = [found[p].ids[:n] for p, n in zip(chosen.places, counts, strict=True)]
        channels.remove(graph, np.concatenate(doomed))
        left = remaining(chosen.graph, chosen.groups, counts)
        expected = {
            "macs_before": Figure(before, "count", Source.ESTIMATED),
            "macs": Figure(channels.groups(graph).macs, "count", Source.ESTIMATED),
            "weights_before": Figure(total, "count", Source.ESTIMATED),
            "weights": Figure(left, "count", Source.ESTIMATED),
            "sparsity": Figure(
                1 - left / total, "fraction", Source.ESTIMATED, note="of the weights, removed"
            ),
        }
        steps = f"{len(changes)} steps at a ratio of {ratio:.4g}, each followed by at most one fine-tuning"
        return Plan(self.spelled(), changes, expected, (steps, *chosen.notes))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The smaller network; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: No channel may be removed, or the target cannot be reached; says what can.
            UnknownNameError: ``layers`` matches nothing.
            DataError: No rows, too few, or without labels.
            DivergedError: The loss became NaN; the last good network is kept beside the checkpoints.
        """
        chosen, ratio, counts = self._aim(model)
        options = self.options.in_force
        training, validation = rows_of(
            model, data, self.name, validation=options.validation, rows=options.rows, seed=options.seed
        )
        assert data is not None
        teller = _Teller(progress)
        tidied = with_graph(model, chosen.graph)
        steps = [(p, n) for p, n in zip(chosen.places, counts, strict=True) if n]
        places, counts = [p for p, _ in steps], [n for _, n in steps]
        trail = Trail(model, data, self.name, self.options)
        saved = trail.read(tidied)
        facts = dict(saved[1]) if saved is not None else {}
        clock = Clock(seconds_of(options.budget, self.name), facts.pop("phases", None))
        tuned: dict[str, Any] = facts.pop("tuned", {})
        if saved is None and options.tune:
            with clock.phase("tuning"):
                tuned = _tuned(options, tidied, places, counts, training, validation, clock, teller.said)
        run = Run(
            tidied,
            places,
            counts,
            replace(options, **tuned),
            training,
            validation,
            clock,
            teller.told,
            trail,
            tuned,
        )
        if saved is None:
            run.begin()
        else:
            run.model, run.state = saved[0], State(**facts)
            teller.told(run.state.step / len(places), f"resumed after step {run.state.step} of {len(places)}")
        pruned = run.to_the_end()
        teller.told(1.0, f"accuracy {run.state.current:.2f} % on {len(validation)} validation rows")
        return model.with_step(pruned.ir, self._step(run, chosen, ratio, data, tuned))

    def _aim(self, model: Model) -> tuple[Selection, float, list[int]]:
        options = self.options
        chosen = select(model, options.layers, include_residual=options.include_residual)
        ratio, counts = counts_for(chosen, options.ratio, options.target_sparsity, self.name)
        return chosen, ratio, counts

    def _step(self, run: Run, chosen: Selection, ratio: float, data: Dataset, tuned: dict[str, Any]) -> Step:
        """The line of history: recipe, every step, counts and seconds by phase."""
        state, clock = run.state, run.clock
        fine_tunes = sum(r["fine_tuned"] for r in state.records)
        removed = 1 - weights(run.model.ir) / weights(chosen.graph)
        notes = [
            f"{removed:.4f} of the weights removed in {state.step} steps; accuracy {state.first:.2f} -> "
            f"{state.current:.2f} % on {len(run.validation)} validation rows, which were not trained on",
            f"fine-tuned after {fine_tunes} of {state.step} steps on {len(run.training)} rows; "
            f"{state.work / max(1, len(run.training)):.2f} epochs' worth of training, probe included",
            f"time: {clock.told()}",
        ]
        if tuned:
            settings = ", ".join(f"{k}={v:g}" for k, v in tuned.items())
            notes.append(f"tuned on {self.options.tune_share:.0%} of the rows: {settings}")
        if state.skipped:
            notes.append(f"the budget of {self.options.budget} left no time for {state.skipped} fine-tunings")
        options = {
            **options_dict(self.options),
            "data": data.hash,
            "reached_ratio": ratio,
            "in_force": options_dict(run.options),
            "steps": [{k: v for k, v in r.items() if v == v} for r in state.records],  # NaN is no JSON
            "seconds": {name: round(s, 3) for name, s in clock.phases.items()},
            "frozen_by_probe": list(state.still),
            "fine_tunes": fine_tunes,
            "epochs_worth": state.work / max(1, len(run.training)),
        }
        return Step(self.name, options, step_versions("numpy", "onnx-ir", "torch"), (*notes, *chosen.notes))


class _Teller:
    """Progress that only goes up: tuning says what it does without moving it."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress = progress
        self._done = 0.0

    def told(self, fraction: float, text: str) -> None:
        self._done = max(self._done, min(1.0, fraction))
        if self._progress is not None:
            self._progress(self._done, text)

    def said(self, text: str) -> None:
        self.told(self._done, text)


def _tuned(
    options: Options,
    model: Model,
    places: Sequence[int],
    counts: Sequence[int],
    training: Rows,
    validation: Rows,
    outer: Clock,
    say: Callable[[str], None],
) -> dict[str, Any]:
    """The best of a few draws of settings, judged by short runs on a small part of the rows."""
    few = training.part(options.tune_share, max(LEAST_TRAINING, options.batch_size), options.seed)
    judges = validation.part(options.tune_share, LEAST_VALIDATION, options.seed)
    grid = {"threshold": _THRESHOLDS[options.paper], **_GRID}
    if (
        not options.paper
    ):  # the published rates suit the published networks; ours are those around what was given
        grid["lr"] = (0.3 * options.lr, options.lr)
        grid["lr_drop"] = tuple(0.3 * options.lr * part for part in (0.6, 0.7, 0.8))
    every = list(itertools.product(*grid.values()))
    drawn = np.random.default_rng(options.seed).permutation(len(every))[: options.tune_draws]
    best: tuple[float, dict[str, Any]] = (math.inf, {})
    for number, index in enumerate(drawn, start=1):
        if outer.left_s <= 0:
            break
        settings = dict(zip(grid, (float(v) for v in every[index]), strict=True))
        clock = Clock()
        run = Run(model, places, counts, replace(options, **settings), few, judges, clock, lambda *_: None)
        try:
            run.begin()
            run.to_the_end()
            points = run.state.first - run.state.current
            reference = len(few) * options.epochs * len(places)
            value = (
                rules.published_objective(sum(clock.phases.values()), points)
                if options.paper
                else rules.objective(
                    run.state.work, points, reference=reference, accuracy_budget=options.accuracy_budget
                )
            )
        except DivergedError:
            value = math.inf
        shown = ", ".join(f"{k}={v:g}" for k, v in settings.items())
        say(f"tuning, draw {number} of {len(drawn)}: {value:.3f} with {shown}")
        if value < best[0] or not best[1]:
            best = (value, settings)
    return best[1]
