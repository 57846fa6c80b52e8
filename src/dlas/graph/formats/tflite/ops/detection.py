"""Reading of the custom operator that closes detectors: decode boxes, suppress the overlapping, keep the best.

Source: the SSD box coding (Liu et al. 2016), as TensorFlow's object detection API exports it.
"""

from __future__ import annotations

import numpy as np

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.flexbuffer import read_map
from dlas.graph.formats.tflite.ops.indexing import filled_up, suppressed
from dlas.graph.formats.tflite.reader import Reader
from dlas.graph.formats.tflite.rules import Rule
from dlas.graph.formats.tflite.tensors import Operation


class _Settings:
    """The operator's options, checked."""

    def __init__(self, stored: bytes) -> None:
        found = read_map(stored)

        def number(name: str, default: float | None = None) -> float:
            value = found.get(name, default)
            if isinstance(value, str) or value is None or not np.isfinite(value):
                raise ValueError(f"option {name} is {value!r}")
            return float(value)

        self.most = int(number("max_detections"))
        self.classes_each = int(number("max_classes_per_detection"))
        self.per_class = int(number("detections_per_class", 100))
        self.regular = bool(found.get("use_regular_nms", False))
        self.least, self.overlap = number("nms_score_threshold"), number("nms_iou_threshold")
        self.classes = int(number("num_classes"))
        self.scales = np.array([number(f"{side}_scale") for side in "yxhw"], np.float32)
        if min(self.most, self.classes_each, self.per_class, self.classes) < 1 or not self.scales.all():
            raise ValueError(f"options {found}")


def _decoded(r: Reader, boxes: int, anchors: int, scales: np.ndarray) -> str:
    """Corners (1, boxes, 4): top, left, bottom, right."""
    prior = r.tensor(anchors)
    if prior.data is None or prior.shape != (r.shape(boxes)[1], 4):
        raise UnsupportedError(
            "TFLite_Detection_PostProcess with computed or ill-fitting anchors cannot be read"
        )
    known = (
        prior.data.astype(np.float32)
        if prior.quant is None
        else prior.quant.real(prior.data).astype(np.float32)
    )
    where, size = known[:, :2], known[:, 2:]
    name = r.real(boxes, (0, 1, 2))
    center, extent = (
        r.emit("Slice", [name, r.int64([first]), r.int64([first + 2]), r.int64([2])]) for first in (0, 2)
    )
    center = r.emit("Mul", [r.emit("Div", [center, r.initializer(scales[:2])]), r.initializer(size)])
    center = r.emit("Add", [center, r.initializer(where)])
    extent = r.emit("Exp", [r.emit("Div", [extent, r.initializer(scales[2:])])])
    half = r.emit("Mul", [r.emit("Mul", [extent, r.initializer(size)]), r.number(0.5)])
    corners = [r.emit(kind, [center, half]) for kind in ("Sub", "Add")]
    return r.emit("Concat", corners, axis=2)


def _read(r: Reader, op: Operation) -> None:
    settings = _Settings(op.custom)
    boxes, scores, anchors = op.inputs[:3]
    shape = r.shape(scores)
    if len(r.shape(boxes)) != 3 or len(shape) != 3 or shape[0] != 1 or shape[2] < settings.classes:
        raise ValueError(f"boxes {list(r.shape(boxes))}, scores {list(shape)} of {settings.classes} classes")
    if not settings.regular and settings.classes_each > 1:
        raise UnsupportedError(
            "TFLite_Detection_PostProcess with several classes per detection cannot be read (LiteRT's fast kernel "
            "leaves gaps between them)"
        )
    r.batch_free = False
    r.bounded(settings.most)
    corners = _decoded(r, boxes, anchors, settings.scales)
    background = shape[2] - settings.classes  # the first class, where there is one, is "nothing"
    found = r.real(scores, (0, 1, 2))
    if background:
        found = r.emit("Slice", [found, r.int64([background]), r.int64([shape[2]]), r.int64([2])])
    thresholds = [r.initializer(np.array([v], np.float32)) for v in (settings.overlap, settings.least)]
    choose = _regular if settings.regular else _fast
    box, kind, score, inside = choose(r, settings, corners, found, thresholds)
    count = r.emit("ReduceSum", [r.cast(inside, "float32"), r.int64([0])], keepdims=1)
    flat = r.emit("Squeeze", [corners, r.int64([0])])
    picked = r.emit("Gather", [flat, box], axis=0)
    picked = r.emit("Where", [r.emit("Unsqueeze", [inside, r.int64([1])]), picked, r.number(0.0)])
    kind = r.emit("Where", [inside, r.cast(kind, "float32"), r.number(0.0)])
    score = r.emit("Where", [inside, score, r.number(0.0)])
    named = [*(r.emit("Unsqueeze", [name, r.int64([0])]) for name in (picked, kind, score)), count]
    for out, name in zip(op.outputs, named, strict=False):
        sizes = {0: (1, settings.most, 4), 1: (1, settings.most), 2: (1, settings.most), 3: (1,)}
        r.leave_open(out, sizes[op.outputs.index(out)])
        r.give_raw(out, name, tuple(range(len(r.shape(out)))))


def _fast(
    r: Reader, s: _Settings, corners: str, scores: str, thresholds: list[str]
) -> tuple[str, str, str, str]:
    """Each box with its best class only; then one suppression over all of them."""
    best = r.emit("ReduceMax", [scores, r.int64([2])], keepdims=0)
    kinds = r.emit("Squeeze", [r.emit("ArgMax", [scores], axis=2, keepdims=0), r.int64([0])])
    chosen = suppressed(r, corners, r.emit("Unsqueeze", [best, r.int64([1])]), s.most, *thresholds)
    picked = r.emit("Gather", [chosen, r.number(2, "int64")], axis=1)
    box, inside = filled_up(r, picked, r.emit("Shape", [picked]), s.most)
    score = r.emit("Gather", [r.emit("Squeeze", [best, r.int64([0])]), box], axis=0)
    return box, r.emit("Gather", [kinds, box], axis=0), score, inside


def _regular(
    r: Reader, s: _Settings, corners: str, scores: str, thresholds: list[str]
) -> tuple[str, str, str, str]:
    """One suppression per class, then the best of all classes."""
    turned = r.emit("Transpose", [scores], perm=[0, 2, 1])
    chosen = suppressed(r, corners, turned, s.per_class, *thresholds)
    values = r.emit("GatherND", [turned, chosen])
    low = r.initializer(np.full(s.most, -np.inf, np.float32), "low")
    values = r.emit("Concat", [values, low], axis=0)
    best = r.emit("TopK", [values, r.int64([s.most])], 2, axis=0)
    found = r.emit("Less", [f"{best}:1", r.emit("Shape", [chosen], start=0, end=1)])
    rows = r.emit("Concat", [chosen, r.initializer(np.zeros((s.most, 3), np.int64), "none")], axis=0)
    rows = r.emit("Gather", [rows, f"{best}:1"], axis=0)
    kind, box = (r.emit("Gather", [rows, r.number(n, "int64")], axis=1) for n in (1, 2))
    return box, kind, best, found


RULES = [Rule(("CUSTOM 'TFLite_Detection_PostProcess'",), (), _read)]
