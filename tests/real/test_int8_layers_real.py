"""Every layer of the real int8 networks by the NumPy references, to the bit as LiteRT's reference kernels."""

from __future__ import annotations

import sys
from pathlib import Path

import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from tflite_layers import compare_file

pytest.importorskip("ai_edge_litert", reason="the oracle is LiteRT")

NETWORKS = {
    "mlperf-tiny/ic_resnet8_int8.tflite": 15,
    "mlperf-tiny/ad01_autoencoder_int8.tflite": 10,
    "mlperf-tiny/streaming_wakeword_int8.tflite": 10,
    "mlperf-tiny/kws_dscnn_int8.tflite": 12,
    "imagenet/mobilenet_v1_0.25_128_int8.tflite": 34,
    "imagenet/mobilenetv2_1.0_224_int8.tflite": 72,
    "pot/apot_resnet20_4bit_cifar10.tflite": 53,
}


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_every_layer_equals_litert(data_folder, name):
    layers = compare_file(data_folder / "models" / name)
    assert len(layers) == NETWORKS[name]
    assert [layer for layer in layers if layer[1]] == []
