"""Selective 8-bit quantisation: int8 but for the layers that cost the most labels, with the trade-off in full.

Layers are ranked by how much their rounding shows, and left float one after the other until the answers agree with
those of the float network, as in SeQTO (selective quantisation of ONNX models, Louloudakis et al.). Other than there,
every candidate is judged on one fixed set of rows and the choice confirmed on a second one; the number of float
layers is bisected; and layers that turn out not to matter become integer again. Not for networks that ``int8``
already keeps right: it is much faster.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, replace
from typing import Any, Literal

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import CALIBRATIONS, LEAST_ROWS, calibration_batches
from dlas.compress.checkpoint import Checkpoint, next_checkpoint
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._int8.front import Point, decibels, pareto, ranked
from dlas.compress.quantize._int8.quantise import notes_on
from dlas.compress.quantize._int8.selection import Layer, Mixture, Recipe, difference
from dlas.core.bisection import without_spare
from dlas.core.cache import key_of
from dlas.core.errors import DataError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.core.provenance import made_with
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model, Step, step_versions

Latency = Callable[[Model], float]
"""Milliseconds that one run of a network takes."""


@dataclass(frozen=True)
class Options:
    """Options of ``selective-int8``."""

    choose: Literal["knee", "first-right", "smallest"] = option(
        "knee",
        "network to make: nearest to the ideal of no difference and least bytes, the first in the ranking's order that "
        "is right, or the smallest that is right",
        choices=("knee", "first-right", "smallest"),
    )
    max_label_diff: float = option(
        0.0,
        "a network is right if at most this share of labels differs from the float network's (without labels: this "
        "relative error of the answers)",
        low=0,
        high=1,
    )
    max_float_layers: int = option(0, "layers left float at most, 0 for any number", low=0)
    search: Literal["bisect", "sweep"] = option(
        "bisect",
        "bisect the number of float layers and make spare ones integer again, or leave one more float at a time "
        "(the published procedure)",
        choices=("bisect", "sweep"),
    )
    max_networks: int = option(60, "networks to try at most", low=3)
    images: int = option(256, "training rows that networks are judged on", low=1)
    held_out: int = option(256, "further training rows that the choice is confirmed on", low=1)
    rows: int = option(256, "further training rows for calibration", low=1)
    seed: int = option(0, "decides which rows serve for what", low=0)
    per_channel: bool = option(True, "one weight scale per output channel, or one per tensor")
    calibration: Literal["min-max", "percentile", "mse"] = option(
        "mse", "how a range is read from the calibration rows", choices=CALIBRATIONS
    )
    percentile: float = option(
        99.99, "percent of the values kept by calibration=percentile", low=50, high=100
    )
    bias_correction: bool = option(
        True, "add the mean error of each layer over the calibration rows to its bias"
    )
    activations: Literal["uint8", "int8"] = option(
        "uint8", "how codes are stored: the same numbers, see int8", choices=("uint8", "int8")
    )
    keep_float: str = option("", "patterns of node names that stay float in every network, separated by |")


@methods.register("selective-int8")
class SelectiveInt8(Method):
    """Int8 with the few layers left float that it would hurt most, and every other trade-off on record."""

    name = "selective-int8"
    summary = "Static 8-bit quantisation that leaves float the layers that cost most labels (SeQTO)"
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """The layers to choose from, and the sizes between which the result lies; needs no rows."""
        mixture = Mixture(model, self._recipe())
        changes = tuple(
            Change(
                layer.name,
                f"{layer.op}: 8 bits, or float32 if its rounding shows in the labels",
                f"{4 * layer.weights} bytes" if layer.weights else "",
                f"{layer.weights} to {4 * layer.weights} bytes" if layer.weights else "",
            )
            for layer in mixture.layers
        )
        before = sum(v.const_value.nbytes for v in mixture.graph.graph.initializers.values() if v.const_value)
        least = before - sum(3 * layer.weights for layer in mixture.layers)
        expected = {
            "weight_bytes_before": Figure(before, "bytes", Source.ESTIMATED),
            "weight_bytes_least": Figure(least, "bytes", Source.ESTIMATED, note="all layers int8"),
        }
        return Plan(self.spelled(), changes, expected, notes_on(mixture.scheme))

    def apply(
        self,
        model: Model,
        data: Dataset | None = None,
        progress: Progress | None = None,
        *,
        latency_ms: Latency | None = None,
    ) -> Model:
        """The chosen network; the step of its history holds the ranking and the front, see :meth:`Method.apply`.

        Args:
            model: The float network.
            data: Training rows: some for calibration, some to choose by, some to confirm.
            progress: See :meth:`Method.apply`.
            latency_ms: Times a network. With it, time is an objective beside size and label difference.

        Raises:
            UnsupportedError: Already quantised, not float32, or without a layer that can become integer.
            DataError: Fewer than 24 rows, rows of another shape, or activations that are not finite.
            ModelError: Weights that are not finite.
        """
        mixture = Mixture(model, self._recipe())
        tell = _Progress(progress)
        calibration, chosen_by, confirming = self._split(model, data)
        batches, rows = calibration_batches(model, calibration, len(calibration))
        mixture.calibrate(batches, rows, lambda f: tell(0.25 * f, "calibrating"))
        ranking = mixture.ranking()
        tell(0.3, "ranked the layers")
        trials = _Trials(self, model, mixture, ranking, prepare(chosen_by, model), data, latency_ms, tell)
        first_right = _searched(trials, self.options)
        tell(0.95, "confirming")
        front = trials.confirmed(self._front(trials, first_right), prepare(confirming, model))
        best = next(p for p in front if p.chosen)
        graph, notes = mixture.made([ranking[i] for i in best.floats])
        tell(1.0, "quantised")
        extra = {"ranking": [layer.name for layer in ranking], "front": [p.to_dict() for p in front]}
        step = Step(
            self.name,
            {**options_dict(self.options), **extra},
            step_versions("numpy", "onnx-ir", "onnxruntime"),
            (*notes_on(mixture.scheme), *notes, *_words_on(best, ranking, trials, self.options, data)),
        )
        return model.with_step(graph, step)

    def _recipe(self) -> Recipe:
        o = self.options
        return Recipe(
            o.per_channel,
            o.calibration,
            o.percentile,
            o.bias_correction,
            o.activations == "uint8",
            o.keep_float,
        )

    def _split(self, model: Model, data: Dataset | None) -> tuple[Dataset, Dataset, Dataset]:
        """Rows for calibration, to choose by and to confirm, none of them twice; fewer of each if there are few."""
        least = 3 * LEAST_ROWS
        if data is None or len(data) < least:
            given = "none were given" if data is None else f"{data.name} has {len(data)}"
            raise DataError(
                f"{model.name}: rows are needed to calibrate, to choose and to confirm, and {given}",
                f"pass a data set with at least {least} rows (`--data D`)",
            )
        wanted = np.array([self.options.rows, self.options.images, self.options.held_out])
        if wanted.sum() > len(data):
            wanted = LEAST_ROWS + wanted * (len(data) - least) // wanted.sum()
        order = np.random.default_rng(self.options.seed).permutation(len(data))
        ends = np.cumsum(wanted)
        return tuple(data.take(np.sort(part)) for part in np.split(order[: ends[-1]], ends[:-1]))  # type: ignore[return-value]

    def _front(self, trials: _Trials, first_right: Point | None) -> list[Point]:
        """The points worth having and both ends, by size, with the one to make marked."""
        limit, choose = self.options.max_float_layers, self.options.choose
        allowed = [p for p in trials.points.values() if not limit or len(p.floats) <= limit]
        resolution = 3 / len(trials.rows)  # rule of three: what so many rows can tell from nothing
        front = ranked(pareto(allowed), 0.0 if allowed[0].label_diff is None else resolution)
        right = [p for p in front if p.dissimilarity <= self.options.max_label_diff]
        if choose == "knee":
            best = next(p for p in front if p.rank == 1)
        elif choose == "first-right" and first_right is not None:
            best = first_right
        elif right:
            best = right[0]
        else:  # the most faithful one, which the notes say
            best = min(front, key=lambda p: (p.dissimilarity, p.relative_l2))
        there = {p.floats for p in front}
        ends = [trials.point([]), trials.point(range(len(trials.ranking))), best]
        front += [p for p in dict.fromkeys(ends) if p.floats not in there]
        front.sort(key=lambda p: (p.size_bytes, p.dissimilarity))
        return [replace(p, chosen=p.floats == best.floats) for p in front]


class _Progress:
    """Progress that never goes back."""

    def __init__(self, progress: Progress | None) -> None:
        self._progress, self._last = progress, 0.0

    def __call__(self, fraction: float, text: str) -> None:
        self._last = max(self._last, min(1.0, fraction))
        if self._progress is not None:
            self._progress(self._last, text)


class _Trials:
    """Networks that were tried: each set of float layers once, also across a kill."""

    def __init__(
        self,
        method: SelectiveInt8,
        model: Model,
        mixture: Mixture,
        ranking: Sequence[Layer],
        rows: np.ndarray,
        data: Dataset | None,
        latency_ms: Latency | None,
        tell: _Progress,
    ) -> None:
        self.options, self.model, self.mixture, self.ranking = method.options, model, mixture, list(ranking)
        self.rows, self.latency_ms, self.tell = rows, latency_ms, tell
        self.points: dict[tuple[int, ...], Point] = {}
        self._by_graph: dict[str, Point] = {}
        self._exact = mixture.answers(mixture.graph, rows)
        place = next_checkpoint()
        facts = [
            method.name,
            model.hash,
            options_dict(method.options),
            data.hash if data else "",
            made_with(),
        ]
        self._saved = Checkpoint(place, key_of(*facts, latency_ms is not None)) if place is not None else None
        state = self._saved.read() if self._saved is not None else None
        self._known: dict[str, list[Any]] = dict(state["points"]) if state else {}
        if self._known:
            tell(0.3, f"resumed with {len(self._known)} networks already tried")

    @property
    def spent(self) -> bool:
        """Whether as many networks were tried as may be; the last two places are kept for the ends."""
        return len(self.points) >= self.options.max_networks

    def point(self, floats: Sequence[int]) -> Point:
        """How the network with these layers float fares; positions in the ranking."""
        key = tuple(sorted(floats))
        if key not in self.points:
            self.points[key] = self._tried(key)
        return self.points[key]

    def right(self, floats: Sequence[int]) -> bool:
        """Whether it is as close to the float network as asked for; false once no more networks may be tried."""
        if tuple(sorted(floats)) not in self.points and self.spent:
            return False
        return self.point(floats).dissimilarity <= self.options.max_label_diff

    def confirmed(self, front: Sequence[Point], rows: np.ndarray) -> list[Point]:
        """The front with the difference on other rows, for the chosen point and the marked ones."""
        exact = self.mixture.answers(self.mixture.graph, rows)
        found = []
        for p in front:
            if p.chosen or p.rank:
                graph, _ = self.mixture.made([self.ranking[i] for i in p.floats])
                labels, error = difference(exact, self.mixture.answers(graph, rows))
                p = replace(p, held_out_label_diff=labels, held_out_relative_l2=error)
            found.append(p)
        return found

    def _tried(self, key: tuple[int, ...]) -> Point:
        name = ",".join(map(str, key))
        if name not in self._known:
            self._known[name] = self._measured(key)
            if self._saved is not None and self._saved.due:
                self._saved.write({"points": self._known})
        labels, error, size, latency = self._known[name]
        count = len(self.points) + 1
        self.tell(
            0.3 + 0.65 * count / self.options.max_networks,
            f"network {count}: {len(key)} of {len(self.ranking)} layers float",
        )
        return Point(key, labels, error, size, latency)

    def _measured(self, key: tuple[int, ...]) -> list[Any]:
        graph, _ = self.mixture.made([self.ranking[i] for i in key])
        proto = ir.to_proto(graph)
        same = key_of(proto.SerializeToString(deterministic=True))
        if same not in self._by_graph:  # leaving a layer float need not change anything
            labels, error = difference(self._exact, self.mixture.answers(graph, self.rows))
            latency = None if self.latency_ms is None else float(self.latency_ms(self._network(graph)))
            self._by_graph[same] = Point(key, labels, error, proto.ByteSize(), latency)
        known = self._by_graph[same]
        return [known.label_diff, known.relative_l2, known.size_bytes, known.latency_ms]

    def _network(self, graph: ir.Model) -> Model:
        return replace(self.model, ir=graph, torch_module=None)


def _searched(trials: _Trials, options: Options) -> Point | None:
    """Try networks until one is right or none may be tried; the first right one in the order of the ranking."""
    every = len(trials.ranking)
    most = min(options.max_float_layers or every, every)
    trials.point(range(every))  # the ends are always on record
    if trials.right([]):
        return trials.point([])
    if options.search == "sweep":
        for count in range(1, most + 1):
            if trials.right(range(count)):
                return trials.point(range(count))
        return None
    low, high = 0, 1
    while high < most and not trials.right(range(high)):
        low, high = high, min(2 * high, most)
    if not trials.right(range(high)):
        return None
    while high - low > 1:
        middle = (low + high) // 2
        low, high = (low, middle) if trials.right(range(middle)) else (middle, high)
    found = trials.point(range(high))
    without_spare(list(range(high)), trials.right)
    return found


def _words_on(
    best: Point, ranking: Sequence[Layer], trials: _Trials, options: Options, data: Dataset | None
) -> list[str]:
    """What a user must know of the choice, in words."""
    names = [ranking[i].name for i in best.floats]
    few = ", ".join(names[:8]) + (f" and {len(names) - 8} more" if len(names) > 8 else "")
    notes = [f"{len(names)} of {len(ranking)} layers stay float" + (f": {few}" if few else "")]

    def words(labels: float | None, error: float | None) -> str:
        ratio = decibels(error)
        told = "the same answers" if ratio is None else f"SQNR {ratio:.1f} dB"
        return told if labels is None else f"{100 * labels:.2f} % of the labels differ, {told}"

    notes.append(
        f"on the {len(trials.rows)} rows it was chosen by: {words(best.label_diff, best.relative_l2)}"
    )
    notes.append(
        f"on other rows, which had no say: {words(best.held_out_label_diff, best.held_out_relative_l2)}"
    )
    other = best.held_out_relative_l2 if best.held_out_label_diff is None else best.held_out_label_diff
    if options.choose != "knee" and best.dissimilarity > options.max_label_diff:
        notes.append("no network within the limits is right; this is the most faithful one")
    elif options.choose != "knee" and other is not None and other > options.max_label_diff:
        notes.append("the other rows do not confirm that it is right: choose by more images")
    if trials.spent:
        notes.append(f"the search ended at {options.max_networks} networks (max_networks)")
    notes.append(f"{len(trials.points)} networks tried on rows of {data.name if data else ''}")
    return notes
