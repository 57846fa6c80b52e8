"""Whole networks of other people inside LiteRT: with the delegate, the bytes of the reference kernels without it."""

from __future__ import annotations

import shutil
from pathlib import Path

import numpy as np
import pytest

from dlas.hardware.accelerator import accelerator_for
from dlas.hardware.simulation.simulator import Simulator
from dlas.runtime.delegate.delegate import litert_delegate

litert = pytest.importorskip("ai_edge_litert.interpreter")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")

# File, accelerator, layers that it takes.
NETWORKS = [
    ("mlperf-tiny/ic_resnet8_int8.tflite", "vm", 10),
    ("mlperf-tiny/kws_dscnn_int8.tflite", "vm", 6),
    ("mlperf-tiny/streaming_wakeword_int8.tflite", "vm", 5),
    ("mlperf-tiny/ad01_autoencoder_int8.tflite", "vm", 10),
    ("imagenet/mobilenet_v1_0.25_128_int8.tflite", "vm", 15),
    ("imagenet/mobilenet_v1_0.25_128_uint8.tflite", "vm", 15),
    ("imagenet/mobilenetv2_1.0_224_int8.tflite", "vm", 36),
    ("pot/apot_mobilenetv2_4bit_imagenet.tflite", "vm", 36),
    ("pot/apot_resnet20_4bit_cifar10.tflite", "vm", 22),
    ("gan/dcgan_disc.tflite", "vm", 3),
    ("gan/dcgan_gen.tflite", "mm2im", 3),
]
COMPILED: list[Path] = []


@pytest.fixture(autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delegate is compiled once for all tests of this file."""
    if not COMPILED:
        COMPILED.append(tmp_path_factory.mktemp("compiled"))
    monkeypatch.setenv("DLAS_CACHE", str(COMPILED[0]))


def run(path: Path, seeds: int, delegates: list[object]) -> list[bytes]:
    """Bytes of every output, for random inputs."""
    machine = litert.Interpreter(
        str(path),
        experimental_delegates=delegates,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        num_threads=1,
    )
    machine.allocate_tensors()
    found = []
    for seed in range(seeds):
        rng = np.random.default_rng(seed)
        for given in machine.get_input_details():
            if given["dtype"] == np.float32:
                x = rng.normal(0, 1, given["shape"]).astype(np.float32)
            else:
                limits = np.iinfo(given["dtype"])
                x = rng.integers(limits.min, limits.max + 1, given["shape"]).astype(given["dtype"])
            machine.set_tensor(given["index"], x)
        machine.invoke()
        found += [machine.get_tensor(d["index"]).tobytes() for d in machine.get_output_details()]
    return found


@pytest.mark.parametrize(("name", "accelerator", "taken"), NETWORKS, ids=[n for n, *_ in NETWORKS])
def test_bytes_equal_the_reference_kernels(
    name: str, accelerator: str, taken: int, data_folder: Path
) -> None:
    path = data_folder / "models" / name
    delegate = litert_delegate(accelerator)
    assert run(path, 2, [delegate]) == run(path, 2, [])
    on = [layer for layer in delegate.layers if not layer.reason]
    assert len(on) == taken
    assert all(
        layer.cycles.total * layer.cycles.multipliers >= layer.macs for layer in on if accelerator == "vm"
    )


@pytest.mark.slow
def test_simulated_hardware_inside_litert(data_folder: Path) -> None:
    path = data_folder / "models" / "mlperf-tiny" / "kws_dscnn_int8.tflite"
    accelerator = accelerator_for("vm:units=1")
    accelerator.simulator = Simulator(accelerator.design(), fast=False)
    model, hardware = litert_delegate("vm:units=1"), litert_delegate(accelerator, "rtl")
    expected = run(path, 1, [])
    assert run(path, 1, [model]) == expected
    assert run(path, 1, [hardware]) == expected
    assert [layer.cycles for layer in hardware.layers] == [layer.cycles for layer in model.layers]
