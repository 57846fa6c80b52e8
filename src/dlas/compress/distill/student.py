"""A student for a latency: fewer channels where the hardware rewards it, trained with the attention of a teacher.

Fisher information ranks all channels of the network; a table of layer times, which is a staircase on real hardware,
says which widths are worth having: every layer is widened to the last channel of its stair, because that costs
nothing (Turner et al. 2019, "Performance aware convolutional neural network channel pruning for embedded GPUs";
Turner et al. 2018, "Pruning neural networks: is it time to nip it in the bud?"). The network of these widths is then
trained with attention transfer. Complexity: one look at ``fisher_rows`` rows, one time per layer shape asked for, and
a training. Not for networks without training rows, and no bargain where a few epochs must do: start it from the
pruned weights then (``init=pruned``).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import asdict, dataclass, replace
from pathlib import Path
from typing import Any, Literal

import numpy as np

from dlas.compress._fisher import fisher_scores
from dlas.compress.checkpoint import Checkpoint, next_checkpoint
from dlas.compress.costs import Costs, mac_costs
from dlas.compress.distill._losses import Distillation, check_classes, stage_pairs
from dlas.compress.distill._search import SEARCHES, Found, Search
from dlas.compress.distill._table import Table, Widths
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.training import AUGMENTATIONS, Schedule, train
from dlas.core.cache import key_of
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.files import file_hash
from dlas.core.options import option, options_dict
from dlas.core.provenance import made_with
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup
from dlas.graph.model import Model, Step, step_versions

_RANKED, _SEARCHED = 0.08, 0.2  # shares of the progress


@dataclass(frozen=True)
class Options:
    """Options of ``student``."""

    latency_ms: float = option(0.0, "time that one run may take; 0 to give a share", low=0.0)
    share: float = option(0.5, "budget as a share of what the network takes itself", low=0.0)
    teacher: str = option("", "network whose attention is copied; empty for the network itself")
    search: Literal["stairs", "rounded", "fisher", "width"] = option(
        "stairs",
        "how widths are found: stairs down from the full network, by score and rounded up to the ends of stairs (as "
        "published), by score alone, or one share for all",
        choices=SEARCHES,
    )
    tolerance: float = option(0.02, "times within this share of each other are one stair", low=0.0, below=1.0)
    slack: float = option(0.02, "share by which the measured time may exceed the budget", low=0.0, below=1.0)
    min_channels: int = option(1, "channels that stay in every group at least", low=1)
    include_residual: bool = option(True, "also thin channels that several layers compute together")
    fisher_rows: int = option(1024, "training rows that rank the channels", low=1)
    init: Literal["scratch", "pruned"] = option(
        "scratch",
        "weights to train from: random ones, or what is left of the network's",
        choices=("scratch", "pruned"),
    )
    epochs: int = option(30, "epochs of training", low=0)
    train_rows: int = option(0, "training rows per epoch; 0 uses all", low=0)
    lr: float = option(0.1, "learning rate", low=0.0)
    batch_size: int = option(128, "batch size", low=1)
    weight_decay: float = option(5e-4, "L2 penalty on weights", low=0.0)
    augment: Literal["none", "flip", "shift", "flip-shift"] = option(
        "flip-shift", "how images are varied", choices=AUGMENTATIONS
    )
    attention: float = option(1000.0, "weight of the attention of the teacher (beta); 0 for none", low=0.0)
    alpha: float = option(0.0, "weight of the teacher's answers", low=0.0, high=1.0)
    temperature: float = option(4.0, "softens the teacher's answers", low=0.01)
    threads: int = option(2, "threads of training", low=1)
    seed: int = option(0, "seed of weights, order and augmentation", low=0)

    def __post_init__(self) -> None:
        if self.epochs:
            Schedule(1, self.lr)  # a rate that cannot be used is refused now, not after the search


@dataclass(frozen=True)
class _Design:
    """What was decided before training: plain values, so that a killed run goes on with the same network."""

    gone: tuple[int, ...]
    found: Found
    budget: float
    full: float
    alone: float
    groups: tuple[tuple[str, int, float], ...]  # name, channels, share of the score that the lost ones had
    layers: tuple[
        tuple[str, tuple[int, ...], float, tuple[int, ...], float], ...
    ]  # weight and cost, before and after

    @property
    def whole(self) -> bool:
        """Whether the network fits the budget as it is."""
        return not self.gone


@methods.register("student")
class Student(Method):
    """Find the widths that fit a budget, and train the network of these widths under a teacher."""

    name = "student"
    summary = "A thinner network for a latency budget, by Fisher scores and stairs, taught by attention"
    Options = Options
    needs_data = True
    takes_costs = True
    options: Options

    def depends_on(self) -> list[str]:
        """Hash of the teacher's file."""
        if not self.options.teacher:
            return []
        path = _teacher_path(self.options.teacher)
        return [path.name, file_hash(path)]

    def plan(self, model: Model, data: Dataset | None = None, *, costs: Costs | None = None) -> Plan:
        """Channels of every group and layer with what they cost; ranks the channels and measures, but does not train.

        Raises:
            OptionError: A budget below what the narrowest network takes; says how much that is.
            DataError: No labelled rows, or a teacher of other classes.
            UnsupportedError: No channel may be removed, or no attention can be compared.
        """
        data = _labelled(model, data)
        costs = self._checked_costs(costs)
        tidy = _tidied(model)
        teacher = self._teacher(model)
        if self.options.attention:
            stage_pairs(tidy, teacher)
        design = self._design(tidy, data, costs, None)
        expected = _figures(design, costs)
        return Plan(self.spelled(), _changes(design, costs), expected, tuple(self._notes(design, costs)))

    def apply(
        self,
        model: Model,
        data: Dataset | None = None,
        progress: Progress | None = None,
        *,
        costs: Costs | None = None,
    ) -> Model:
        """The trained student; see :meth:`Method.apply` and :meth:`plan`.

        Args:
            model: The network whose channels are thinned out; without a teacher also the teacher.
            data: Labelled training rows.
            progress: See :meth:`Method.apply`.
            costs: Measures layers and networks; multiply-accumulates are counted without it.
        """
        data = _labelled(model, data)
        costs = self._checked_costs(costs)
        tidy, teacher = _tidied(model), self._teacher(model)
        tell = progress or (lambda fraction, text: None)
        pairs = stage_pairs(tidy, teacher) if self.options.attention else []
        design = self._remembered(model, tidy, data, costs, tell)
        graph = tidy.editable()
        channels.remove(graph, design.gone)
        losses: list[float] = []
        student = replace(tidy, ir=graph)
        if not design.whole and self.options.epochs:
            student, losses = self._trained(student, teacher, pairs, data, tell)
        tell(1.0, "done")
        step = Step(
            self.name,
            {
                **options_dict(self.options),
                "data": data.hash,
                "teacher_hash": teacher.hash,
                "attention_at": [list(p) for p in pairs],
                "costs": costs.where,
                "cost_unit": costs.unit,
                **_record(design),
                "epoch_losses": losses,
            },
            step_versions("numpy", "onnx-ir", "torch"),
            tuple(self._notes(design, costs, losses)),
        )
        return model.with_step(student.ir if not design.whole else model.editable(), step)

    def _checked_costs(self, costs: Costs | None) -> Costs:
        options = self.options
        if options.epochs == 0 and options.init == "scratch":
            raise OptionError(
                "student: epochs", 0, "at least 1 with init=scratch", "give init=pruned to leave it untrained"
            )
        if options.latency_ms and (costs is None or not costs.measured):
            raise OptionError(
                "student: latency_ms", options.latency_ms, "0, because nothing here measures times",
                "give share=0.5 of the multiply-accumulates, or costs (dlas.runtime.costs.engine_costs)",
            )  # fmt: skip
        return costs or mac_costs()

    def _teacher(self, model: Model) -> Model:
        if not self.options.teacher:
            return _tidied(model)
        from dlas.graph.guard import import_model

        teacher = import_model(_teacher_path(self.options.teacher))
        check_classes(model, teacher)
        mine, theirs = model.inputs[0].shape[1:], teacher.inputs[0].shape[1:]
        if len(teacher.inputs) != 1 or mine != theirs:
            raise DataError(
                f"the teacher {teacher.name} takes inputs {list(theirs)}, {model.name} {list(mine)}",
                "both see the same rows: give a teacher of the same input",
            )
        steps = (model.preprocessing, teacher.preprocessing)
        if None not in steps and steps[0] != steps[1]:
            raise DataError(
                f"the teacher {teacher.name} wants its rows prepared in another way than {model.name}",
                "both see the same rows: give a teacher with the same preprocessing",
            )
        return _tidied(teacher)

    def _remembered(self, model: Model, tidy: Model, data: Dataset, costs: Costs, tell: Progress) -> _Design:
        """The design; the same one again after a kill, although times differ from run to run."""
        place = next_checkpoint()
        facts = [self.name, model.hash, options_dict(self.options), data.hash, made_with(), costs.where]
        saved = Checkpoint(place, key_of(*facts)) if place is not None else None
        state = saved.read() if saved is not None else None
        if state is not None:
            tell(_SEARCHED, "resumed with the widths found before")
            return _unpacked(state)
        design = self._design(tidy, data, costs, tell)
        if saved is not None:
            saved.write(_packed(design))
        return design

    def _design(self, tidy: Model, data: Dataset, costs: Costs, tell: Progress | None) -> _Design:
        tell = tell or (lambda fraction, text: None)
        groups = self._groups(tidy)
        ranked = fisher_scores(
            tidy,
            data,
            groups,
            rows=self.options.fisher_rows,
            threads=self.options.threads,
            progress=lambda f: tell(_RANKED * f, "ranking channels"),
        )
        scores = [ranked[g] for g in groups]
        order = [g.ids[np.argsort(s, kind="stable")] for g, s in zip(groups, scores, strict=True)]

        def gone(widths: Widths) -> tuple[int, ...]:
            left = [ids[: ids.size - kept] for ids, kept in zip(order, widths, strict=True)]
            return tuple(int(i) for i in np.concatenate(left))

        def whole(widths: Widths) -> float:
            graph = tidy.editable()
            channels.remove(graph, gone(widths))
            return costs.of_network(replace(tidy, ir=graph))

        done = _RANKED

        def told(text: str) -> None:
            nonlocal done
            done = min(_SEARCHED, done + 0.01)
            tell(done, text)

        table = Table(tidy.ir, groups, costs)
        tell(done, "measuring the network" if costs.measured else "counting the network's products")
        search = Search(
            table,
            scores,
            whole,
            tolerance=self.options.tolerance,
            slack=self.options.slack,
            least=self.options.min_channels,
            tell=told,
        )
        full = search.whole(search.full)
        budget = self.options.latency_ms or self.options.share * full
        if budget * (1 + self.options.slack) >= full:
            found = Found(search.full, search.predicted(search.full), full, search.full, 1)
        else:
            found = search.run(budget, self.options.search)
        return _Design(
            gone(found.widths),
            found,
            budget,
            full,
            search.alone,
            tuple(_group_row(g, s, k) for g, s, k in zip(groups, scores, found.widths, strict=True)),
            _layer_rows(table, found.widths),
        )

    def _groups(self, tidy: Model) -> Sequence[ChannelGroup]:
        found = channels.groups(tidy.ir)
        groups = [g for g in found.prunable if self.options.include_residual or not g.coupled]
        if not groups:
            reasons = "; ".join(
                f"{g.name}: {g.reason or 'several layers share it'}" for g in found.groups[:5]
            )
            raise UnsupportedError(
                f"{tidy.name} has no channels that may be removed" + (f" ({reasons})" if reasons else ""),
                "students are made of chains of Conv, ConvTranspose, Gemm and MatMul",
            )
        return groups

    def _trained(
        self, student: Model, teacher: Model, pairs: list[tuple[str, str]], data: Dataset, tell: Progress
    ) -> tuple[Model, list[float]]:
        from dlas.compress.distill._fresh import fresh
        from dlas.data.preprocess import prepare
        from dlas.graph.torch_module import to_torch, weights_back

        options = self.options
        count = min(options.train_rows, len(data)) if options.train_rows else len(data)
        taken = data if count == len(data) else data.take(np.arange(count) * len(data) // count)
        if options.init == "scratch":
            student = fresh(student, options.seed)
        inputs, labels = prepare(taken, student), np.asarray(taken.labels, np.int64)
        module, master = to_torch(student), to_torch(teacher)
        images = inputs.ndim == 4 and (
            student.preprocessing is None or student.preprocessing.layout == "NCHW"
        )
        schedule = Schedule(
            options.epochs,
            options.lr,
            options.batch_size,
            options.seed,
            weight_decay=options.weight_decay,
            augment=options.augment if images else "none",
            threads=options.threads,
        )
        loss = Distillation(
            module,
            master,
            pairs,
            alpha=options.alpha,
            temperature=options.temperature,
            beta=options.attention,
            identity=teacher.hash,
        )
        with loss.watching():
            losses = train(
                module,
                inputs,
                labels,
                schedule,
                loss=loss,
                progress=lambda f, text: tell(_SEARCHED + (1 - _SEARCHED) * f, text),
            )
        return replace(student, ir=weights_back(student, module)), losses

    def _notes(self, design: _Design, costs: Costs, losses: Sequence[float] = ()) -> list[str]:
        found, unit = design.found, costs.unit
        if design.whole:
            return [
                f"the network takes {design.full:.4g} {unit}, which fits the budget of {design.budget:.4g} {unit}: it "
                "is left as it is"
            ]
        words = "measured" if costs.measured else "counted"
        notes = [
            f"{found.measured:.4g} {unit} {words} ({found.predicted:.4g} predicted) of {design.full:.4g}, budget "
            f"{design.budget:.4g} {unit}, {costs.where}; {found.tries} networks tried"
        ]
        if costs.measured:
            off = 100 * (design.alone / design.full - 1)
            notes.append(
                f"the layers alone add up to {design.alone:.4g} {unit}, {off:+.1f} % of the whole network"
            )
        wider = sum(found.widths) - sum(found.pruned)
        if self.options.search == "rounded":
            notes.append(f"{wider:+d} channels against the {sum(found.pruned)} that the scores alone left")
        if losses:
            notes.append(f"mean loss of the epochs: {', '.join(f'{v:.4g}' for v in losses)}")
        return notes


def _labelled(model: Model, data: Dataset | None) -> Dataset:
    if data is None or data.labels is None:
        given = "none were given" if data is None else f"{data.name} has no labels"
        raise DataError(
            f"{model.name}: training rows with labels are needed to rank channels and to train, and {given}",
            "pass a data set (`--data D`)",
        )
    return data


def _tidied(model: Model) -> Model:
    from dlas.graph.passes import tidy

    graph = model.editable()
    tidy(graph)
    return replace(model, ir=graph, torch_module=None)


def _teacher_path(name: str) -> Path:
    from dlas.core.paths import resolve
    from dlas.models.pretrained import pretrained_path

    return pretrained_path(name) or resolve(name, "teacher")


def _group_row(group: ChannelGroup, scores: np.ndarray, kept: int) -> tuple[str, int, float]:
    total, lost = float(scores.sum()), float(np.sort(scores)[: group.size - kept].sum())
    return (group.name, group.size, lost / total if total else 0.0)


def _layer_rows(table: Table, widths: Widths) -> Any:
    before, after = table.shapes(table.full), table.shapes(widths)
    old, new = table.layers(table.full), table.layers(widths)
    return tuple((name, before[name].weight, old[name], after[name].weight, new[name]) for name in before)


def _changes(design: _Design, costs: Costs) -> tuple[Change, ...]:
    """Groups with their channels and scores, then the layers with their costs."""
    found = []
    for (name, size, lost), kept, pruned in zip(
        design.groups, design.found.widths, design.found.pruned, strict=True
    ):
        stair = f", {kept - pruned} of them for nothing" if kept > pruned else ""
        what = f"keep {kept} of {size} channels{stair}; {100 * lost:.3g} % of the score lost"
        found.append(Change(name, what, f"{size} channels", f"{kept} channels"))
    for name, old, before, new, after in design.layers:
        texts = [f"{'x'.join(map(str, s))}, {c:.4g} {costs.unit}" for s, c in ((old, before), (new, after))]
        if old != new:
            found.append(Change(name, "weight", *texts))
    return tuple(found)


def _figures(design: _Design, costs: Costs) -> dict[str, Figure]:
    name, unit = ("latency_ms", "ms") if costs.measured else ("macs", "count")
    source = Source.MEASURED if costs.measured else Source.ESTIMATED
    return {
        f"{name}_before": Figure(design.full, unit, source),
        name: Figure(design.found.measured, unit, source),
        f"{name}_by_table": Figure(design.found.predicted, unit, Source.ESTIMATED),
        f"{name}_budget": Figure(design.budget, unit, Source.ESTIMATED),
    }


def _record(design: _Design) -> dict[str, Any]:
    """What the history keeps of a design."""
    found = design.found
    return {
        "budget": design.budget,
        "cost_before": design.full,
        "cost_measured": found.measured,
        "cost_predicted": found.predicted,
        "layers_alone": design.alone,
        "channels": [
            {"group": name, "channels": size, "kept": kept, "by_score": pruned, "score_lost": lost}
            for (name, size, lost), kept, pruned in zip(
                design.groups, found.widths, found.pruned, strict=True
            )
        ],
    }


def _packed(design: _Design) -> dict[str, Any]:
    return {
        **asdict(design),
        "groups": [list(g) for g in design.groups],
        "layers": [list(x) for x in design.layers],
    }


def _unpacked(state: Mapping[str, Any]) -> _Design:
    fields = dict(state)
    found = dict(fields.pop("found"))
    found.update({k: tuple(found[k]) for k in ("widths", "pruned")})
    groups = tuple(tuple(g) for g in fields.pop("groups"))
    layers = tuple((n, tuple(a), b, tuple(c), d) for n, a, b, c, d in fields.pop("layers"))
    return _Design(
        **{**fields, "gone": tuple(fields["gone"])}, found=Found(**found), groups=groups, layers=layers
    )
