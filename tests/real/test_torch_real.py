from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest
import torch

from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.format import load_model
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.graph.torch_module import to_torch


@pytest.fixture(scope="module")
def resnet20(data_folder: Path) -> Model:
    return load_model(data_folder / "models" / "cifar-resnet" / "resnet20.th")


def test_resnet20_is_recognised_and_as_right_as_it_should_be(resnet20: Model, data_folder: Path) -> None:
    assert resnet20.source["architecture"] == "cifar-resnet"
    data = load_dataset(data_folder / "cifar10-test.parquet").head(1000)
    top1 = np.mean(predict(resnet20, prepare(data, resnet20)).argmax(1) == data.labels)
    assert top1 == pytest.approx(0.788, abs=0.002)  # 80.94 % of all 8,000 rows, 78.8 % of the first thousand


def test_layers_are_called_as_in_the_checkpoint(resnet20: Model) -> None:
    convolutions = [n.name for n in resnet20.ir.graph if n.op_type == "Conv"]
    assert convolutions[:3] == ["conv1", "layer1.0.conv1", "layer1.0.conv2"]
    assert len(convolutions) == 19
    assert sum(n.op_type == "BatchNormalization" for n in resnet20.ir.graph) == 19  # kept, to be trained


@pytest.mark.slow
@pytest.mark.parametrize(("file", "depth"), [("resnet32", 32), ("resnet56", 56)])
def test_deeper_ones_are_told_apart(data_folder: Path, file: str, depth: int) -> None:
    model = load_model(data_folder / "models" / "cifar-resnet" / f"{file}.th")
    assert model.source["architecture"] == f"cifar-resnet:depth={depth}"


@pytest.mark.parametrize(
    "file",
    [
        "detect/fastestdet_coco.onnx",
        "detect/ultraface_rfb320.onnx",
        "imagenet/squeezenet1.0_deepcompressed.onnx",
    ],
)
def test_graphs_run_alike_in_torch(data_folder: Path, file: str) -> None:
    model = load_model(data_folder / "models" / file)
    (spec,) = model.inputs
    x = np.random.default_rng(0).random(spec.bound(1), np.float32)
    with torch.no_grad():
        got = to_torch(model)(torch.from_numpy(x))
    first = got[0] if isinstance(got, tuple) else got
    np.testing.assert_allclose(first.numpy(), predict(model, x), rtol=1e-4, atol=1e-4)


@pytest.mark.parametrize(
    "file",
    [
        "mlperf-tiny/ic_resnet8_float.tflite",
        "mlperf-tiny/kws_dscnn_float.tflite",
        "mlperf-tiny/vww_mobilenetv1_96_float.tflite",
        "mlperf-tiny/ad01_autoencoder_float.tflite",
        "imagenet/mobilenet_v1_0.25_128_float.tflite",
    ],
)
def test_tflite_graphs_run_alike_in_torch(data_folder: Path, file: str) -> None:
    pytest.importorskip("ai_edge_litert")
    test_graphs_run_alike_in_torch(data_folder, file)
