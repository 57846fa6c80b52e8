"""The Keras files of MLPerf Tiny: read, they answer as Keras does, and as their TFLite conversions."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import pytest

from dlas.graph.formats.keras import check
from dlas.graph.guard import import_model
from dlas.graph.model import Model
from dlas.graph.passes import simplified
from dlas.graph.reference import Reference

FILES = {
    "ic_resnet8": {"Conv": 9, "BatchNormalization": 7, "Relu": 7, "Add": 3, "Gemm": 1},
    "ad01_autoencoder": {"Gemm": 10, "BatchNormalization": 9, "Relu": 9},
}


def cifar(data_folder: Path, count: int) -> tuple[np.ndarray, np.ndarray]:
    """Test images ``(count, 32, 32, 3)`` uint8 and labels."""
    from PIL import Image
    from pyarrow import parquet

    table = parquet.read_table(data_folder / "cifar10-test.parquet", columns=["image", "label"]).slice(
        0, count
    )
    images = [
        np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in table["image"].to_pylist()
    ]
    return np.stack(images), np.asarray(table["label"].to_pylist())


def run(model: Model, x: np.ndarray) -> np.ndarray:
    with Reference(model) as reference:
        return np.concatenate(
            [
                reference.run({model.inputs[0].name: x[i : i + 500]})[model.outputs[0].name]
                for i in range(0, len(x), 500)
            ]
        )


def decibels(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(wanted.astype(np.float64) - got).sum()
    return (
        float("inf")
        if noise == 0
        else float(10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise))
    )


def path(data_folder: Path, name: str) -> Path:
    return data_folder / "models" / "mlperf-tiny" / name


@pytest.mark.parametrize("name", FILES)
def test_real_files_pass_the_checks(data_folder: Path, name: str) -> None:
    assert check(path(data_folder, f"{name}.h5")).startswith("2.")


@pytest.mark.slow
@pytest.mark.parametrize("name", FILES)
def test_real_files_answer_as_keras(data_folder: Path, name: str) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    from dlas.core.worker import run_in_worker

    file = path(data_folder, f"{name}.h5")
    model = import_model(file)
    counts = Counter(n.op_type for n in model.ir.graph)
    assert {kind: counts[kind] for kind in FILES[name]} == FILES[name]
    assert "BatchNormalization" not in {n.op_type for n in simplified(model).ir.graph}
    rng = np.random.default_rng(5)
    if name == "ic_resnet8":
        x = cifar(data_folder, 200)[0].astype(np.float32)
    else:
        x = rng.normal(-10, 5, (200, 640)).astype(np.float32)  # log-mel energies
    (wanted,) = run_in_worker("dlas.runtime.native:answers", str(file), [x])
    assert decibels(wanted, run(model, x)) >= 120
    assert decibels(wanted, run(simplified(model), x)) >= 110
    if name == "ic_resnet8":
        # ... and as the file that was converted from it. (The other pair differs, see below.)
        (other,) = run_in_worker(
            "dlas.runtime.native:answers", str(file).replace(".h5", "_float.tflite"), [x]
        )
        assert decibels(wanted, other) >= 100


@pytest.mark.slow
def test_the_autoencoder_is_read_as_its_file_says(data_folder: Path) -> None:
    # Its TFLite file has the same kernels but other biases (36 dB apart in LiteRT and Keras themselves), so the judge
    # here is the file's own arithmetic in float64.
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    import json

    import h5py

    file = path(data_folder, "ad01_autoencoder.h5")
    x = np.random.default_rng(5).normal(-10, 5, (200, 640)).astype(np.float32)
    y = x.astype(np.float64)
    with h5py.File(file) as opened:
        for layer in json.loads(opened.attrs["model_config"])["config"]["layers"]:
            name, config = layer["config"]["name"], layer["config"]
            held = opened[f"model_weights/{name}"]
            held = {k.removesuffix(":0"): v[()].astype(np.float64) for k, v in held.get(name, {}).items()}
            if layer["class_name"] == "Dense":
                y = y @ held["kernel"] + held["bias"]
            elif layer["class_name"] == "BatchNormalization":
                y = (y - held["moving_mean"]) / np.sqrt(held["moving_variance"] + config["epsilon"])
                y = y * held["gamma"] + held["beta"]
            elif layer["class_name"] == "Activation":
                y = np.maximum(y, 0)
    assert decibels(y, run(import_model(file), x)) >= 120


@pytest.mark.slow
def test_accuracy_is_that_of_the_file(data_folder: Path) -> None:
    pytest.importorskip("tensorflow", reason="TensorFlow is not installed")
    images, labels = cifar(data_folder, 8000)
    model = import_model(path(data_folder, "ic_resnet8.h5"))
    accuracy = float((run(model, images.astype(np.float32)).argmax(1) == labels).mean())
    assert len(labels) == 8000
    assert accuracy == pytest.approx(0.7501, abs=0.001)
