"""Channel pruning: whole channels leave, so the network becomes smaller and faster on any hardware.

Channels that a residual sum, a depthwise convolution or a gate ties together leave together (``dlas.graph.channels``);
the least important ones by the norm of their filters go first (Li et al. 2017, "Pruning filters for efficient
ConvNets"). Accuracy falls sharply without training afterwards: give ``finetune_epochs`` and data, or at least
``compensate``. Not for networks whose channels are mostly frozen by normalisation over channels or by their outputs.
"""

from __future__ import annotations

from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.prune._criteria import CRITERIA, scores
from dlas.core.errors import DataError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup, ChannelGroups
from dlas.graph.model import Model, Step, step_versions


@dataclass(frozen=True)
class Options:
    """Options of ``channel``."""

    ratio: float = option(0.5, "fraction of the channels to remove", low=0.0, below=1.0)
    criterion: Literal["l1", "l2"] = option("l1", "what makes a channel important", choices=tuple(CRITERIA))
    scope: Literal["layer", "global"] = option(
        "layer",
        "the same ratio in every group, or ranked over the whole network",
        choices=("layer", "global"),
    )
    include_residual: bool = option(True, "also prune channels that several layers compute together")
    round_to: int = option(1, "keep a multiple of this many channels per group", low=1)
    compensate: bool = option(False, "re-fit the remaining layers to the original outputs on training rows")
    rows: int = option(512, "training rows that compensate uses", low=1)
    finetune_epochs: int = option(0, "epochs of training afterwards", low=0)
    finetune_rows: int = option(0, "training rows per epoch; 0 uses all", low=0)
    lr: float = option(0.05, "learning rate of the fine-tuning", low=0.0)
    batch_size: int = option(128, "batch size of the fine-tuning", low=1)
    seed: int = option(0, "seed of the fine-tuning", low=0)


@methods.register("channel")
class Channel(Method):
    """Remove the least important channels.

    ``needs_data`` is False for the family member; an instance says by :attr:`wants_data` whether its options need rows.
    """

    name = "channel"
    summary = "Structured pruning: remove whole channels, ranked by the norm of their filters"
    Options = Options
    options: Options

    @property
    def wants_data(self) -> bool:
        """Whether ``apply`` needs training rows with these options."""
        return self.options.compensate or self.options.finetune_epochs > 0

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Channels that leave, group by group, with the cost before and after; needs no rows."""
        graph = _prepare(model, folded=self.options.compensate)
        found = channels.groups(graph)
        chosen = self._choose(model, graph, found)
        changes = tuple(_change(group, len(ids)) for group, ids in chosen if len(ids))
        before, size = found.macs, _parameters(graph)
        channels.remove(graph, _ids(chosen))
        expected = {
            "macs_before": Figure(before, "count", Source.ESTIMATED),
            "macs": Figure(channels.groups(graph).macs, "count", Source.ESTIMATED),
            "parameters_before": Figure(size, "count", Source.ESTIMATED),
            "parameters": Figure(_parameters(graph), "count", Source.ESTIMATED),
        }
        return Plan(self.spelled(), changes, expected, self._notes(found))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network without the channels; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: No channel may be removed; says why.
            ModelError: Weights that are not finite.
            DataError: The options ask for rows and none were given.
        """
        if self.wants_data and data is None:
            raise DataError(
                f"{self.spelled()} needs training rows and none were given",
                "pass a data set (`--data D`), or leave out compensate and finetune_epochs",
            )
        graph = _prepare(model, folded=self.options.compensate)
        found = channels.groups(graph)
        chosen = self._choose(model, graph, found)
        ids = _ids(chosen)
        notes = [*self._notes(found)]
        if self.options.compensate:
            graph, fitted = self._compensate(model, graph, ids, data, progress)
            notes.insert(0, f"{fitted} layers re-fitted on {self.options.rows} rows")
        else:
            channels.remove(graph, ids)
        removed = sum(len(ids) for _, ids in chosen)
        total = sum(group.size for group, _ in chosen)
        step = Step(
            self.name,
            {**options_dict(self.options), "data": data.hash if data is not None and self.wants_data else ""},
            step_versions("numpy", "onnx-ir"),
            (f"{removed} of {total} prunable channels removed", *notes),
        )
        pruned = model.with_step(graph, step)
        if progress is not None and self.options.finetune_epochs == 0:
            progress(1.0, "channels removed")
        return self._finetune(pruned, data, progress)

    def _compensate(
        self, model: Model, graph: ir.Model, ids: np.ndarray, data: Dataset | None, progress: Progress | None
    ) -> tuple[ir.Model, int]:
        """The graph without the channels and with re-fitted layers, and how many were."""
        from dlas.compress.calibration import calibration_batches
        from dlas.compress.prune._compensate import compensate

        batches, _ = calibration_batches(model, data, self.options.rows)
        held = list(batches())  # every layer reads them again, and decoding costs more than running
        share = 0.3 if self.options.finetune_epochs else 1.0
        pruned = graph.clone()
        channels.remove(pruned, ids)
        fitted = compensate(
            pruned,
            graph,
            channels.survivors(graph, ids),
            lambda: iter(held),
            seed=self.options.seed,
            progress=None if progress is None else lambda f: progress(share * f, "re-fitting layers"),
        )
        return pruned, len(fitted)

    def _finetune(self, pruned: Model, data: Dataset | None, progress: Progress | None) -> Model:
        options = self.options
        if options.finetune_epochs == 0 or data is None:
            return pruned
        from dlas.compress.training import fine_tune

        return fine_tune(
            pruned,
            _spread(data, options.finetune_rows),
            epochs=options.finetune_epochs,
            lr=options.lr,
            batch_size=options.batch_size,
            seed=options.seed,
            progress=None if progress is None else lambda f, what: progress(0.3 + 0.7 * f, what),
        )

    def _choose(
        self, model: Model, graph: ir.Model, found: ChannelGroups
    ) -> list[tuple[ChannelGroup, np.ndarray]]:
        """Groups that may lose channels, each with the ids that leave, least important first."""
        open_groups = [g for g in found.prunable if self.options.include_residual or not g.coupled]
        if not open_groups:
            reasons = "; ".join(
                f"{g.name}: {g.reason or 'several layers share it'}" for g in found.groups[:5]
            )
            raise UnsupportedError(
                f"{model.name} has no channels that may be removed" + (f" ({reasons})" if reasons else ""),
                "channel pruning works inside chains of Conv, ConvTranspose, Gemm and MatMul",
            )
        ranked = [scores(graph, g, CRITERIA[self.options.criterion]) for g in open_groups]
        counts = self._counts(open_groups, ranked)
        return [
            (group, group.ids[np.argsort(score, kind="stable")[:count]])
            for group, score, count in zip(open_groups, ranked, counts, strict=True)
        ]

    def _counts(self, groups: list[ChannelGroup], ranked: list[np.ndarray]) -> list[int]:
        """How many channels leave each group; at least one stays, and what stays is a multiple of ``round_to``."""
        ratio = self.options.ratio
        if self.options.scope == "layer":
            wanted = [int(g.size * ratio + 1e-9) for g in groups]
        else:
            # Norms of layers of different fan-in are not comparable: each is divided by its group's mean.
            relative = [score / max(float(score.mean()), 1e-30) for score in ranked]
            everything = np.sort(np.concatenate(relative), kind="stable")
            limit = int(everything.size * ratio + 1e-9)
            bound = everything[limit] if limit < everything.size else np.inf
            wanted = [int((score < bound).sum()) for score in relative]
        step = self.options.round_to
        counts = []
        for group, count in zip(groups, wanted, strict=True):
            kept = min(group.size, -(-max(1, group.size - count) // step) * step)
            counts.append(group.size - kept)
        return counts

    def _notes(self, found: ChannelGroups) -> tuple[str, ...]:
        notes = [f"{g.name} keeps its {g.size} channels: {g.reason}" for g in found.frozen]
        if not self.options.include_residual:
            notes += [
                f"{g.name} keeps its {g.size} channels: {len(g.producers)} layers share them (include_residual=false)"
                for g in found.prunable
                if g.coupled
            ]
        return tuple(notes)


def _prepare(model: Model, *, folded: bool) -> ir.Model:
    """An editable copy; re-fitting works on layers that hold their batch norm, everything else keeps it apart."""
    from dlas.graph.passes import simplify, tidy

    graph = model.editable()
    (simplify if folded else tidy)(graph)
    return graph


def _spread(data: Dataset, rows: int) -> Dataset:
    """``rows`` rows at even distances, so that a set sorted by class is still seen whole; all of them for 0."""
    count = min(rows, len(data)) if rows else len(data)
    return data if count == len(data) else data.take(np.arange(count) * len(data) // count)


def _ids(chosen: list[tuple[ChannelGroup, np.ndarray]]) -> np.ndarray:
    return np.concatenate([ids for _, ids in chosen])


def _parameters(graph: ir.Model) -> int:
    """Stored numbers of the network; constants that only describe shapes (int64) do not count."""
    stored = [v.const_value for v in graph.graph.initializers.values() if v.const_value is not None]
    return sum(tensor.size for tensor in stored if tensor.dtype is not ir.DataType.INT64)


def _change(group: ChannelGroup, count: int) -> Change:
    shared = f", shared by {len(group.producers)} layers" if group.coupled else ""
    return Change(
        group.name,
        f"remove {count} of {group.size} channels{shared}",
        f"{group.size} channels",
        f"{group.size - count} channels",
    )
