"""Offsets per class on a real network that sees JPEG images instead of the lossless ones it was trained on."""

from __future__ import annotations

import dataclasses
from pathlib import Path

import pytest

from dlas.compress.method import methods
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.reference import predict
from dlas.graph.signature import adapted

HOW = Preprocessing(32, 32, layout="NHWC")


@pytest.fixture(scope="module")
def train(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-train.parquet").head(1000)


@pytest.fixture(scope="module")
def judge(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-test.parquet").head(2000)


def top1(model: Model, rows: Dataset) -> float:
    found = predict(model, prepare(rows, model)).reshape(len(rows), -1)
    return float((found.argmax(1) == rows.labels).mean())


@pytest.mark.parametrize("kind", [pytest.param("float", marks=pytest.mark.slow), "int8"])
def test_resnet8_gains_a_point_on_jpeg_rows(
    data_folder: Path, train: Dataset, judge: Dataset, kind: str, tmp_path: Path
) -> None:
    model = load_model(data_folder / "models" / "mlperf-tiny" / f"ic_resnet8_{kind}.tflite")
    model = dataclasses.replace(model, preprocessing=adapted(HOW, model))
    made = methods.get("class-bias")().apply(model, train)
    before, after = top1(model, judge), top1(made, judge)
    assert before == pytest.approx(0.7605, abs=0.01)
    assert after >= before + 0.01
    assert made.ir.graph.num_nodes() == model.ir.graph.num_nodes()
    # The file is still one that the runtime takes: no float operator has come in.
    save_model(made, tmp_path / "made.tflite")
    back = dataclasses.replace(load_model(tmp_path / "made.tflite"), preprocessing=made.preprocessing)
    assert top1(back, judge.head(500)) == pytest.approx(top1(made, judge.head(500)), abs=0.004)
