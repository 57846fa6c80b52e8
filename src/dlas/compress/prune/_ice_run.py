"""One run of iterative pruning: step by step in forward order, with or without the three savings of ICE-Pruning."""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from dataclasses import asdict, dataclass, field, replace
from typing import TYPE_CHECKING, Any

import numpy as np
import onnx_ir as ir

from dlas.compress.prune import _ice_rules as rules
from dlas.compress.prune._criteria import CRITERIA, scores
from dlas.compress.prune._distilled import Distilled
from dlas.compress.prune._rounds import CLIP_NORM, Clock, Rows, Trail, accuracy, trained, with_graph
from dlas.compress.prune._taps import pooled_activations
from dlas.compress.prune._targets import weights
from dlas.compress.training import DivergedError, Schedule
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup
from dlas.graph.channels.labels import label_of
from dlas.graph.model import Model

if TYPE_CHECKING:
    from dlas.compress.prune.ice import Options

SCORED_ROWS = 512  # that entropy and mean-activation look at
_LAYERS = ("Conv", "ConvTranspose", "Gemm", "MatMul")


@dataclass(frozen=True)
class StepRecord:
    """One step, as the report shows it.

    Attributes:
        layer: Whose channels left.
        before: Channels before.
        after: Channels after.
        pruned_accuracy: Validation accuracy (%) right after they left; NaN where nothing depended on it.
        accuracy: The same at the end of the step.
        fine_tuned: Whether it was fine-tuned.
        lr: Learning rate of that.
        frozen: Layers that stood still in it.
        loss: Mean loss of the epoch.
    """

    layer: str
    before: int
    after: int
    pruned_accuracy: float
    accuracy: float
    fine_tuned: bool = False
    lr: float = 0.0
    frozen: int = 0
    loss: float = math.nan

    def told(self) -> str:
        """In words."""
        text = f"{self.layer} {self.before} -> {self.after} channels"
        if not math.isnan(self.pruned_accuracy):
            text += f", accuracy {self.pruned_accuracy:.2f} %"
        if not self.fine_tuned:
            return text
        frozen = f", {self.frozen} layers frozen" if self.frozen else ""
        return f"{text}, fine-tuned to {self.accuracy:.2f} % (loss {self.loss:.4g}, lr {self.lr:.3g}{frozen})"


@dataclass
class State:
    """Where a run is; plain values, fit for a checkpoint."""

    step: int = 0
    reference: float = 0.0  # accuracy (%) that a fall is measured from
    first: float = 0.0  # accuracy (%) of the network before
    current: float = 0.0
    changed: list[str] = field(default_factory=list)  # layers pruned since the last fine-tuning
    still: list[str] = field(default_factory=list)  # initializers the probe says to freeze
    records: list[dict[str, Any]] = field(default_factory=list)
    work: float = 0.0  # rows trained on, those of an epoch with frozen layers counting less
    epoch_s: float = 0.0  # of the last fine-tuning
    skipped: int = 0  # fine-tunings for which no time was left


class Run:
    """Prune a network step by step.

    Args:
        model: The network, tidied.
        places: Positions of the groups among the prunable ones.
        counts: How many channels leave each.
        options: Options, as they are in force.
        training: Training rows.
        validation: Rows that judge.
        clock: Time spent, and the budget.
        tell: Told the fraction of the steps done, and what happened.
        trail: What it leaves behind to go on from.
        tuned: Settings that tuning chose, kept in the trail.
    """

    def __init__(
        self,
        model: Model,
        places: Sequence[int],
        counts: Sequence[int],
        options: Options,
        training: Rows,
        validation: Rows,
        clock: Clock,
        tell: Callable[[float, str], None],
        trail: Trail | None = None,
        tuned: dict[str, Any] | None = None,
    ) -> None:
        self.original, self.model = model, model
        self.places, self.counts, self.options = places, counts, options
        self.training, self.validation = training, validation
        self.clock, self.tell, self.trail, self.tuned = clock, tell, trail, tuned or {}
        self.state = State()
        self.total = weights(model.ir)
        self.loss = Distilled(model, options.temperature) if options.distill else None

    def begin(self) -> None:
        """Judge the network as it is, and probe which layers to freeze."""
        state = self.state
        with self.clock.phase("judging"):
            state.first = state.reference = state.current = accuracy(
                self.original, self.validation, self.options.threads
            )
        self.tell(0.0, f"accuracy before: {state.first:.2f} %")
        if self.options.freeze == "least-moved":
            with self.clock.phase("probe"):
                state.still = self._probe()
            self.tell(0.0, f"probe: {len(state.still)} layers are frozen")

    def to_the_end(self) -> Model:
        """The steps that are left, and the training after the last one."""
        while self.state.step < len(self.places):
            self._step()
        self._finish()
        return self.model

    def _step(self) -> None:
        state, place, count = self.state, self.places[self.state.step], self.counts[self.state.step]
        with self.clock.phase("pruning"):
            group = channels.groups(self.model.ir).prunable[place]
            self.model = self._without(self.model, group, count)
        fallen = math.nan
        if self.options.decide:  # the plain loop has no use for it, and should not pay for it
            with self.clock.phase("judging"):
                fallen = accuracy(self.model, self.validation, self.options.threads)
        state.changed.extend(group.producers)
        record = StepRecord(group.producers[0], group.size, group.size - count, fallen, fallen)
        state.current = fallen
        wanted = not self.options.decide or rules.must_train(
            state.reference - fallen, self.options.threshold or 0.0
        )
        if wanted and self._has_time():
            record = self._fine_tuned(record)
        elif wanted:
            state.skipped += 1
            if math.isnan(fallen):
                state.current = accuracy(self.model, self.validation, self.options.threads)
        state.records.append(asdict(record))
        state.step += 1
        if self.trail is not None:
            self.trail.write(self.model, {**asdict(state), "phases": self.clock.phases, "tuned": self.tuned})
            self.trail.done(state.step)
        of = len(self.places)
        self.tell(
            state.step / (of + bool(self.options.final_epochs)), f"step {state.step} of {of}: {record.told()}"
        )

    def _fine_tuned(self, record: StepRecord) -> StepRecord:
        state, options = self.state, self.options
        lr = self._learning_rate()
        frozen = self._frozen()
        schedule = self._schedule(options.epochs, lr, options.seed + 1 + state.step)
        loss = self._train(schedule, frozen, "fine-tuning", f"step {state.step + 1} of {len(self.places)}")
        with self.clock.phase("judging"):
            state.current = accuracy(self.model, self.validation, options.threads)
        if options.decision == "running":
            state.reference = state.current
        state.changed.clear()
        still = sum(name in frozen for name, _ in _layers(self.model.ir))
        return replace(record, accuracy=state.current, fine_tuned=True, lr=lr, frozen=still, loss=loss)

    def _train(self, schedule: Schedule, frozen: set[str], phase: str, where: str) -> float:
        """Train in place; mean loss of the last epoch."""
        state = self.state
        before = self.clock.phases.get(phase, 0.0)
        reserved = 0.0 if phase == "final" else self._final_s()
        try:
            with self.clock.phase(phase):
                self.model, loss = trained(
                    self.model,
                    self.training,
                    schedule,
                    frozen=frozen,
                    loss=self.loss,
                    deadline=lambda: self.clock.left_s <= reserved,
                    checkpoint=self.trail.training(state.step + 1) if self.trail is not None else None,
                )
        except DivergedError as error:
            if self.trail is None:
                raise
            raise self.trail.diverged(error, self.model, f"{where} ({phase})") from error
        state.epoch_s = (self.clock.phases[phase] - before) / schedule.epochs
        learning = [name not in frozen for name, _ in _layers(self.model.ir)]
        state.work += len(self.training) * schedule.epochs * rules.cost_of_epoch(learning)
        return loss

    def _finish(self) -> None:
        """The training after the last step, if any is asked for and anything is left to mend."""
        options, state = self.options, self.state
        if not options.final_epochs or (not state.changed and state.records and not options.decide):
            return
        if self.clock.left_s <= 0:
            state.skipped += 1
            return
        schedule = self._schedule(options.final_epochs, self._learning_rate(), options.seed + 1 + state.step)
        self._train(replace(schedule, decay="cosine"), set(), "final", "after the last step")
        with self.clock.phase("judging"):
            state.current = accuracy(self.model, self.validation, options.threads)
        self.tell(1.0, f"trained at the end: accuracy {state.current:.2f} %")

    def _without(self, model: Model, group: ChannelGroup, count: int) -> Model:
        graph = model.editable()
        ids = group.ids[np.argsort(self._scores(model, group), kind="stable")[:count]]
        channels.remove(graph, ids)
        return with_graph(model, graph)

    def _scores(self, model: Model, group: ChannelGroup) -> np.ndarray:
        criterion = self.options.criterion
        if criterion in CRITERIA:
            return scores(model.ir, group, CRITERIA[criterion])
        if criterion == "random":
            return np.random.default_rng((self.options.seed, self.state.step)).random(group.size)
        seen = self.training.part(0.0, SCORED_ROWS, self.options.seed)
        pooled = pooled_activations(model, group, seen.inputs)
        return rules.entropy(pooled) if criterion == "entropy" else pooled.mean(0)

    def _probe(self) -> list[str]:
        """Prune the first step on a copy and train it; names of what moved least."""
        group = channels.groups(self.original.ir).prunable[self.places[0]]
        pruned = self._without(self.original, group, self.counts[0])
        schedule = self._schedule(1, self.options.lr, self.options.seed)
        moved, _ = trained(
            pruned, self.training, schedule, loss=self.loss, deadline=lambda: self.clock.left_s <= 0
        )
        self.state.work += len(self.training)
        layers = dict(_layers(self.original.ir))
        names = [name for name in layers if name in pruned.initializers]
        still = rules.least_moved(
            {n: self.original.initializers[n] for n in names},
            {n: pruned.initializers[n] for n in names},
            {n: moved.initializers[n] for n in names},
            self.options.freeze_ratio,
        )
        return sorted({name for layer in still for name in layers[layer]})

    def _frozen(self) -> set[str]:
        """Initializers that stand still in the next fine-tuning."""
        if self.options.freeze == "least-moved":
            return set(self.state.still)
        if self.options.freeze == "prefix":
            return _before(self.model.ir, set(self.state.changed))
        return set()

    def _learning_rate(self) -> float:
        options = self.options
        if not options.adapt_lr:
            return options.lr
        return rules.learning_rate(
            weights(self.model.ir) / self.total,
            base=options.lr,
            drop=options.lr_drop,
            pivot=options.lr_pivot,
            steepness=options.lr_steepness,
        )

    def _schedule(self, epochs: int, lr: float, seed: int) -> Schedule:
        options = self.options
        return Schedule(
            epochs,
            lr,
            options.batch_size,
            seed,
            weight_decay=1e-4,
            augment=options.augment,
            clip_norm=CLIP_NORM,
            threads=options.threads,
            decay="none",
        )

    def _final_s(self) -> float:
        """Seconds kept back for the training at the end."""
        return self.state.epoch_s * self.options.final_epochs

    def _has_time(self) -> bool:
        return self.clock.left_s > self._final_s() + 0.5 * self.state.epoch_s


def _layers(graph: ir.Model) -> list[tuple[str, tuple[str, ...]]]:
    """Weight of each convolution and linear layer in graph order, with all that is frozen along with it."""
    found: dict[str, tuple[str, ...]] = {}
    for node in graph.graph:
        if node.op_type not in _LAYERS:
            continue
        stored = [str(v.name) for v in node.inputs if v is not None and v.const_value is not None]
        if not stored:
            continue
        after = [u.node for u in node.outputs[0].uses() if u.node.op_type == "BatchNormalization"]
        norm = [str(v.name) for n in after for v in n.inputs[1:3] if v is not None]
        found.setdefault(stored[0], (*stored, *norm))
    return list(found.items())


def _before(graph: ir.Model, changed: set[str]) -> set[str]:
    """Initializers that are read before the first of the layers ``changed``, and nowhere after it."""
    early: set[str] = set()
    late: set[str] = set()
    reached = False
    for node in graph.graph:
        reached = reached or label_of(node) in changed
        names = (str(v.name) for v in node.inputs if v is not None and v.const_value is not None)
        (late if reached else early).update(names)
    return early - late if reached else set()
