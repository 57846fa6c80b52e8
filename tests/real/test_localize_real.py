"""Faults of published conversions are found with one command each, and named without being told."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import pytest

from dlas import api
from dlas.core.environments import environments_root
from dlas.core.figure import Outcome
from dlas.verify.localize.report import LocalizeReport

ENVIRONMENTS = environments_root()  # before each test gets a cache of its own


def _dense(name: str) -> int:
    """2 of ``dense_2``, 0 of ``dense``."""
    return int(name.partition("dense")[2].strip("_") or 0)


@pytest.fixture(scope="module")
def mobilenet(data_folder: Path) -> LocalizeReport:
    models = data_folder / "models" / "imagenet"
    return api.localize(
        models / "mobilenet_v1_0.25_128_float.tflite",
        models / "mobilenet_v1_0.25_128_int8.tflite",
        data=data_folder / "imagenet-sample.parquet",
        rows=32,
    )


@pytest.mark.slow
def test_the_range_that_mobilenet_was_calibrated_with_is_named(mobilenet: LocalizeReport) -> None:
    assert {f["fault"] for f in mobilenet.faults} == {"input"}
    first = mobilenet.faults[0]
    assert first["kind"] == "range of the input"
    assert "holds 0 to 1" in first["detail"]
    assert "with -1 to 1 it agrees" in first["detail"]
    assert first["error_before"] > 0.5 > 0.05 > first["error_after"]
    assert "calibrated with samples prepared otherwise" in first["hint"]


@pytest.mark.slow
def test_the_rest_of_mobilenet_is_healthy_and_the_labels_come_back(mobilenet: LocalizeReport) -> None:
    assert mobilenet.flips is not None
    assert mobilenet.flips >= 16
    assert max(f["flips"] for f in mobilenet.faults) >= 0.7 * mobilenet.flips
    assert mobilenet.matched > 80
    assert not mobilenet.random


def test_a_float_network_against_itself_is_healthy(data_folder: Path) -> None:
    path = data_folder / "models" / "imagenet" / "mobilenet_v1_0.25_128_float.tflite"
    found = api.localize(path, path, rows=4)
    assert found.faults == ()
    assert found.matched > 50


def test_a_source_with_integer_outputs_is_compared_in_real_values(data_folder: Path) -> None:
    path = data_folder / "models" / "mlperf-tiny" / "streaming_wakeword_int8.tflite"
    found = api.localize(path, path, rows=4)
    assert found.faults == ()
    assert found.flips == 0


def test_a_healthy_integer_twin_has_no_fault(data_folder: Path) -> None:
    """3.8 % other labels, and nobody to blame: rounding adds up."""
    models = data_folder / "models" / "mlperf-tiny"
    found = api.localize(
        models / "ic_resnet8_float.tflite",
        models / "ic_resnet8_int8.tflite",
        data=data_folder / "cifar10-test.parquet",
        rows=16,
    )
    assert found.faults == ()


@pytest.mark.slow
def test_the_biases_of_the_autoencoder(data_folder: Path) -> None:
    """The published pair is documented as a plain conversion; the biases of dense 1 to 8 are other ones."""
    if importlib.util.find_spec("tensorflow") is None:
        pytest.skip("a Keras file is read with tensorflow, which is not installed")
    models = data_folder / "models" / "mlperf-tiny"
    found = api.localize(models / "ad01_autoencoder.h5", models / "ad01_autoencoder_float.tflite")
    assert [_dense(f["source_node"]) for f in found.faults] == list(range(1, 9))
    assert {f["fault"] for f in found.faults} == {"parameter"}
    assert all(" bias: " in f["detail"] for f in found.faults)  # and the weights are the same
    assert all(f["error_after"] < 2e-5 < f["error_before"] for f in found.faults)


@pytest.mark.slow
def test_the_first_pad_of_resnet20_is_wrong_and_the_second_is_not(
    data_folder: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """onnx2tf 1.29.24: where all axes have the same size, it pads another one than the channels."""
    from dlas.runtime.converter import converter_for

    monkeypatch.setenv("DLAS_ENVS", str(ENVIRONMENTS))
    converter = converter_for("onnx2tf")
    if reason := converter.missing_for():
        pytest.skip(reason)
    checkpoint = data_folder / "models" / "cifar-resnet" / "resnet20.th"
    source, target = tmp_path / "resnet20.onnx", tmp_path / "resnet20.tflite"
    exported = converter_for("onnx-dynamo").convert(checkpoint, source, architecture="cifar-resnet:depth=20")
    assert exported.status == Outcome.OK, exported
    made = converter.convert(source, target)
    assert made.status == Outcome.OK, made
    found = api.localize(source, target, data=data_folder / "cifar10-test.parquet", rows=16)
    assert [(f["target_op"], f["fault"]) for f in found.faults] == [("Pad", "layout")]
    fault = found.faults[0]
    assert fault["error_before"] > 0.5
    assert fault["error_after"] < 1e-4
    assert fault["flips"] == found.flips
    assert "axes of equal size [16, 16" in fault["hint"]
    repaired = api.repair(source, target, data=data_folder / "cifar10-test.parquet", rows=40)
    assert repaired.outcome == "repaired"
    assert len(repaired.patches) == 1
    assert not repaired.after.flips
