"""What samples must go through for a network that does not say."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence

import numpy as np

from dlas.core.errors import DataError
from dlas.core.statistics import wilson
from dlas.data.audio.wav import is_wav, read_wav
from dlas.data.dataset import Dataset
from dlas.data.metrics import top1
from dlas.data.preprocess import image_size, prepare
from dlas.data.splits import sample
from dlas.graph.model import Model
from dlas.graph.preprocessing import IMAGENET_MEAN, IMAGENET_STD, Preprocessing
from dlas.graph.reference import predict

Judge = Callable[[Preprocessing], float]

JUDGED_ROWS = 200
GLANCED_ROWS = (
    50  # tell most candidates apart: preprocessing of another kind costs far more than chance would
)
_CROP_SHARE = 0.875  # of the resized image that the usual ImageNet centre crop keeps
_CHANCE_FACTOR = 2.0
_MOST_CEPSTRA = 20  # of a frame; log-mel spectra have 32 bands and more
_FEWEST_ROWS = 20  # fewer say nothing about accuracy


def guess_preprocessing(
    shape: Sequence[int | str], dtype: str, dataset: Dataset, judge: Judge, glance: Judge | None = None
) -> tuple[Preprocessing, str]:
    """The most plausible preprocessing and a sentence saying how it was found.

    Args:
        shape: Shape of the network's input; only the batch may be a name.
        dtype: dtype of the network's input.
        dataset: What the network will see.
        judge: Accuracy under a candidate, on a few balanced rows; asked only when the rows are labelled.
        glance: The same on ``GLANCED_ROWS`` of them: only candidates that it does not rule out are judged.

    Raises:
        DataError: The samples cannot be brought into this shape.
    """
    if isinstance(dataset.samples, np.ndarray) and (dataset.samples.dtype != np.uint8 or len(shape) != 4):
        return Preprocessing(layout="N*", dtype=dtype), "samples are passed as they are"
    if is_wav(dataset.samples[0]):
        return _of_recordings(shape, dtype, dataset)
    base = _geometry(shape, dtype, dataset)
    if np.dtype(dtype).kind in "iu":
        zero = -128 if dtype == "int8" else 0
        fixed = dataclasses.replace(base, quant_scale=1.0, quant_zero_point=zero)
        return fixed, f"assumed that the {dtype} input spans pixel values 0..255"
    candidates = _candidates(base)
    if dataset.labels is None:
        return candidates["0..1"], f"assumed {base.colour} pixels scaled to 0..1 (no labels to judge by)"
    scores = _judged(candidates, judge, glance)
    best, second = sorted(scores, key=lambda name: -scores[name])[:2]
    note = (
        f"preprocessing chosen by accuracy: {best} ({scores[best]:.1%}), next {second} ({scores[second]:.1%}); "
        f"{_geometry_words(base)}"
    )
    classes = len(dataset.classes) or int(dataset.labels.max()) + 1
    if scores[best] < _CHANCE_FACTOR / classes:
        note += "; none does much better than chance, so state the preprocessing yourself"
    return candidates[best], note


def _judged(candidates: Mapping[str, Preprocessing], judge: Judge, glance: Judge | None) -> dict[str, float]:
    """Accuracy by name; at a glance where that leaves no more than one whose interval reaches the best one's."""
    if glance is None:
        return {name: judge(candidate) for name, candidate in candidates.items()}
    seen = {name: glance(candidate) for name, candidate in candidates.items()}
    ends = {name: wilson(round(share * GLANCED_ROWS), GLANCED_ROWS) for name, share in seen.items()}
    least = max(low for low, _ in ends.values())
    left = [name for name, (_, high) in ends.items() if high >= least]
    if len(left) < 2:
        return seen
    known = {name: judge(candidates[name]) for name in left}
    # Those that were ruled out stay behind, however well they did on their few rows.
    return {name: known.get(name, min(share, *known.values())) for name, share in seen.items()}


def _candidates(base: Preprocessing) -> dict[str, Preprocessing]:
    change = dataclasses.replace
    found = {
        "0..1": change(base, scale=1 / 255),
        "0..255": base,
        "-1..1": change(base, scale=1 / 127.5, mean=(1.0,)),
    }
    if base.colour == "RGB":
        found["ImageNet mean and deviation"] = change(
            base, scale=1 / 255, mean=IMAGENET_MEAN, std=IMAGENET_STD
        )
        found["BGR minus Caffe means"] = change(base, colour="BGR", mean=(104.0, 117.0, 123.0))
    return found


def _of_recordings(shape: Sequence[int | str], dtype: str, dataset: Dataset) -> tuple[Preprocessing, str]:
    """Features that have the shape of the input: few in a frame are MFCC, many log-mel bands."""
    sides = [side for side in shape[1:] if side != 1]
    if len(shape) != 4 or len(sides) != 2 or any(isinstance(s, str) for s in sides) or dtype == "int8":
        raise DataError(
            f"recordings of {dataset.name} and a {dtype} input of shape {list(shape)} say nothing about the features",
            "state them: features=mfcc (or log-mel), sample_rate, height (frames), width, layout",
        )
    height, width = int(sides[0]), int(sides[1])
    kind = "mfcc" if width <= _MOST_CEPSTRA else "log-mel"
    rate = read_wav(bytes(dataset.samples[0]), f"{dataset.name}: row {int(dataset.rows[0])}").rate
    layout = "NCHW" if shape[1] == 1 else "NHWC"
    found = Preprocessing(height, width, layout=layout, dtype=dtype, features=kind, sample_rate=rate)
    return found, f"assumed {height} frames of {width} {kind} features of recordings at {rate} Hz"


def _geometry(shape: Sequence[int | str], dtype: str, dataset: Dataset) -> Preprocessing:
    if len(shape) != 4:
        raise DataError(
            f"images of {dataset.name} do not fit an input of shape {list(shape)}",
            "expected (N, C, H, W) or (N, H, W, C); give arrays in the network's own shape",
        )
    first = shape[1] in (1, 3)
    last = shape[3] in (1, 3)
    if not first and not last:
        raise DataError(
            f"input shape {list(shape)} has neither 1 nor 3 channels at its second or last place",
            "give the preprocessing yourself",
        )
    # With a channel count at both ends (1x3x32x3) the square pair tells; failing that, the exporters' NCHW.
    channels_first = first and not (last and shape[1] == shape[2] != shape[3])
    channels = shape[1] if channels_first else shape[3]
    sides = shape[2:] if channels_first else shape[1:3]
    own_height, own_width = image_size(dataset, 0)
    height = own_height if isinstance(sides[0], str) else int(sides[0])
    width = own_width if isinstance(sides[1], str) else int(sides[1])
    fits = all(image_size(dataset, row) == (height, width) for row in range(min(len(dataset), 8)))
    return Preprocessing(
        height=height,
        width=width,
        resize=0 if fits or height != width else round(height / _CROP_SHARE),
        colour="L" if channels == 1 else "RGB",
        layout="NCHW" if channels_first else "NHWC",
        dtype=dtype,
    )


def _geometry_words(base: Preprocessing) -> str:
    if base.resize:
        return f"short side to {base.resize}, centre crop {base.height}x{base.width}"
    return f"images at {base.height}x{base.width}"


def background_class(scores: np.ndarray, labels: np.ndarray) -> str:
    """A sentence if the labels fit these scores much better one class further on; else an empty string.

    Networks of some libraries keep class 0 for the background, and their accuracy then looks like chance.
    """
    rows = scores.reshape(len(scores), -1)
    if len(rows) < _FEWEST_ROWS or len(rows) != len(labels) or int(labels.max()) + 1 >= rows.shape[1]:
        return ""
    own, shifted = top1(rows, labels), top1(rows, labels, 1)
    if own.high is None or shifted.low is None or shifted.low <= max(own.high, 2 * own.value):
        return ""
    return (
        f"top-1 is {own.value:.1%}, but {shifted.value:.1%} with labels moved on by one: is class 0 the background? "
        "`dlas run --set data.label_offset=1` moves them"
    )


def with_guessed_preprocessing(model: Model, dataset: Dataset) -> tuple[Model, str]:
    """``model`` with the most plausible preprocessing, judged by its own accuracy on up to 200 rows, and a sentence."""
    few = sample(dataset, JUDGED_ROWS) if len(dataset) > JUDGED_ROWS else dataset
    fewer = sample(few, GLANCED_ROWS) if len(few) > 2 * GLANCED_ROWS and few.labels is not None else None

    def judge_on(rows: Dataset) -> Judge:
        def judge(candidate: Preprocessing) -> float:
            scores = predict(model, prepare(rows, candidate))
            return top1(scores.reshape(len(rows), -1), rows.labels).value if rows.labels is not None else 0.0

        return judge

    spec = model.inputs[0]
    glance = judge_on(fewer) if fewer is not None else None
    found, note = guess_preprocessing(spec.shape, spec.dtype, few, judge_on(few), glance)
    return dataclasses.replace(model, preprocessing=found), note
