"""Whole int8 networks of other people: bytes equal to LiteRT's, by its reference kernels and by XNNPACK."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas.graph.format import load_model
from dlas.kernels.extension import native
from dlas.kernels.kernel import Context
from dlas.runtime.engine.lower import lower
from dlas.runtime.engine.passes import run_passes
from dlas.runtime.engine.program import Bound, Program
from dlas.runtime.engine.quantized import lower_quantized
from dlas.runtime.engine.select import candidates, choose

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")

NETWORKS = [
    "mlperf-tiny/ic_resnet8_int8.tflite",
    "mlperf-tiny/kws_dscnn_int8.tflite",
    "mlperf-tiny/streaming_wakeword_int8.tflite",
    "mlperf-tiny/ad01_autoencoder_int8.tflite",
    "imagenet/mobilenet_v1_0.25_128_int8.tflite",
    "imagenet/mobilenet_v1_0.25_128_uint8.tflite",
    "imagenet/mobilenetv2_1.0_224_int8.tflite",
    "pot/apot_mobilenetv2_4bit_imagenet.tflite",
    "pot/apot_resnet20_4bit_cifar10.tflite",
]
FLOAT = {"Conv", "Gemm", "MatMul", "Add", "AveragePool", "GlobalAveragePool", "Softmax"}


@pytest.mark.parametrize("rounding", ["double", "xnnpack"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_equal_litert(name: str, rounding: str, data_folder: Path):
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    path = data_folder / "models" / name
    network = run_passes(lower_quantized(lower(load_model(path)), rounding))
    assert not FLOAT & set(network.count())
    context = Context.here(1)
    program = Program(network, choose(network, candidates(network, context, [], exact=True)), context)
    kind = OpResolverType.BUILTIN_REF if rounding == "double" else OpResolverType.AUTO
    theirs = Interpreter(str(path), experimental_op_resolver_type=kind, num_threads=1)
    theirs.allocate_tensors()
    rng = np.random.default_rng(0)
    for _ in range(2):
        (operand,) = network.inputs.values()
        if operand.dtype == "float32":
            x = rng.random(operand.shape, np.float32)
        else:
            limits = np.iinfo(operand.dtype)
            x = rng.integers(limits.min, limits.max + 1, operand.shape).astype(operand.dtype)
        theirs.set_tensor(theirs.get_input_details()[0]["index"], x)
        theirs.invoke()
        expected = theirs.get_tensor(theirs.get_output_details()[0]["index"])
        found = np.empty(expected.shape, expected.dtype)
        program.bind(Bound([x], [found]))
        program.run()
        np.testing.assert_array_equal(found, expected)
