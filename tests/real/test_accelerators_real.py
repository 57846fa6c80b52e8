"""Whole int8 networks of other people on accelerators: bytes equal to LiteRT's reference kernels, model and RTL."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import pytest

from dlas import api
from dlas.graph.format import load_model
from dlas.hardware.accelerator import Accelerator, accelerator_for
from dlas.kernels.extension import native
from dlas.runtime.offload import Offloaded

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


@pytest.fixture(scope="module")
def simulated() -> Accelerator:
    """One unit, whose simulation is built once."""
    return accelerator_for("vm:units=1")


def answers(offloaded: Offloaded, path: Path) -> tuple[np.ndarray, np.ndarray, dict[str, np.ndarray]]:
    """Outputs on the accelerator and of LiteRT's reference kernels, and the input."""
    from ai_edge_litert.interpreter import Interpreter, OpResolverType

    rng = np.random.default_rng(0)
    ((name, operand),) = offloaded.executable.program.network.inputs.items()
    if operand.dtype == "float32":
        x = rng.random(operand.shape, np.float32)
    else:
        limits = np.iinfo(operand.dtype)
        x = rng.integers(limits.min, limits.max + 1, operand.shape).astype(operand.dtype)
    theirs = Interpreter(str(path), experimental_op_resolver_type=OpResolverType.BUILTIN_REF, num_threads=1)
    theirs.allocate_tensors()
    theirs.set_tensor(theirs.get_input_details()[0]["index"], x)
    theirs.invoke()
    (found,) = offloaded.run({name: x}).values()
    return found, theirs.get_tensor(theirs.get_output_details()[0]["index"]).reshape(found.shape), {name: x}


@pytest.mark.parametrize("choice", ["vm", "sa"])
@pytest.mark.parametrize("name", NETWORKS)
def test_bytes_of_the_model_equal_litert(name: str, choice: str, data_folder: Path) -> None:
    path = data_folder / "models" / name
    offloaded = Offloaded(load_model(path), accelerator_for(choice))
    found, wanted, _ = answers(offloaded, path)
    np.testing.assert_array_equal(found, wanted)
    on = [layer for layer in offloaded.layers if not layer.reason]
    assert {layer.op for layer in offloaded.layers if layer.reason} <= {"QDepthwise"}
    assert sum(layer.cycles.total for layer in on) == offloaded.cycles.total > 0


@pytest.mark.slow
@pytest.mark.parametrize("name", NETWORKS)
def test_the_rtl_gives_the_same_bytes_in_the_same_cycles(
    name: str, simulated: Accelerator, data_folder: Path
) -> None:
    path = data_folder / "models" / name
    model = load_model(path)
    rtl, tlm = Offloaded(model, simulated, level="rtl"), Offloaded(model, simulated)
    found, wanted, inputs = answers(rtl, path)
    np.testing.assert_array_equal(found, wanted)
    tlm.run(inputs)
    assert [layer.cycles for layer in rtl.layers] == [layer.cycles for layer in tlm.layers]


def test_mobilenet_keeps_the_multipliers_busy(data_folder: Path) -> None:
    """Above 84 % of what 64 multipliers could do, which an array without overlapped loading reaches."""
    path = data_folder / "models/imagenet/mobilenetv2_1.0_224_int8.tflite"
    offloaded = Offloaded(load_model(path), accelerator_for("vm:units=1"))
    answers(offloaded, path)
    convolutions = [layer for layer in offloaded.layers if layer.op == "QConv"]
    cycles = sum(layer.cycles.total for layer in convolutions)
    assert sum(layer.macs for layer in convolutions) / (64 * cycles) > 0.84


@pytest.mark.parametrize("name", ["apot_resnet20_4bit_cifar10", "apot_mobilenetv2_4bit_imagenet"])
def test_shift_units_take_what_was_trained_on_their_levels(name: str, data_folder: Path) -> None:
    model = load_model(data_folder / "models/pot" / f"{name}.tflite")
    offloaded = Offloaded(model, accelerator_for("vm-shift:method=apot"))
    left = [layer for layer in offloaded.layers if layer.reason and layer.op != "QDepthwise"]
    assert len(left) == 2  # the first convolution and the last layer, in 8 bits
    assert all("not on the levels" in layer.reason for layer in left)


OWN = {
    "apot": "vm-shift:units=1",
    "msq": "vm-shift:method=msq,units=1",
    "po2": "vm-shift:method=po2,semantics=tflite,units=1",
}


@pytest.mark.parametrize("method", OWN)
def test_shift_units_give_litert_s_bytes_for_what_dlas_puts_on_levels(method: str, tmp_path: Path) -> None:
    """Levels of APoT, MSQ and QKeras: the file holds what the hardware computes with."""
    path = tmp_path / "own.tflite"
    api.save(
        api.compress("digits-cnn", f"{method}:activations=int8,repair=none", data="digits", split="train"),
        path,
    )
    offloaded = Offloaded(load_model(path), accelerator_for(OWN[method]))
    found, wanted, _ = answers(offloaded, path)
    np.testing.assert_array_equal(found, wanted)
    assert sum(not layer.reason for layer in offloaded.layers) >= 1


@pytest.mark.slow
@pytest.mark.parametrize("method", OWN)
def test_resnet20_on_levels_of_dlas_in_hardware(method: str, tmp_path: Path, data_folder: Path) -> None:
    """All but the two layers that keep 8 bits, whole network, model and RTL, bytes and cycles."""
    path, source = tmp_path / "own.tflite", data_folder / "models/cifar-resnet/resnet20.th"
    rows = data_folder / "cifar10-train.parquet"
    api.save(api.compress(source, f"{method}:activations=int8", data=rows), path)
    model, accelerator = load_model(path), accelerator_for(OWN[method])
    rtl, tlm = Offloaded(model, accelerator, level="rtl"), Offloaded(model, accelerator)
    found, wanted, inputs = answers(rtl, path)
    np.testing.assert_array_equal(found, wanted)
    np.testing.assert_array_equal(next(iter(tlm.run(inputs).values())), wanted)
    assert [layer.cycles for layer in rtl.layers] == [layer.cycles for layer in tlm.layers]
    left = [layer.name for layer in rtl.layers if layer.reason]
    assert len(left) == 2, left
