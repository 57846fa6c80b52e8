"""Class bias: one offset per class, fitted to labelled rows, so that no class is favoured on a new kind of rows.

A network that sees other rows than it was trained on (JPEG instead of lossless images, another microphone) gives some
classes too often and others too seldom. The offsets that minimise the cross entropy on a few hundred labelled rows are
added to its logits: vector scaling with the bias alone (Guo et al. 2017, "On Calibration of Modern Neural Networks",
section 4.2), which for changed class frequencies is the logit adjustment of Menon et al. 2021 ("Long-tail learning via
logit adjustment"). Convex; Newton's method, milliseconds. Changes no weight and costs nothing at run time where the
last layer has a bias.

Not where the calibration rows have other class frequencies than the rows of later: their balance is fitted too.
"""

from __future__ import annotations

from collections.abc import Mapping
from dataclasses import dataclass, replace

import numpy as np
import onnx_ir as ir

from dlas.compress.calibration import calibration_batches, open_session, parts
from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.compress.quantize._int8.class_scores import ClassScores, class_scores
from dlas.core.errors import DataError, UnsupportedError
from dlas.core.figure import Figure
from dlas.core.options import option, options_dict
from dlas.core.statistics import mcnemar
from dlas.data.dataset import Dataset
from dlas.data.guess import background_class
from dlas.data.metrics import top1
from dlas.graph.model import Model, Step, step_versions
from dlas.graph.reference import explained

FOLDS = 5
_BATCH = 64
_SHOWN = 12  # classes in a note
_FEW = 20  # rows per class below which a note asks for more
_WORTH = 0.05  # p-value below which a difference is one


@dataclass(frozen=True)
class Options:
    """Options of ``class-bias``."""

    l2: float = option(
        0.01,
        "weight of the penalty: half of it times the sum of the squared offsets is added to the mean cross entropy",
        low=1e-6,
    )
    rows: int = option(1000, "labelled rows to fit to", low=2)


@methods.register("class-bias")
class ClassBias(Method):
    """An offset per class on the logits, fitted to labelled rows."""

    name = "class-bias"
    summary = (
        "One offset per class, fitted to labelled rows: mends a shift between classes on a new kind of rows"
    )
    Options = Options
    needs_data = True
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """The layer that changes; with rows also the accuracy before, and after as rows that were held out have it."""
        place = class_scores(model)
        if data is None:
            change = Change(place.name, place.words, "", f"{place.classes} offsets")
            return Plan(self.spelled(), (change,), {}, ("the offsets are fitted to labelled rows",))
        fit = _fitted(place, model, data, self.options)
        span = f"{place.classes} offsets, {fit.offsets.min():.3g} .. {fit.offsets.max():.3g}"
        expected = {
            "top1_before": replace(top1(fit.logits, fit.labels), note="the calibration rows"),
            "top1": replace(fit.held_out, note="the same rows, each held out of the fit"),
        }
        return Plan(self.spelled(), (Change(place.name, place.words, "", span),), expected, fit.notes(data))

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network with the offsets added; see :meth:`Method.apply`.

        Raises:
            DataError: No rows, no labels, labels of one class only or beyond the outputs, or scores that are not
                finite.
            UnsupportedError: The outputs are no scores of classes that exclude each other.
        """
        place = class_scores(model)
        fit = _fitted(place, model, data, self.options)
        if progress is not None:
            progress(0.6, "offsets fitted")
        words, name = place.words, place.name
        graph = place.add(fit.offsets)
        (after,) = _answers(graph, [model.outputs[0].name], model, fit.rows)
        if progress is not None:
            progress(1.0, "offsets added")
        before, now = (top1(scores, fit.labels).value for scores in (fit.answers, after))
        notes = (
            f"{name}: {words}",
            *fit.notes(data),
            f"the network's own answers on the {len(fit.labels)} rows it was fitted to, which flatters it: accuracy "
            f"{before:.2%} before, {now:.2%} after",
        )
        extra = {"offsets": [float(v) for v in fit.offsets]}
        step = Step(
            self.name,
            {**options_dict(self.options), **extra},
            step_versions("numpy", "onnx-ir", "onnxruntime"),
            notes,
        )
        return model.with_step(graph, step)


@dataclass(frozen=True, eq=False)
class _Fit:
    """Offsets with what they were fitted to.

    Attributes:
        offsets: ``(classes,) float64``.
        logits: ``(N, classes) float64``, before.
        answers: ``(N, classes)``, the outputs before.
        labels: ``(N,) int64``.
        held: Whether each row is right under offsets that were fitted without it, ``(N,) bool``.
        rows: The rows.
    """

    offsets: np.ndarray
    logits: np.ndarray
    answers: np.ndarray
    labels: np.ndarray
    held: np.ndarray
    rows: Dataset

    @property
    def held_out(self) -> Figure:
        return top1(np.stack([~self.held, self.held], 1).astype(np.int8), np.ones(len(self.held), np.int64))

    def notes(self, data: Dataset | None) -> tuple[str, ...]:
        """What a user must know of the fit, in words."""
        names = data.classes if data is not None and len(data.classes) == len(self.offsets) else ()
        counts = np.bincount(self.labels, minlength=len(self.offsets))
        order = np.argsort(-np.abs(self.offsets), kind="stable")
        shown = [f"{names[i] if names else f'class {i}'} {self.offsets[i]:+.3f}" for i in order[:_SHOWN]]
        more = f" and {len(order) - _SHOWN} more" if len(order) > _SHOWN else ""
        found = [f"offsets: {', '.join(shown)}{more}", self._judged()]
        seen = counts[counts > 0]
        found.append(
            f"the class balance of these rows is fitted too: {seen.min()} to {seen.max()} rows per class"
            + (
                f", {len(counts) - len(seen)} classes without any get no offset"
                if len(seen) < len(counts)
                else ""
            )
        )
        if seen.mean() < _FEW:
            found.append(
                f"{len(self.labels)} rows are few for {len(seen)} classes: give {_FEW} of each or more"
            )
        before = top1(self.logits, self.labels).low
        if before is not None and before <= 1 / len(seen):
            found.append("the network does no better than chance on these rows: are these its labels?")
        return tuple(found)

    def _judged(self) -> str:
        """The honest figure."""
        right = self.logits.argmax(1) == self.labels
        gained, lost = int((self.held & ~right).sum()), int((right & ~self.held).sum())
        chance = mcnemar(lost, gained)
        text = (
            f"on rows held out of the fit (each fifth of the {len(right)} in turn): accuracy {right.mean():.2%} "
            f"before, {self.held.mean():.2%} after; {gained} rows won, {lost} lost (p = {chance:.2g}, McNemar)"
        )
        if gained <= lost:
            return f"{text}: the offsets do not help here, keep the network as it was"
        return text if chance < _WORTH else f"{text}: that may be chance"


def fit_offsets(logits: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Offsets that minimise mean cross entropy + l2 / 2 * sum of their squares, ``(classes,) float64``.

    The sum of the offsets is 0. Classes without a row are left out of the softmax and keep 0: nothing is known of
    them, and the loss would push them down without end.

    Args:
        logits: ``(N, classes)`` float.
        labels: ``(N,)`` class indices.
        l2: Weight of the penalty, above 0.
    """
    present = np.unique(labels)
    z = logits[:, present].astype(np.float64)
    target = (labels[:, None] == present).mean(0)
    own = np.searchsorted(present, labels)
    w = np.zeros(len(present))
    loss = _loss(z, own, w, l2)
    for _ in range(100):
        p = _softmax(z + w)
        gradient = p.mean(0) - target + l2 * w
        if np.abs(gradient).max() < 1e-10:
            break
        hessian = np.diag(p.mean(0) + l2) - p.T @ p / len(p)
        step = np.linalg.solve(hessian, gradient)
        size = 1.0
        while (tried := _loss(z, own, w - size * step, l2)) > loss and size > 1e-6:
            size /= 2
        if tried >= loss:  # as low as rounding allows
            break
        w, loss = w - size * step, tried
    offsets = np.zeros(logits.shape[1])
    offsets[present] = np.round(w, 6)
    return offsets


def cross_entropy(logits: np.ndarray, labels: np.ndarray) -> float:
    """Mean of ``-log softmax(logits)[label]`` over the rows."""
    z = logits - logits.max(1, keepdims=True)
    return float((np.log(np.exp(z).sum(1)) - z[np.arange(len(z)), labels]).mean())


def _loss(z: np.ndarray, labels: np.ndarray, w: np.ndarray, l2: float) -> float:
    return cross_entropy(z + w, labels) + l2 / 2 * float(w @ w)


def _softmax(z: np.ndarray) -> np.ndarray:
    p = np.exp(z - z.max(1, keepdims=True))
    return p / p.sum(1, keepdims=True)


def _folds(labels: np.ndarray) -> np.ndarray:
    """The fold of each row, ``(N,)``: every class is spread over all of them."""
    found = np.empty(len(labels), np.int64)
    for label in np.unique(labels):
        mine = np.flatnonzero(labels == label)
        found[mine] = (np.arange(len(mine)) + label) % FOLDS
    return found


def _held_out(logits: np.ndarray, labels: np.ndarray, l2: float) -> np.ndarray:
    """Whether each row is right under the offsets that the rows of the other folds give."""
    fold, right = _folds(labels), np.zeros(len(labels), bool)
    for held in (fold == i for i in range(FOLDS)):
        if held.all() or not held.any():
            offsets = np.zeros(logits.shape[1])
        else:
            offsets = fit_offsets(logits[~held], labels[~held], l2)
        right[held] = (logits[held] + offsets).argmax(1) == labels[held]
    return right


def _fitted(place: ClassScores, model: Model, data: Dataset | None, options: Options) -> _Fit:
    """The offsets for a network and its labelled rows."""
    rows, labels = _labelled(model, data, options.rows, place.classes)
    names = list(dict.fromkeys([str(place.logits.name), model.outputs[0].name]))
    found = _answers(place.graph, names, model, rows)
    logits, answers = found[0].astype(np.float64), found[-1]
    if not np.isfinite(logits).all():
        raise DataError(
            f"{model.name} answers with scores that are not finite on {rows.name}",
            "check the rows and the network's preprocessing",
        )
    if place.softmax is None and (logits >= 0).all() and np.allclose(logits.sum(1), 1, atol=1e-2):
        raise UnsupportedError(
            f"{model.name} answers with probabilities, and no Softmax is there to make them",
            "give the network with its Softmax as one operator, or without it",
        )
    if hint := background_class(answers, labels):
        raise DataError(f"the labels of {rows.name} do not fit {model.name}: {hint}")
    offsets = fit_offsets(logits, labels, options.l2)
    return _Fit(offsets, logits, answers, labels, _held_out(logits, labels, options.l2), rows)


def _labelled(model: Model, data: Dataset | None, rows: int, classes: int) -> tuple[Dataset, np.ndarray]:
    """The rows to fit to, at even distances over the data set, and their labels."""
    _, count = calibration_batches(model, data, rows)
    assert data is not None
    if data.labels is None:
        raise DataError(
            f"{data.name} has no labels, and class-bias fits one offset per class to them",
            "give labelled rows of the kind the network will see",
        )
    chosen = data.take(np.arange(count) * len(data) // count)
    labels = np.asarray(chosen.labels, np.int64)
    if labels.ndim != 1 or labels.min() < 0 or labels.max() >= classes:
        raise DataError(
            f"labels of {data.name} go from {labels.min()} to {labels.max()}, but {model.name} has {classes} scores "
            "per row",
            "is this the data set the network was trained for? `dlas run --set data.label_offset=1` moves labels",
        )
    if len(np.unique(labels)) < 2:
        raise DataError(
            f"all {count} labels of {data.name} are {labels[0]}; class-bias needs at least two classes",
            "give rows of every class, in the frequencies of later use",
        )
    return chosen, labels


def _answers(graph: ir.Model, names: list[str], model: Model, rows: Dataset) -> list[np.ndarray]:
    """The tensors ``names`` for every row, ``(N, classes)`` each, in float arithmetic on one thread."""
    spec = model.inputs[0]
    session = open_session(graph, names)
    fixed = spec.shape[0] if spec.shape and isinstance(spec.shape[0], int) else 0
    batches, _ = calibration_batches(model, rows, len(rows))
    found: list[list[np.ndarray]] = [[] for _ in names]
    for array in batches():
        for start in range(0, len(array), fixed or _BATCH):
            count = min(fixed or _BATCH, len(array) - start)
            (part,) = parts(array[start : start + count], fixed or _BATCH, fixed)
            feed: Mapping[str, np.ndarray] = {spec.name: part}
            try:
                results = session.run(names, dict(feed))
            except Exception as error:
                raise explained(error, model.name) from error
            for known, result in zip(found, results, strict=True):
                known.append(np.asarray(result).reshape(len(part), -1)[:count])
    return [np.concatenate(known) for known in found]
