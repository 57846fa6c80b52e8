"""Iterative pruning of the public ResNet-20 on JPEG rows, and that its rows are apart."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.compress.method import compress_model
from dlas.compress.training import fine_tune
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.data.splits import bytes_of, sample, split
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.reference import predict


@pytest.fixture(scope="module")
def training(data_folder: Path) -> Dataset:
    return load_dataset(data_folder / "cifar10-train.parquet")


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


def weights(model: Model) -> int:
    return sum(a.size for a in model.initializers.values() if a.ndim >= 2)


def accuracy(model: Model, data: Dataset) -> float:
    return 100 * float(np.mean(predict(model, prepare(data, model)).argmax(1) == data.labels))


def test_the_rows_of_cifar_are_apart(training: Dataset, data_folder: Path) -> None:
    test = load_dataset(data_folder / "cifar10-test.parquet")
    held = {bytes_of(test, row) for row in range(len(test))}
    parts = split(training, {"train": 0.9, "validation": 0.1}, salt="pruning")
    found = [{bytes_of(p, row) for row in range(len(p))} for p in parts.values()]
    assert not found[0] & found[1]
    assert not held & (found[0] | found[1])
    assert sum(map(len, parts.values())) == len(training)


@pytest.mark.parametrize(
    "choice",
    [
        "ice:target_sparsity=0.25,rows=128,threads=1,validation=0.1,threshold=101,final_epochs=1",
        "fisher:target_sparsity=0.25,threads=1,steps=1,channels=64,finetune_epochs=0",
    ],
    ids=["ice", "fisher"],
)
def test_a_quarter_of_the_weights_leaves(resnet20: Model, training: Dataset, choice: str) -> None:
    small = compress_model(resnet20, choice, sample(training, 400))
    assert 0.25 <= 1 - weights(small) / weights(resnet20) < 0.29
    x = prepare(sample(training, 16, seed=5), resnet20)
    assert np.isfinite(predict(small, x)).all()


@pytest.mark.slow  # an epoch of adaptation and two prunings
def test_ice_trains_at_most_half_as_much_within_a_point_and_a_half(
    resnet20: Model, training: Dataset, data_folder: Path
) -> None:
    """Work, not seconds: these rest with benchmarks/compress_prune.py."""
    adapted = fine_tune(resnet20, sample(training, 15_000), epochs=3, lr=0.02)
    rest = training.take(np.setdiff1d(np.arange(len(training)), sample(training, 15_000).rows))
    data = sample(rest, 10_000)
    test = load_dataset(data_folder / "cifar10-test.parquet")
    common = "ratio=0.25,rows=2000"
    plain = compress_model(
        adapted, f"ice:{common},decide=false,freeze=none,adapt_lr=false,final_epochs=0", data
    )
    ice = compress_model(adapted, f"ice:{common}", data)
    assert weights(ice) == weights(plain)
    assert ice.history[-1].options["epochs_worth"] <= 0.5 * plain.history[-1].options["epochs_worth"]
    assert accuracy(ice, test) >= accuracy(plain, test) - 1.5
