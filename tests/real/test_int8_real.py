"""int8 on real networks and real rows: compared with the same network in float32, on the same rows."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import numpy as np
import pytest

from dlas.compress.method import methods
from dlas.compress.unsigned import unsigned_activations
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.reference import predict


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


@pytest.fixture(scope="module")
def train(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-train.parquet").head(4096)


@pytest.fixture(scope="module")
def test_rows(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-test.parquet")


def scores(model: Model, x: np.ndarray) -> np.ndarray:
    """What onnxruntime answers with integer kernels (uint8 activations, as its x86 kernels want them)."""
    graph = model.editable()
    unsigned_activations(graph)
    return predict(Model(graph, model.name), x)


@pytest.mark.slow
def test_resnet20_loses_at_most_a_point_on_all_test_rows(
    resnet20: Model, train: Dataset, test_rows: Dataset
) -> None:
    x = prepare(test_rows, resnet20)
    before = predict(resnet20, x).argmax(1)
    after = scores(methods.get("int8")().apply(resnet20, train), x).argmax(1)
    assert len(x) == 8000
    accuracy = {n: float((p == test_rows.labels).mean()) for n, p in (("before", before), ("after", after))}
    assert accuracy["before"] == pytest.approx(0.8094, abs=0.002)
    assert accuracy["after"] >= accuracy["before"] - 0.01
    assert (before == after).mean() >= 0.97


@pytest.mark.parametrize(
    ("per_channel", "calibration"), [(True, "mse"), (True, "min-max"), (False, "percentile")]
)
def test_resnet20_keeps_its_labels(
    resnet20: Model, train: Dataset, test_rows: Dataset, per_channel: bool, calibration: str
) -> None:
    x = prepare(test_rows.head(500), resnet20)
    method = methods.get("int8")(per_channel=per_channel, calibration=calibration, rows=128)
    after = scores(method.apply(resnet20, train), x).argmax(1)
    assert (predict(resnet20, x).argmax(1) == after).mean() >= 0.96


@pytest.mark.parametrize(
    ("file", "preprocessing", "agree"),
    [
        ("mlperf-tiny/ic_resnet8_float.tflite", Preprocessing(32, 32, layout="NHWC"), 0.92),
        (
            "imagenet/mobilenet_v1_0.25_128_float.tflite",
            Preprocessing(128, 128, 146, scale=1 / 127.5, mean=(1.0,), std=(1.0,), layout="NHWC"),
            0.68,
        ),
    ],
)
def test_imported_tflite_network(
    data_folder: Path, file: str, preprocessing: Preprocessing, agree: float
) -> None:
    model = dataclasses.replace(load_model(data_folder / "models" / file), preprocessing=preprocessing)
    name = "imagenet-sample.parquet" if "imagenet" in file else "cifar10-test.parquet"
    data = load_dataset(data_folder / name)
    split = 256
    quantized = methods.get("int8")(rows=128).apply(model, data.take(np.arange(split)))
    assert not [n for n in quantized.history[-1].notes if "Conv" in n or "Gemm" in n]
    x = prepare(data.take(np.arange(split, split + 200)), model)
    assert (predict(model, x).argmax(1) == scores(quantized, x).argmax(1)).mean() >= agree
