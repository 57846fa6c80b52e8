from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import DataError
from dlas.data.dataset import Dataset
from dlas.data.guess import background_class, guess_preprocessing
from dlas.data.preprocess import prepare

PIXELS = np.random.default_rng(0).integers(0, 256, (20, 32, 32, 3), np.uint8)
LABELLED = Dataset("a", PIXELS, np.arange(20) % 10, tuple("0123456789"))


def likes(low, high):
    """A judge that is right when the prepared values span ``low..high``."""

    def judge(candidate):
        x = prepare(LABELLED, candidate)
        return 1.0 if abs(x.min() - low) + abs(x.max() - high) < 0.05 * (high - low) else 0.2

    return judge


@pytest.mark.parametrize(
    ("low", "high", "name"),
    [(0, 1, "0..1"), (0, 255, "0..255"), (-1, 1, "-1..1"), (-2.12, 2.64, "ImageNet"), (-123, 151, "Caffe")],
)
def test_the_best_candidate_is_chosen_and_named(low, high, name):
    found, note = guess_preprocessing((1, 3, 32, 32), "float32", LABELLED, likes(low, high))
    assert likes(low, high)(found) == 1.0
    assert name in note.split("next")[0]
    assert "100.0%" in note
    assert "next" in note


@pytest.mark.parametrize(
    ("shape", "layout", "size", "resize", "colour"),
    [
        (("N", 3, 32, 32), "NCHW", (32, 32), 0, "RGB"),
        ((1, 32, 32, 3), "NHWC", (32, 32), 0, "RGB"),
        ((1, 32, 32, 1), "NHWC", (32, 32), 0, "L"),
        ((1, 3, 224, 224), "NCHW", (224, 224), 256, "RGB"),
        ((1, 128, 128, 3), "NHWC", (128, 128), 146, "RGB"),
        ((1, 3, 240, 320), "NCHW", (240, 320), 0, "RGB"),
        ((1, 3, 3, 1), "NHWC", (3, 3), 3, "L"),
        ((1, 3, "h", "w"), "NCHW", (32, 32), 0, "RGB"),
    ],
)
def test_geometry_is_read_off_the_shape(shape, layout, size, resize, colour):
    found, _ = guess_preprocessing(shape, "float32", LABELLED, lambda _: 0.5)
    assert (found.layout, (found.height, found.width), found.resize, found.colour) == (
        layout,
        size,
        resize,
        colour,
    )


@pytest.mark.parametrize(
    ("glances", "judged"),
    [
        ({"0..1": 0.9, "0..255": 0.1}, set()),  # one is clearly ahead
        ({"0..1": 0.9, "0..255": 0.8, "-1..1": 0.1}, {"0..1", "0..255"}),
        ({"0..1": 0.0, "0..255": 0.0, "-1..1": 0.0}, {"0..1", "0..255", "-1..1"}),
    ],
)
def test_only_what_a_glance_does_not_rule_out_is_judged(glances, judged):
    names = {1 / 255: "0..1", 1.0: "0..255", 1 / 127.5: "-1..1"}
    asked = set()

    def glance(candidate):
        return glances.get(names[candidate.scale], 0.0)

    def judge(candidate):
        asked.add(names[candidate.scale])
        return {"0..255": 0.85}.get(names[candidate.scale], 0.8)

    grey = Dataset("a", PIXELS[..., :1], np.arange(20) % 10)
    found, note = guess_preprocessing((1, 1, 32, 32), "float32", grey, judge, glance)
    assert asked == judged
    assert names[found.scale] == ("0..255" if judged else "0..1")
    assert ("85.0%" if judged else "90.0%") in note


def test_unlabelled_data_are_an_assumption():
    found, note = guess_preprocessing((1, 3, 32, 32), "float32", Dataset("a", PIXELS), lambda _: 1 / 0)
    assert found.scale == 1 / 255
    assert note.startswith("assumed")


@pytest.mark.parametrize(("dtype", "first"), [("uint8", 0), ("int8", -128)])
def test_integer_inputs_span_the_pixels(dtype, first):
    found, note = guess_preprocessing((1, 32, 32, 3), dtype, LABELLED, lambda _: 1 / 0)
    np.testing.assert_array_equal(prepare(LABELLED, found), (PIXELS.astype(int) + first).astype(dtype))
    assert "0..255" in note


def test_chance_is_called_chance():
    assert "better than chance" in guess_preprocessing((1, 3, 32, 32), "float32", LABELLED, lambda _: 0.12)[1]
    assert "chance" not in guess_preprocessing((1, 3, 32, 32), "float32", LABELLED, lambda _: 0.5)[1]


def test_ready_arrays_pass_as_they_are():
    data = Dataset("a", np.ones((4, 49, 10, 1), np.float32))
    found, note = guess_preprocessing((1, 49, 10, 1), "float32", data, lambda _: 1 / 0)
    np.testing.assert_array_equal(prepare(data, found), data.samples)
    assert "as they are" in note


def test_shapes_that_hold_no_image():
    encoded = Dataset("a", [b"x"])
    with pytest.raises(DataError, match="do not fit an input of shape"):
        guess_preprocessing((1, 640), "float32", encoded, lambda _: 0.0)
    with pytest.raises(DataError, match="neither 1 nor 3 channels"):
        guess_preprocessing((1, 8, 8, 8), "float32", LABELLED, lambda _: 0.0)
    with pytest.raises(DataError, match="cannot be decoded"):
        guess_preprocessing((1, 3, 8, 8), "float32", encoded, lambda _: 0.0)


def test_labels_that_fit_one_class_further_on_are_noticed():
    labels = np.arange(60) % 9
    scores = np.eye(10, dtype=np.float32)[labels + 1]
    assert "label_offset=1" in background_class(scores, labels)
    assert background_class(np.eye(10, dtype=np.float32)[labels], labels) == ""
    assert background_class(scores[:10], labels[:10]) == ""  # too few rows to tell
    assert background_class(scores[:, :9], labels) == ""  # no class to move on to
