"""Spoken digits, the networks of MLPerf Tiny, and ternary-stq on them."""

from __future__ import annotations

import numpy as np
import pytest
import torch

import dlas
from dlas import api
from dlas.compress.training import fine_tune
from dlas.data.find import load_dataset
from dlas.data.metrics import top1
from dlas.data.preprocess import prepare
from dlas.data.splits import select
from dlas.graph.reference import predict
from dlas.models.architecture import architecture_for


@pytest.fixture(scope="module")
def spoken(data_folder):
    return load_dataset(data_folder / "spoken-digits.parquet")


def test_spoken_digits_become_features_in_range(spoken):
    """All 2,400 recordings; normalised they lie in 0..1 but for a few in a thousand."""
    assert set(spoken.groups["speaker"]) == {"george", "jackson", "lucas", "nicolas", "theo", "yweweler"}
    inputs = prepare(spoken, architecture_for("ds-cnn:classes=10").preprocessing)
    assert inputs.shape == (2400, 1, 49, 10)
    assert ((inputs >= 0) & (inputs <= 1)).mean() > 0.999


def test_speakers_left_out_are_not_heard_in_training(spoken):
    rest, own = select(spoken, "speaker!=theo+lucas"), select(spoken, "speaker=theo+lucas")
    assert (len(rest), len(own)) == (1600, 800)
    assert not set(rest.rows) & set(own.rows)
    assert not set(rest.samples) & set(own.samples)


def test_standard_split_is_disjoint(data_folder):
    train = load_dataset(data_folder / "spoken-digits.parquet", split="train")
    test = load_dataset(data_folder / "spoken-digits.parquet", split="test")
    assert len(train) + len(test) == 2400
    assert not set(train.samples) & set(test.samples)


def weights_of(model):
    """Convolutions and the last layer of a graph: weight and bias, in order."""
    from dlas.graph.model import Model
    from dlas.graph.passes import fold_constants, simplify

    graph = model.editable()
    fold_constants(graph)
    simplify(graph)
    folded = Model(graph)
    arrays = {**folded.initializers}
    decoded = {}
    for node in graph.graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0].name in arrays:
            codes, scale = (arrays[node.inputs[i].name] for i in (0, 1))
            decoded[node.outputs[0].name] = codes.astype(np.float32) * scale
    found = []
    for node in graph.graph:
        if node.op_type in ("Conv", "Gemm"):
            w, b = (v.name for v in node.inputs[1:3])
            found.append((arrays.get(w, decoded.get(w)), arrays.get(b)))
    return found


def filled(name, pairs):
    """An architecture with these weights; its normalisations only add the biases."""
    module = architecture_for(name).build()
    layers = [
        m for m in module.modules() if isinstance(m, torch.nn.Conv2d | torch.nn.BatchNorm2d | torch.nn.Linear)
    ]
    at = 0
    with torch.no_grad():
        for layer, after in zip(layers, [*layers[1:], None], strict=True):
            if isinstance(layer, torch.nn.BatchNorm2d):
                continue
            weight, bias = pairs[at]
            at += 1
            layer.weight.copy_(torch.from_numpy(np.array(weight)).reshape(layer.weight.shape))
            if layer.bias is not None:
                layer.bias.copy_(torch.from_numpy(np.array(bias)))
            else:
                after.running_var.fill_(1 - after.eps)
                after.bias.copy_(torch.from_numpy(np.array(bias)))
    assert at == len(pairs)
    return module


def test_ds_cnn_computes_what_the_published_file_does(data_folder, spoken):
    """MLPerf Tiny's own weights in our architecture, on 49 x 10 MFCCs as they are: equal probabilities."""
    published = dlas.load(data_folder / "models/mlperf-tiny/kws_dscnn_float.tflite")
    module = filled("ds-cnn:classes=12", weights_of(published))
    steps = {"features": "mfcc", "sample_rate": 8000, "height": 49, "width": 10}
    inputs = prepare(spoken.head(20), dlas.graph.preprocessing.Preprocessing(**steps))
    with torch.no_grad():
        found = module(torch.from_numpy(inputs)).softmax(1).numpy()
    np.testing.assert_allclose(found, predict(published, inputs.transpose(0, 2, 3, 1)), atol=1e-4)


def test_resnet8_computes_what_the_published_file_does(data_folder):
    published = dlas.load(data_folder / "models/mlperf-tiny/ic_resnet8_float.tflite")
    pairs = weights_of(published)
    # The file lists the second layer of a block before its shortcut, as the architecture does.
    module = filled("resnet8", pairs)
    images = prepare(
        load_dataset(data_folder / "cifar10-test.parquet").head(20),
        dlas.graph.preprocessing.Preprocessing(32, 32),
    )
    with torch.no_grad():
        found = module(torch.from_numpy(images)).softmax(1).numpy()
    np.testing.assert_allclose(found, predict(published, images.transpose(0, 2, 3, 1)), atol=1e-4)


@pytest.mark.slow
def test_ds_cnn_learns_digits_and_stays_right_in_two_bits(spoken):
    """Speakers unknown to training; then ternary, at a fraction of the bytes."""
    train, test = select(spoken, "speaker!=theo"), select(spoken, "speaker=theo")
    start = api.untrained("ds-cnn:classes=10")
    model = fine_tune(start, train, epochs=8, lr=0.1, batch_size=64, clip_norm=5.0, augment="none", threads=1)
    small = dlas.compress(model, "ternary-stq", data=train, epochs=8, batch_size=64, threads=1)
    right = [top1(predict(m, prepare(test, m)), test.labels).value for m in (model, small)]
    assert right[0] > 0.6
    assert right[1] > right[0] - 0.1
    packed = int(small.history[-1].notes[0].split()[0])
    assert packed < 0.2 * 4 * sum(a.size for a in model.initializers.values())
