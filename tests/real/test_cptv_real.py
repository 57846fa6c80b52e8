"""The scale search on the public ResNet-20, judged on CIFAR-10 JPEG rows that calibration never saw."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.compress.method import methods
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.metrics import top1
from dlas.data.preprocess import prepare
from dlas.data.splits import sample
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.reference import predict


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


@pytest.fixture(scope="module")
def train(data_folder: Path) -> Dataset:
    return sample(load_dataset(data_folder / "cifar10-train.parquet"), 1000)


@pytest.fixture(scope="module")
def test_rows(data_folder: Path) -> Dataset:
    return sample(load_dataset(data_folder / "cifar10-test.parquet"), 2000)


def accuracy(model: Model, data: Dataset) -> float:
    assert data.labels is not None
    return top1(predict(model, prepare(data, model)), data.labels).value


def cptv(model: Model, data: Dataset, **options: object) -> Model:
    return methods.get("cptv")(**options).apply(model, data)


def test_three_bits_of_resnet20_get_nearer_to_the_float_network(resnet20: Model, train: Dataset) -> None:
    made = cptv(resnet20, train, bits=3, rows=60, batch_size=30, budget_evals=8, cycles=4)
    options = made.history[-1].options
    assert options["evaluations"] == 8
    assert options["loss_after"] < options["loss_before"]
    assert [line["unit"] for line in options["search"]] == [8, 7]
    assert 3.0 < options["bits_per_weight"] < 3.3


@pytest.mark.slow
def test_acceptance_on_resnet20(resnet20: Model, train: Dataset, test_rows: Dataset) -> None:
    """Mean of three seeds: at 4 bits at most half a point below the start, at 3 bits above it."""
    for bits, floor in ((4, -0.005), (3, 0.0)):
        options = {"bits": bits, "rows": 500, "cycles": 4}
        start = accuracy(cptv(resnet20, train, **options, passes=0), test_rows)
        found = []
        for seed in range(3):
            made = cptv(resnet20, train, **options, passes=3, seed=seed)
            losses = [made.history[-1].options["loss_before"]]
            losses += [line["loss"] for line in made.history[-1].options["search"]]
            assert losses == sorted(losses, reverse=True)
            assert losses[-1] < losses[0] or bits == 4
            found.append(accuracy(made, test_rows))
        assert np.mean(found) - start > floor
