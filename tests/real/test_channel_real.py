"""Channel pruning of the public ResNet-20 (option-A shortcuts) and of networks that come from TFLite."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx_ir as ir
import onnxruntime
import pytest

from dlas.compress.method import compress_model
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph import channels
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.passes import simplify


def run(proto: bytes, x: np.ndarray) -> np.ndarray:
    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    session = onnxruntime.InferenceSession(proto, options, providers=["CPUExecutionProvider"])
    name = session.get_inputs()[0].name
    return np.concatenate([session.run(None, {name: x[i : i + 100]})[0] for i in range(0, len(x), 100)])


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


@pytest.fixture(scope="module")
def test_rows(data_folder: Path) -> Dataset:
    whole = load_dataset(data_folder / "cifar10-test.parquet")
    return whole.take(np.arange(500) * len(whole) // 500)


def accuracy(model: Model, data: Dataset) -> float:
    assert data.labels is not None
    return float((run(model.to_bytes(), prepare(data, model)).argmax(1) == data.labels).mean())


def test_groups_of_resnet20(resnet20: Model) -> None:
    graph = resnet20.editable()
    simplify(graph)
    found = channels.groups(graph)
    assert found.macs == 40_551_040
    assert [(g.size, len(g.producers)) for g in found.prunable if g.coupled] == [(16, 10), (16, 6), (32, 3)]
    assert [g.size for g in found.prunable if not g.coupled] == [16] * 3 + [32] * 3 + [64] * 3


def test_mask_and_remove_agree_on_resnet20(resnet20: Model) -> None:
    graph = resnet20.editable()
    simplify(graph)
    x = np.random.default_rng(0).standard_normal((4, 3, 32, 32)).astype(np.float32)
    for group in channels.groups(graph).prunable:
        removed, masked = graph.clone(), graph.clone()
        channels.remove(removed, group.ids[::3])
        channels.mask(masked, group.ids[::3])
        one, other = (run(ir.to_proto(g).SerializeToString(), x) for g in (removed, masked))
        assert np.abs(one - other).max() <= 1e-4


@pytest.mark.slow  # two rounds of re-fitting
def test_compensation_saves_accuracy(resnet20: Model, test_rows: Dataset, data_folder: Path) -> None:
    rows = load_dataset(data_folder / "cifar10-train.parquet")
    choice = "channel:ratio=0.25,include_residual=false"
    plain = accuracy(compress_model(resnet20, choice), test_rows)
    mended = accuracy(compress_model(resnet20, f"{choice},compensate,rows=256", rows), test_rows)
    assert accuracy(resnet20, test_rows) > mended > plain + 0.1


@pytest.mark.slow
def test_one_epoch_brings_accuracy_back(resnet20: Model, test_rows: Dataset, data_folder: Path) -> None:
    rows = load_dataset(data_folder / "cifar10-train.parquet")
    plain = compress_model(resnet20, "channel:ratio=0.5")
    tuned = compress_model(resnet20, "channel:ratio=0.5,finetune_epochs=1,finetune_rows=10000", rows)
    assert (
        accuracy(tuned, test_rows) > accuracy(plain, test_rows) + 0.25
    )  # 44.6 % against 10 % when it was written


@pytest.mark.parametrize(
    "name", ["ic_resnet8_float", "kws_dscnn_float", "vww_mobilenetv1_96_float", "ad01_autoencoder_float"]
)
def test_networks_from_tflite(data_folder: Path, name: str) -> None:
    model = load_model(data_folder / "models" / "mlperf-tiny" / f"{name}.tflite")
    graph = model.editable()
    simplify(graph)
    prunable = channels.groups(graph).prunable
    assert len(prunable) >= 4
    ids = np.concatenate([g.ids[::4] for g in prunable if g.size > 1])
    removed, masked = graph.clone(), graph.clone()
    channels.remove(removed, ids)
    channels.mask(masked, ids)
    x = np.random.default_rng(0).standard_normal(model.inputs[0].bound(1)).astype(np.float32)
    one, other = (run(ir.to_proto(g).SerializeToString(), x) for g in (removed, masked))
    assert np.abs(one - other).max() <= 1e-4 * max(1.0, float(np.abs(other).max()))
    small = compress_model(model, "channel:ratio=0.25")
    assert run(small.to_bytes(), x).shape == other.shape
