"""Activations in 3 to 5 bits, the important channels with a few more: DQA, and what it takes to make it pay.

Each channel of a block's output is rounded to its own grid; important channels get ``extra`` bits, stored as Huffman
codes beside the others (Hu et al. 2024, "DQA: An Efficient Method for Deep Quantization of Deep Neural Network
Activations"). The defaults are not the published ones: unsigned grids where the graph proves that nothing is negative,
ranges fixed on calibration rows, importance from one backward pass, one extra bit. As published is
``dqa:extra=3,importance=greedy,range=dynamic-batch,signed=yes``; plain rounding is ``dqa:fraction=0``.

The network that comes out holds the rounding as plain nodes, so any back end computes the quantised numbers; it is no
faster by that. What the activations take is measured on the bytes of ``dlas.kernels.formats.dqa`` and stands in the
history. With ``range=dynamic-batch`` the answer for a row depends on the rows it shares a batch with.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._activations import importance
from dlas.compress.quantize._activations.importance import IMPORTANCE, Sample
from dlas.compress.quantize._activations.network import WHERE, Place, Writer
from dlas.compress.quantize._activations.rows import Calibration, found_in
from dlas.core.errors import OptionError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.passes import infer_shapes
from dlas.kernels.formats import dqa as form

RANGES = ("static", "dynamic-batch", "dynamic-sample")
Layouts = dict[Place, form.Layout]


@dataclass(frozen=True)
class Options:
    """Options of ``dqa``."""

    bits: int = option(3, "bits of every value", low=2, high=8)
    extra: int = option(1, "further bits of the important channels", low=1, high=3)
    fraction: float = option(
        0.4, "share of the channels of each value that is important; 0 rounds all alike", low=0.0, high=1.0
    )
    importance: Literal["fisher", "greedy", "random"] = option(
        "fisher",
        "how channels are ranked: by the loss that rounding costs, by an evaluation each, by chance",
        choices=IMPORTANCE,
    )
    range: Literal["static", "dynamic-batch", "dynamic-sample"] = option(
        "static", "where the range comes from: calibration rows, or the values at hand", choices=RANGES
    )
    per_channel: bool = option(True, "one range per channel; else one per value")
    signed: Literal["auto", "yes", "no"] = option(
        "auto",
        "grids with negative levels; auto: only where values can be negative",
        choices=("auto", "yes", "no"),
    )
    top: Literal["below", "peak"] = option(
        "below",
        "highest level of an unsigned grid: one step below the peak, as signed grids have it, or the peak itself",
        choices=("below", "peak"),
    )
    tables: Literal["auto", "dynamic", "static", "raw"] = option(
        "auto",
        "code tables of the extra bits: with each tensor, fixed on the calibration rows, none; auto: none for one bit, "
        "fixed where rows are stored alone",
        choices=("auto", *form.TABLES),
    )
    budget: float = option(
        0.0,
        "stored bits per value to reach, with up to `extra` bits where they help most; 0 uses fraction",
        low=0.0,
    )
    where: Literal["blocks", "all"] = option(
        "blocks", "which values: outputs of residual blocks, or every activation", choices=WHERE
    )
    only: str = option("", "patterns of the layers whose values are quantised, separated by |")
    rows: int = option(500, "training rows for ranges, importance and the measure of size", low=1)
    batch: int = option(128, "rows that are stored together", low=1)
    seed: int = option(0, "seed of importance=random", low=0)

    @property
    def coding(self) -> form.Tables:
        """Where code tables come from."""
        if self.tables != "auto":
            return self.tables
        if self.extra == 1:
            return "raw"  # one bit has no shorter code
        return "static" if self.batch == 1 else "dynamic"

    @property
    def span(self) -> form.Span:
        """The range, as the format calls it."""
        return {"static": "static", "dynamic-batch": "batch", "dynamic-sample": "sample"}[self.range]  # type: ignore[return-value]


@methods.register("dqa")
class Dqa(Method):
    """Few bits per activation, more for important channels."""

    name = "dqa"
    summary = "Activations in 3-5 bits with extra Huffman-coded bits for important channels (DQA)"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Values that are rounded and their bits, side information left out; needs no rows."""
        options = self.options
        found = self._found(model)[1]
        changes = []
        for place in found:
            important = 0 if options.budget else int(options.fraction * place.channels + 1e-9)
            more = f", {important} of them {options.bits + options.extra}" if important else ""
            kind = "signed" if _signed(place, options) else "unsigned"
            what = f"{place.channels} channels, {options.bits} bits{more}, {kind}, {options.range} range"
            mean = options.budget or options.bits + important / place.channels * options.extra
            changes.append(Change(place.layer, what, "32 bits", f"{mean:.3g} bits"))
        expected = {
            "bits": Figure(options.budget or options.bits, "bits", Source.ESTIMATED, note="least per value")
        }
        return Plan(self.spelled(), tuple(changes), expected)

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with rounded activations; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: No activation to quantise, or not float32.
            UnknownNameError: A pattern of ``only`` matches nothing.
            OptionError: ``signed=no`` for values that can be negative, or a budget below what the codes take.
            DataError: No rows, rows of another shape, labels beyond the classes, or values that are not finite.
        """
        return self.apply_ranked(model, data, None, progress)

    def apply_ranked(
        self,
        model: Model,
        data: Dataset | None,
        scores: Mapping[str, np.ndarray] | None,
        progress: Progress | None = None,
    ) -> Model:
        """As :meth:`apply`, with the importance of the channels known (from :meth:`rank`)."""
        options = self.options
        graph, found = self._found(model)
        rows = self._rows(model, data)
        told = progress or (lambda fraction, what: None)
        base = self._base(graph, found, rows, lambda f: told(0.2 * f, "reading ranges"))
        if scores is None and (options.fraction or options.budget):
            scores = self._rank(model, graph, base, rows, lambda f: told(0.2 + 0.5 * f, "ranking channels"))
        trial = self._budgeted if options.budget else self._by_fraction
        graph, layouts, stored = trial(
            graph, base, scores or {}, rows, lambda f: told(0.7 + 0.3 * f, "measuring")
        )
        told(1.0, "quantised")
        return model.with_step(graph, self._step(layouts, stored, rows, data))

    def rank(
        self, model: Model, data: Dataset | None, told: Callable[[float], object] | None = None
    ) -> dict[str, np.ndarray]:
        """Importance of the channels of each value, ``(C,) float64``, by ``importance``."""
        graph, found = self._found(model)
        rows = self._rows(model, data)
        return self._rank(model, graph, self._base(graph, found, rows), rows, told)

    def _found(self, model: Model) -> tuple[ir.Model, list[Place]]:
        graph, found = found_in(model, self.options.where, self.options.only)
        for place in found:
            _signed(place, self.options)
        if self.options.budget and self.options.importance == "greedy":
            raise OptionError(
                "dqa: importance",
                "greedy",
                "fisher together with budget, because accuracies of channels do not add up",
            )
        return graph, found

    def _rows(self, model: Model, data: Dataset | None) -> Calibration:
        return Calibration.of(model, data, self.options.rows, self.options.batch)

    def _base(
        self,
        graph: ir.Model,
        found: list[Place],
        rows: Calibration,
        told: Callable[[float], object] | None = None,
    ) -> Layouts:
        """Every value at ``bits`` bits, ranges included."""
        options = self.options
        sizes = {p: p.channels if options.per_channel else 1 for p in found}
        peaks = {p: np.zeros(size, np.float32) for p, size in sizes.items()}
        for values in rows.values(graph, found, told):
            for place, x in zip(found, values, strict=True):
                seen = form.peaks_of(x, "batch", options.per_channel).reshape(-1)
                peaks[place] = np.maximum(peaks[place], seen)
        return {
            p: form.Layout(
                options.bits,
                np.zeros(p.channels, np.uint8),
                _signed(p, options),
                options.span,
                peaks[p],
                options.top == "peak",
                "raw",
            )
            for p in found
        }

    def _rank(
        self,
        model: Model,
        graph: ir.Model,
        base: Layouts,
        rows: Calibration,
        told: Callable[[float], object] | None = None,
    ) -> dict[str, np.ndarray]:
        sample = Sample(rows.batches, rows.labels, rows.count)
        if self.options.importance == "random":
            return importance.random(list(base), self.options.seed)
        if self.options.importance == "greedy":
            coarse = {p: dataclasses.replace(v, bits=importance.GREEDY_BITS) for p, v in base.items()}
            return importance.greedy(graph, rows.spec, coarse, sample, told)
        return importance.fisher(dataclasses.replace(model, ir=graph), base, sample, told)

    def _by_fraction(
        self,
        graph: ir.Model,
        base: Layouts,
        scores: Mapping[str, np.ndarray],
        rows: Calibration,
        told: Callable[[float], object],
    ) -> tuple[ir.Model, Layouts, dict[Place, form.Stored]]:
        options = self.options
        extra = {
            p: importance.top(scores.get(p.value, np.zeros(p.channels)), options.fraction, options.extra)
            for p in base
        }
        return self._made(graph, base, extra, rows, told)

    def _budgeted(
        self,
        graph: ir.Model,
        base: Layouts,
        scores: Mapping[str, np.ndarray],
        rows: Calibration,
        told: Callable[[float], object],
    ) -> tuple[ir.Model, Layouts, dict[Place, form.Stored]]:
        """The most extra bits that stay within the budget: what was measured corrects what is spent next."""
        options = self.options
        none = {p: np.zeros(p.channels, np.uint8) for p in base}
        best = self._made(graph, base, none, rows, told)
        floor = sum(best[2].values(), form.Stored()).bits_per_value
        if options.budget < floor:
            raise OptionError(
                f"{self.name}: budget",
                options.budget,
                f"at least {floor:.4g} stored bits per value, which {options.bits} bits take without any extra",
                "use fewer bits, or a larger budget",
            )
        sizes = {p.value: s.values // p.channels for p, s in best[2].items()}
        spend, most = options.budget - floor, 0.0
        for _ in range(4):
            given = importance.allocate(scores, sizes, options.extra, spend)
            made = self._made(graph, base, {p: given[p.value] for p in base}, rows, told)
            measured = sum(made[2].values(), form.Stored()).bits_per_value
            if most < measured <= options.budget:
                best, most = made, measured
            if 0 <= options.budget - measured < 0.002:
                break
            spend += options.budget - measured - 0.001  # aimed at twice in a row, it would be missed twice
        return best

    def _made(
        self,
        graph: ir.Model,
        base: Layouts,
        extra: Mapping[Place, np.ndarray],
        rows: Calibration,
        told: Callable[[float], object],
    ) -> tuple[ir.Model, Layouts, dict[Place, form.Stored]]:
        """The graph with quantisers, their layouts, and what the values take on the calibration rows."""
        coding = self.options.coding
        layouts = {p: dataclasses.replace(v, extra=extra[p]) for p, v in base.items()}
        made = graph.clone()
        writer = Writer(made)
        for place, layout in layouts.items():
            writer.grid(place, layout)
        infer_shapes(made)
        counts = {p: np.zeros((p.channels, 8), np.int64) for p in layouts}
        if coding == "static":
            for values in rows.values(made, list(layouts)):
                for (place, layout), x in zip(layouts.items(), values, strict=True):
                    counts[place] += form.error_counts(x, layout)
        for place, layout in layouts.items():
            lengths = form.static_tables(counts[place], layout.extra) if coding == "static" else None
            layouts[place] = dataclasses.replace(layout, tables=coding, lengths=lengths)
        stored = {p: form.Stored() for p in layouts}
        for values in rows.values(made, list(layouts), told):
            for (place, layout), x in zip(layouts.items(), values, strict=True):
                stored[place] += form.encode_measured(x, layout)[1]
        return made, layouts, stored

    def _step(
        self, layouts: Layouts, stored: dict[Place, form.Stored], rows: Calibration, data: Dataset | None
    ) -> Step:
        total = sum(stored.values(), form.Stored())
        side = sum(layout.side_bytes for layout in layouts.values())
        notes = [
            f"{total.bits_per_value:.4g} stored bits per value on the bytes of {rows.count} rows, {rows.size} at a "
            f"time; {side} bytes once with the network"
        ]
        if total.errors:
            notes.append(
                f"extra bits: {total.bits_per_error:.4g} stored per error, "
                f"{total.errors / total.values:.1%} of the values have one"
            )
        ranked = self.options.importance != "random" and (self.options.fraction or self.options.budget)
        if rows.labels is None and ranked:
            notes.append("the rows have no labels: importance follows the network's own answers")
        notes += [_told(p, layout, stored[p]) for p, layout in layouts.items()]
        facts = {
            "data": data.hash if data is not None else "",
            "stored_bits_per_value": total.bits_per_value,
            "stored_bits_per_error": total.bits_per_error,
            "side_bytes": side,
        }
        return Step(
            self.name,
            {**options_dict(self.options), **facts},
            step_versions("numpy", "onnx-ir", "onnxruntime", "torch"),
            tuple(notes),
        )


def _signed(place: Place, options: Options) -> bool:
    if options.signed == "no" and not place.nonnegative:
        raise OptionError(
            "dqa: signed",
            options.signed,
            f"auto or yes, because values of {place.layer!r} can be negative",
            "leave that layer out with `only`, or use signed=auto",
        )
    return options.signed == "yes" or not place.nonnegative


def _told(place: Place, layout: form.Layout, stored: form.Stored) -> str:
    richer = ", ".join(
        f"{int((layout.extra == k).sum())} channels {layout.bits + k} bits"
        for k in (1, 2, 3)
        if (layout.extra == k).any()
    )
    more = f" ({richer})" if richer else ""
    return f"{place.layer}: {place.channels} channels {layout.bits} bits{more}, {stored.bits_per_value:.4g} stored"
