"""The published Deep Compression SqueezeNet: decoded here, it is the network that others decoded from it."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.data.find import load_dataset
from dlas.data.preprocess import iterate
from dlas.data.splits import sample
from dlas.graph.format import load_model
from dlas.graph.reference import Reference
from dlas.testing.backends import sqnr_db

FILE = "models/imagenet/squeezenet1.0_deepcompressed"
TOP1, ROWS = 0.656, 800  # measured on all rows of the sample


def hits(data_folder: Path, rows: int) -> np.ndarray:
    model = load_model(data_folder / f"{FILE}.net")
    data = load_dataset(data_folder / "imagenet-sample.parquet")
    data = sample(data, rows, seed=0, balanced=False) if rows < len(data) else data
    with Reference(model, threads=2) as reference:
        found = [reference.run({"image": x})["logits"][0].argmax() for x in iterate(data, model, 1)]
    assert len(found) == rows
    return np.asarray(found) == np.asarray(data.labels)


def test_it_is_the_network_that_was_decoded_from_it(data_folder: Path) -> None:
    model, other = (load_model(data_folder / f"{FILE}{suffix}") for suffix in (".net", ".onnx"))
    theirs = {name.removeprefix("c."): array for name, array in other.initializers.items()}
    ours = model.initializers
    assert len(ours) == 52
    for name, array in ours.items():
        np.testing.assert_array_equal(array.view(np.uint32), theirs[name].view(np.uint32))
    image = np.random.default_rng(0).integers(0, 256, (1, 3, 227, 227)).astype(np.float32) - 110
    with Reference(model) as first, Reference(other) as second:
        got, wanted = (r.run({"image": image})["logits"] for r in (first, second))
    assert sqnr_db(wanted, got) >= 120
    notes = " ".join(model.history[-1].notes)
    assert "33.9% of 1244448 weights are stored" in notes
    assert "4.34 bits per weight" in notes


def test_accuracy_on_a_few_rows(data_folder: Path) -> None:
    right = hits(data_folder, 60)
    assert abs(right.mean() - TOP1) < 3 * np.sqrt(TOP1 * (1 - TOP1) / 60)


@pytest.mark.slow
def test_accuracy_on_all_rows(data_folder: Path) -> None:
    assert hits(data_folder, ROWS).mean() == pytest.approx(TOP1, abs=0.001)
