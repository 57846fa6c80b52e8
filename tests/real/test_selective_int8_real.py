"""selective-int8 on real networks and images: fewer labels lost for few more bytes, also on images not seen."""

from __future__ import annotations

import dataclasses
from pathlib import Path
from typing import Any

import numpy as np
import pytest

from dlas.compress.method import methods
from dlas.compress.quantize._int8.selection import difference
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.reference import predict


def network(folder: Path, file: str, preprocessing: Preprocessing) -> Model:
    return dataclasses.replace(load_model(folder / "models" / file), preprocessing=preprocessing)


def checked_front(model: Model) -> list[dict[str, Any]]:
    """The front, after what must hold of every front."""
    front = model.history[-1].options["front"]
    ranking = model.history[-1].options["ranking"]
    by_count = {len(p["float_layers"]): p for p in front}
    assert by_count[len(ranking)]["label_diff"] == 0
    assert 0 in by_count
    sizes = [p["size_bytes"] for p in front]
    assert sizes == sorted(sizes)
    assert sum(p["chosen"] for p in front) == 1
    return front


def test_resnet8_gains_most_of_the_way_to_float_for_a_layer_or_two(data_folder: Path) -> None:
    model = network(data_folder, "mlperf-tiny/ic_resnet8_float.tflite", Preprocessing(32, 32, layout="NHWC"))
    train = load_dataset(data_folder / "cifar10-train.parquet").head(2000)
    method = methods.get("selective-int8")(rows=128, images=128, held_out=128, max_networks=16, seed=1)
    found = method.apply(model, train)
    front = checked_front(found)
    best = next(p for p in front if p["chosen"])
    flt, int8 = front[-1], next(p for p in front if not p["float_layers"])
    assert best["size_bytes"] <= int8["size_bytes"] + 0.25 * (flt["size_bytes"] - int8["size_bytes"])
    assert best["sqnr_db"] >= int8["sqnr_db"]
    assert best["label_diff"] <= int8["label_diff"]
    x = prepare(load_dataset(data_folder / "cifar10-test.parquet").head(300), model)
    assert np.mean(predict(model, x).argmax(1) != predict(found, x).argmax(1)) <= 0.06


@pytest.mark.slow
def test_mobilenet_v1_is_nearer_to_float_on_images_not_seen(data_folder: Path) -> None:
    model = network(
        data_folder,
        "imagenet/mobilenet_v1_0.25_128_float.tflite",
        Preprocessing(128, 128, 146, scale=1 / 127.5, mean=(1.0,), std=(1.0,), layout="NHWC"),
    )
    data = load_dataset(data_folder / "imagenet-sample.parquet")
    train, test = data.take(np.arange(0, len(data), 2)), data.take(np.arange(1, len(data), 2))
    options = {"rows": 128, "images": 240, "held_out": 32, "max_networks": 45, "max_label_diff": 0.02}
    found = methods.get("selective-int8")(**options).apply(model, train)
    front = checked_front(found)
    best, flt = next(p for p in front if p["chosen"]), front[-1]
    int8 = next(p for p in front if not p["float_layers"])
    assert best["size_bytes"] <= int8["size_bytes"] + 0.1 * (flt["size_bytes"] - int8["size_bytes"])
    whole = methods.get("int8")(rows=128).apply(model, train)
    x = prepare(test.head(300), model)
    exact = predict(model, x)
    labels, error = difference(exact, predict(found, x))
    int8_labels, int8_error = difference(exact, predict(whole, x))
    assert labels is not None
    assert int8_labels is not None
    assert error <= 0.85 * int8_error, (error, int8_error)
    assert labels <= int8_labels, (labels, int8_labels)
