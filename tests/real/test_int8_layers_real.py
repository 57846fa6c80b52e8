"""The real int8 networks by the NumPy references: to the bit as LiteRT, layer by layer and from end to end."""

from __future__ import annotations

import sys
from pathlib import Path

import numpy as np
import pytest

sys.path.insert(0, str(Path(__file__).parents[1] / "kernels"))
from tflite_layers import compare, random_input, run_default, run_ours

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
def test_every_layer_equals_the_reference_kernels(data_folder, name):
    content = (data_folder / "models" / name).read_bytes()
    layers = compare(content, random_input(content))
    assert len(layers) == NETWORKS[name]
    assert [layer for layer in layers if layer[1]] == []


@pytest.mark.parametrize("name", sorted(NETWORKS))
def test_whole_networks_equal_litert_as_it_comes(data_folder, name):
    content = (data_folder / "models" / name).read_bytes()
    for seed in range(2):
        x = random_input(content, seed)
        np.testing.assert_array_equal(run_ours(content, x, "xnnpack"), run_default(content, x))
