"""Recordings under attack: their features are what is changed, within what the network's normalisation calls 0..1."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
import torch

from dlas.core.errors import DataError
from dlas.data.dataset import Dataset
from dlas.data.preprocess import prepare
from dlas.graph.torch_export import from_module
from dlas.models.architecture import architecture_for
from dlas.verify.attack import attack_networks
from dlas.verify.attack.pixels import pixels_of
from dlas.verify.running import Subject


def voice(row):
    rng = np.random.default_rng(row)
    at = np.arange(3200) / 8000
    sound = 8000 * np.sin(2 * np.pi * (300 + 900 * (row % 2)) * at) + rng.normal(0, 300, 3200)
    body = sound.astype("<i2").tobytes()
    head = b"fmt " + np.array([16], "<u4").tobytes() + np.array([1, 1], "<u2").tobytes()
    head += np.array([8000, 16000], "<u4").tobytes() + np.array([2, 16], "<u2").tobytes()
    chunks = head + b"data" + np.array([len(body)], "<u4").tobytes() + body
    return b"RIFF" + np.array([4 + len(chunks)], "<u4").tobytes() + b"WAVE" + chunks


VOICES = Dataset("voices", [voice(i) for i in range(12)], np.arange(12) % 2, ("low", "high"))


@pytest.fixture(scope="module")
def spotter():
    member = architecture_for("ds-cnn:classes=2,width=4,blocks=1")
    torch.manual_seed(0)
    return from_module(
        member.build(), np.zeros((2, *member.input_shape), np.float32), "spotter", member.preprocessing
    )


def test_the_network_is_fed_its_own_features(spotter):
    pixels, samples = pixels_of(spotter, VOICES)
    assert samples.shape == (12, 1, 49, 10)
    assert 0 <= samples.min() <= samples.max() <= 1
    np.testing.assert_allclose(pixels.fed(samples), np.clip(prepare(VOICES, spotter), 0, 1), atol=1e-6)
    fed = pixels.fed_tensor(torch.from_numpy(samples)).numpy()
    np.testing.assert_allclose(fed, pixels.fed(samples), atol=1e-6)


def test_recordings_are_attacked_like_images(spotter, tmp_path):
    (tmp_path / "a.onnx").write_bytes(spotter.to_bytes())
    subject = Subject.open(tmp_path / "a.onnx")
    report = attack_networks([subject], VOICES, attacks="fgsm,square:queries=20", eps="8/255", rows=12)
    (result,) = report.models
    assert result.clean is not None
    assert result.worst is not None
    assert result.worst.value <= result.clean.value
    assert all(r.robust is not None for r in result.results)


def test_features_without_bounds_are_refused(spotter):
    raw = replace(spotter, preprocessing=replace(spotter.preprocessing, mean=(0.0,), std=(1.0,)))
    with pytest.raises(DataError, match=r"of the features of voices leave 0\.\.1"):
        pixels_of(raw, VOICES)
