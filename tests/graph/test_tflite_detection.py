"""The custom detection operator and NON_MAX_SUPPRESSION, against LiteRT; and the format of its options."""

from __future__ import annotations

import random

import numpy as np
import pytest
from tflite_maker import File, agree, run_litert, run_onnx, sqnr

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.formats.tflite import from_bytes
from dlas.graph.formats.tflite.flexbuffer import read_map

flexbuffers = pytest.importorskip("flatbuffers.flexbuffers")
OPTIONS = {
    "max_detections": 6, "max_classes_per_detection": 1, "detections_per_class": 5, "use_regular_nms": False,
    "nms_score_threshold": 0.3, "nms_iou_threshold": 0.5, "num_classes": 3, "y_scale": 10.0, "x_scale": 10.0,
    "h_scale": 5.0, "w_scale": 5.0,
}  # fmt: skip
BOXES = 20


def packed(**changes) -> bytes:
    return bytes(flexbuffers.Dumps({**OPTIONS, **changes}))


def detector(
    f: File, classes: int = 4, boxes: int = BOXES, dtype: str = "float32", **changes
) -> list[np.ndarray]:
    grid = f.rng.uniform(0.2, 0.8, (boxes, 4)).astype(np.float32)
    prior = np.concatenate([grid[:, :2], grid[:, 2:] * 0.5], 1)
    small = dtype == "uint8"
    anchors = f.constant((prior * 255).astype(np.uint8), (1 / 255, 0)) if small else f.constant(prior)
    quants = [(0.05, 128), (1 / 256, 0)] if dtype == "uint8" else [None, None]
    inputs = [f.input(s, dtype, q) for s, q in zip([(1, boxes, 4), (1, boxes, classes)], quants, strict=True)]
    most = int(changes.get("max_detections", OPTIONS["max_detections"]))
    outputs = [f.output(s) for s in [(1, most, 4), (1, most), (1, most), (1,)]]
    f.add("CUSTOM", [*inputs, anchors], outputs, custom="TFLite_Detection_PostProcess",
          custom_options=packed(**changes))  # fmt: skip
    codes = f.rng.standard_normal((1, boxes, 4)) * 2
    scores = f.rng.permutation(boxes * classes).reshape(1, boxes, classes) / (boxes * classes)
    if dtype == "uint8":
        return [np.clip(codes / 0.05 + 128, 0, 255).astype(np.uint8), (scores * 255).astype(np.uint8)]
    return [codes.astype(np.float32), scores.astype(np.float32)]


def agree_on_found(file: File, feeds: list[np.ndarray]) -> int:
    """Compares what was found; LiteRT's fast kernel leaves whatever was in memory behind it, dlas zeros."""
    data = file.bytes()
    got = run_onnx(from_bytes(data, "x"), feeds)
    for reference in (True, False):
        wanted = run_litert(data, feeds, reference)
        count = int(wanted[3][0])
        assert got[3] == wanted[3]
        for a, b in zip(wanted[:3], got[:3], strict=True):
            assert a.shape == b.shape
            assert count == 0 or sqnr(a[:, :count], b[:, :count]) >= 120
            assert not b[:, count:].any()
    return count


@pytest.mark.parametrize("seed", range(6))
@pytest.mark.parametrize("regular", [False, True])
def test_detections_as_litert_finds_them(seed: int, regular: bool) -> None:
    file = File(seed)
    file.rng = np.random.default_rng(seed)
    changes = {"use_regular_nms": regular, "nms_iou_threshold": [0.2, 0.5, 0.9][seed % 3]}
    if seed == 3:
        changes |= {"nms_score_threshold": 0.9}  # fewer than there is room for
    if seed == 4:
        changes |= {"num_classes": 4}  # no background
    if seed == 5:
        changes |= {"nms_score_threshold": 2.0}  # nothing
    feeds = detector(file, **changes)
    count = agree_on_found(file, feeds)
    assert count == 0 if seed == 5 else count > 0


@pytest.mark.parametrize("regular", [False, True])
def test_quantised_boxes(regular: bool) -> None:
    file = File(2)
    assert agree_on_found(file, detector(file, dtype="uint8", use_regular_nms=regular)) > 2


@pytest.mark.parametrize("kind", ["V4", "V5"])
@pytest.mark.parametrize("least", [0.0, 0.6])
def test_suppression(kind: str, least: float) -> None:
    file = File(4)
    rng = file.rng
    corner = rng.uniform(0, 1, (30, 2))
    boxes = np.concatenate([corner, corner + rng.uniform(0.1, 0.5, (30, 2))], 1).astype(np.float32)
    inputs = [file.input((30, 4)), file.input((30,)), file.constant(np.int32(8))]
    inputs += [file.constant(np.float32(v)) for v in (0.4, least, *([0.0] if kind == "V5" else []))]
    outputs = [
        file.output((8,), "int32"),
        *([file.output((8,))] if kind == "V5" else []),
        file.output((), "int32"),
    ]
    file.add(f"NON_MAX_SUPPRESSION_{kind}", inputs, outputs, file.options(f"NonMaxSuppression{kind}"))
    agree(file, [boxes, (rng.permutation(30) / 30).astype(np.float32)])


def test_settings_that_cannot_be_said_are_refused() -> None:
    file = File()
    detector(file, max_classes_per_detection=2)
    with pytest.raises(UnsupportedError, match="several classes"):
        from_bytes(file.bytes(), "x")
    file = File()
    detector(file, num_classes=9)
    with pytest.raises(ModelError, match="9 classes"):
        from_bytes(file.bytes(), "x")


@pytest.mark.parametrize("value", [3, -3, 300, -70000, 2**40, 0.5, True, False, "text", ""])
def test_flexbuffer_scalars(value) -> None:
    found = read_map(bytes(flexbuffers.Dumps({"a": value, "other": [1, 2], "z": 7})))
    assert found["a"] == value
    assert type(found["a"]) is type(value)
    assert found["z"] == 7
    assert "other" not in found


def test_damaged_options_raise_only_our_error() -> None:
    file = File()
    detector(file)
    data, options = file.bytes(), packed()
    at = data.find(options)
    assert at > 0
    rng = random.Random(1)
    refused = 0
    for _ in range(300):
        broken = bytearray(options)
        for _ in range(rng.choice([1, 2, 5])):
            broken[rng.randrange(len(broken))] = rng.randrange(256)
        try:
            from_bytes(data[:at] + bytes(broken) + data[at + len(options) :], "x")
        except DlasError:
            refused += 1
    assert refused > 50
    for size in range(0, len(options), 7):
        with pytest.raises(ValueError):  # noqa: PT011
            read_map(options[:size] + b"\0\0")
