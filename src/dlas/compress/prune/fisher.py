"""Fisher pruning: while the network trains, the channels whose loss would hurt least leave, a few at a time.

Theis et al. 2018 (arXiv:1801.05787), "Faster gaze prediction with dense networks and Fisher pruning"; Turner et al.
2018 used it to compare compression across the stack. The score of a channel is the mean over the samples of
``1/2 (sum a g)^2``, taken from the very gradients that train the network (``dlas.compress._fisher``); a share of what a
channel costs to compute may be taken off it. The published settings (``paper=true``) remove one channel after every
100 steps of training, which is days on a processor; the defaults remove more at a time.
"""

from __future__ import annotations

import math
from collections.abc import Sequence
from contextlib import ExitStack
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np

from dlas.compress._fisher import FisherMeter
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.prune._rounds import CLIP_NORM, Clock, Rows, Trail, accuracy, rows_of, trained, with_graph
from dlas.compress.prune._targets import Selection, counts_for, remaining, select, weights
from dlas.compress.training import AUGMENTATIONS, DivergedError, Schedule
from dlas.core.errors import DataError, DlasError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup
from dlas.graph.model import Model, Step, step_versions

_JUDGED = 10  # how often the accuracy is looked at, for the report


@dataclass(frozen=True)
class Options:
    """Options of ``fisher``."""

    ratio: float = option(0.5, "fraction of the prunable channels to remove", low=0.0, below=1.0)
    target_sparsity: float = option(
        0.0, "fraction of the weights to remove; in place of ratio, 0 leaves it at that", low=0.0, below=1.0
    )
    layers: str = option("*", "layers that may lose channels, such as layer1.*|layer2.*")
    include_residual: bool = option(False, "also prune channels that several layers compute together")
    beta: float = option(
        0.0, "taken off the score of a channel for each million multiply-accumulates it costs", low=0.0
    )
    steps: int = option(10, "steps of training before channels leave", low=1)
    channels: int = option(8, "channels that leave at a time", low=1)
    lr: float = option(8e-4, "learning rate while channels leave", low=0.0)
    batch_size: int = option(128, "rows per step", low=1)
    augment: Literal["none", "flip", "shift", "flip-shift"] = option(
        "flip", "how images are varied", choices=AUGMENTATIONS
    )
    finetune_epochs: int = option(1, "epochs after the last channel left, with a cosine schedule", low=0)
    finetune_lr: float = option(0.01, "learning rate of these", low=0.0)
    rows: int = option(0, "training rows to draw from; 0 uses all", low=0)
    validation: float = option(
        0.1, "fraction of the rows that judge and are not trained on", low=0.01, high=0.5
    )
    paper: bool = option(False, "the published settings: one channel after every 100 steps, crops and flips")
    threads: int = option(2, "threads of torch", low=1)
    seed: int = option(0, "seed of the training", low=0)

    def __post_init__(self) -> None:
        Schedule(1, self.lr)  # a rate that cannot be used is refused now, not after the rounds
        if self.finetune_epochs:
            Schedule(1, self.finetune_lr)

    @property
    def in_force(self) -> Options:
        """These options after ``paper`` has been heard."""
        if not self.paper:
            return self
        return replace(self, steps=100, channels=1, lr=8e-4, batch_size=128, augment="flip-shift")


@methods.register("fisher")
class Fisher(Method):
    """Channel pruning by the Fisher information of each channel, during training."""

    name = "fisher"
    summary = "Channel pruning by Fisher information, a few channels at a time while the network trains"
    needs_data = True
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Which layers may lose how many channels, and how many leave in all; which ones, the rows decide."""
        chosen, counts, goal = self._aim(model)
        total = weights(chosen.graph)
        changes = tuple(
            Change(g.name, f"may lose up to {g.size - 1} of {g.size} channels", f"{g.size} channels")
            for g in chosen.groups
        )
        even = remaining(chosen.graph, chosen.groups, counts)
        expected = {
            "macs_before": Figure(chosen.macs, "count", Source.ESTIMATED),
            "weights_before": Figure(total, "count", Source.ESTIMATED),
            "weights": Figure(even, "count", Source.ESTIMATED, note="if every layer lost the same share"),
        }
        note = (
            f"{self.options.target_sparsity:.4g} of the weights leave"
            if self.options.target_sparsity
            else f"{goal} of {sum(g.size for g in chosen.groups)} channels leave"
        )
        return Plan(self.spelled(), changes, expected, (note, *chosen.notes))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The smaller network; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: No channel may be removed, or the target cannot be reached; says what can.
            UnknownNameError: ``layers`` matches nothing.
            DataError: No rows, too few, or without labels.
            DivergedError: The loss became NaN; the last good network is kept beside the checkpoints.
        """
        chosen, _, goal = self._aim(model)
        options = self.options.in_force
        training, validation = rows_of(
            model, data, self.name, validation=options.validation, rows=options.rows, seed=options.seed
        )
        if len(training) < options.batch_size:
            raise DataError(
                f"{len(training)} training rows are left, fewer than one batch of {options.batch_size}",
                "give more rows, or a smaller batch_size",
            )
        assert data is not None
        tell = progress or (lambda fraction, text: None)
        run = _Run(with_graph(model, chosen.graph), chosen, goal, options, training, validation)
        trail = Trail(model, data, self.name, self.options)
        run.to_the_end(trail, tell)
        tell(1.0, f"accuracy {run.facts['accuracy']:.2f} % on {len(validation)} validation rows")
        return model.with_step(run.model.ir, self._step(run, chosen, data))

    def _aim(self, model: Model) -> tuple[Selection, list[int], int]:
        """The groups, the counts that an even removal would take, and how many channels leave (0: by weights)."""
        options = self.options
        chosen = select(model, options.layers, include_residual=options.include_residual)
        _, counts = counts_for(chosen, options.ratio, options.target_sparsity, self.name)
        most = sum(g.size - 1 for g in chosen.groups)
        goal = (
            0
            if options.target_sparsity
            else min(most, int(sum(g.size for g in chosen.groups) * options.ratio))
        )
        return chosen, counts, goal

    def _step(self, run: _Run, chosen: Selection, data: Dataset) -> Step:
        found = channels.groups(run.model.ir).prunable
        after = {g.name: found[p].size for p, g in zip(chosen.places, chosen.groups, strict=True)}
        facts = run.facts
        removed = 1 - weights(run.model.ir) / weights(chosen.graph)
        notes = [
            f"{facts['removed']} of {sum(g.size for g in chosen.groups)} prunable channels and {removed:.4f} of the "
            f"weights removed in {facts['round']} rounds; accuracy {facts['first']:.2f} -> {facts['accuracy']:.2f} % "
            f"on {len(run.validation)} validation rows, which were not trained on",
            f"time: {run.clock.told()}",
            *(f"{g.name}: {g.size} -> {after[g.name]} channels" for g in chosen.groups),
        ]
        options = {
            **options_dict(self.options),
            "in_force": options_dict(run.options),
            "data": data.hash,
            "channels_left": after,
            "rounds": facts["round"],
            "seconds": {name: round(s, 3) for name, s in run.clock.phases.items()},
        }
        return Step(self.name, options, step_versions("numpy", "onnx-ir", "torch"), (*notes, *chosen.notes))


class _Run:
    """Rounds of training and removing, and where they are."""

    def __init__(
        self, model: Model, chosen: Selection, goal: int, options: Options, training: Rows, validation: Rows
    ) -> None:
        self.model, self.places, self.goal, self.options = model, chosen.places, goal, options
        self.training, self.validation = training, validation
        self.clock = Clock()
        self.total = weights(model.ir)
        self.facts: dict[str, Any] = {
            "round": 0,
            "removed": 0,
            "first": math.nan,
            "accuracy": math.nan,
            "told": 0.0,
        }

    def to_the_end(self, trail: Trail, tell: Progress) -> None:
        """The rounds that are left, and the training after the last one."""
        saved = trail.read(self.model)
        if saved is not None:
            self.model, facts = saved
            self.clock = Clock(spent=facts.pop("phases"))
            self.facts = facts
            tell(0.9 * self.done, f"resumed after round {facts['round']}")
        else:
            self.facts["first"] = self.facts["accuracy"] = self._judged()
            tell(0.0, f"accuracy before: {self.facts['first']:.2f} %")
        while self.done < 1:
            loss = self._round(trail)
            judge = self.done - self.facts["told"] >= 1 / _JUDGED or self.done >= 1
            if judge:
                self.facts.update(accuracy=self._judged(), told=self.done)
            trail.write(self.model, {**self.facts, "phases": self.clock.phases})
            if judge:
                text = f"loss {loss:.4g}, accuracy {self.facts['accuracy']:.2f} %"
                tell(0.9 * self.done, f"{self.facts['removed']} channels removed: {text}")
        self._finish(trail)

    @property
    def done(self) -> float:
        """Share of the goal that is reached, at most 1."""
        if self.goal:
            return min(1.0, self.facts["removed"] / self.goal)
        wanted = self.options.target_sparsity
        if not wanted:
            return 1.0
        return min(1.0, (1 - weights(self.model.ir) / self.total) / wanted)

    def _round(self, trail: Trail) -> float:
        """Train a little, remove what matters least; mean loss."""
        options, number = self.options, self.facts["round"]
        random = np.random.default_rng((options.seed, number))
        count = (
            min(len(self.training), options.steps * options.batch_size)
            // options.batch_size
            * options.batch_size
        )
        drawn = random.permutation(len(self.training))[:count]
        part = replace(self.training, inputs=self.training.inputs[drawn], labels=self.training.labels[drawn])
        found = channels.groups(self.model.ir).prunable
        groups = [found[p] for p in self.places]
        schedule = self._schedule(1, options.lr, number)
        meters: list[FisherMeter] = []
        with ExitStack() as stack:

            def watch(module: Any) -> Any:
                meter = FisherMeter(module, self.model.ir, groups)
                stack.enter_context(meter.watching())
                meters.append(meter)
                return lambda: meter.add(options.batch_size, scale=options.batch_size)

            try:
                with self.clock.phase("training"):
                    model, loss = trained(self.model, part, replace(schedule, decay="none"), watch=watch)
                scores = meters[0].scores()
            except DivergedError as error:
                raise trail.diverged(error, self.model, f"after {self.facts['removed']} channels") from error
        with self.clock.phase("pruning"):
            ids = self._least(model, groups, [self._cheaper(g, scores[g]) for g in groups])
            graph = model.editable()
            channels.remove(graph, ids)
        self.model = with_graph(model, graph)
        self.facts["round"] += 1
        self.facts["removed"] += len(ids)
        return loss

    def _cheaper(self, group: ChannelGroup, scores: np.ndarray) -> np.ndarray:
        return scores - self.options.beta * group.macs_per_channel / 1e6

    def _least(
        self, model: Model, groups: Sequence[ChannelGroup], scores: Sequence[np.ndarray]
    ) -> np.ndarray:
        """Ids of the lowest scores of all groups; one channel of each stays, and the goal is not overshot."""
        owner = np.repeat(np.arange(len(groups)), [g.size for g in groups])
        ids = np.concatenate([g.ids for g in groups])
        counts = [0] * len(groups)
        wanted = self.options.channels
        if self.goal:
            wanted = min(wanted, self.goal - self.facts["removed"])
        chosen: list[int] = []
        for place in np.argsort(np.concatenate(scores), kind="stable"):
            group = int(owner[place])
            if counts[group] == groups[group].size - 1:
                continue
            chosen.append(int(ids[place]))
            counts[group] += 1
            gone = 1 - remaining(model.ir, groups, counts) / self.total
            if len(chosen) == wanted or (not self.goal and gone >= self.options.target_sparsity):
                return np.asarray(chosen)
        if not chosen:
            raise DlasError("no channel is left that may leave", "ask for less")
        return np.asarray(chosen)

    def _finish(self, trail: Trail) -> None:
        options = self.options
        if not options.finetune_epochs:
            return
        schedule = self._schedule(options.finetune_epochs, options.finetune_lr, self.facts["round"])
        last = self.model
        try:
            with self.clock.phase("final"):
                self.model, _ = trained(last, self.training, schedule, checkpoint=trail.training(0))
        except DivergedError as error:
            raise trail.diverged(error, last, "after the last channel") from error
        self.facts["accuracy"] = self._judged()

    def _judged(self) -> float:
        with self.clock.phase("judging"):
            return accuracy(self.model, self.validation, self.options.threads)

    def _schedule(self, epochs: int, lr: float, number: int) -> Schedule:
        options = self.options
        return Schedule(
            epochs,
            lr,
            options.batch_size,
            options.seed + 1 + number,
            weight_decay=5e-4,
            augment=options.augment,
            clip_norm=CLIP_NORM,
            threads=options.threads,
        )
