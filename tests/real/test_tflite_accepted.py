"""Written tflite files in the hands of others: LiteRT's two sets of kernels, TVM's front end and Arm's Vela."""

from __future__ import annotations

import importlib.util
import subprocess
import sys
from functools import cache
from pathlib import Path

import numpy as np
import pytest

from dlas.compress.method import compress_model
from dlas.data.dataset import Dataset
from dlas.graph.format import load_model
from dlas.graph.formats.tflite import to_bytes
from dlas.graph.formats.tflite.flat import enum_names, parse, schema
from dlas.graph.model import Model
from dlas.graph.reference import predict

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
SLOW = pytest.mark.slow
FLOAT = {
    "mlperf-tiny/ad01_autoencoder_float.tflite": (),
    "mlperf-tiny/ic_resnet8_float.tflite": (),
    "cifar-resnet/resnet20.th": (),
    "mlperf-tiny/vww_mobilenetv1_96_float.tflite": SLOW,
    "imagenet/mobilenet_v1_0.25_128_float.tflite": SLOW,
}
DYNAMIC = "mlperf-tiny/kws_dscnn_float.tflite"
DETECTOR = "detect/fastestdet_coco.onnx"


def cases(names: dict[str, object]) -> list:
    return [pytest.param(n, marks=m, id=Path(n).stem) for n, m in names.items()]


@cache
def source(path: Path) -> Model:
    return load_model(path, **({"architecture": "cifar-resnet"} if path.suffix == ".th" else {}))


def rows(model: Model, count: int = 8) -> np.ndarray:
    shape = (count, *(int(d) for d in model.inputs[0].shape[1:]))
    return np.random.default_rng(3).uniform(-1, 1, shape).astype(np.float32)


@cache
def in_int8(path: Path, io: str = "int8") -> Model:
    """Calibrated on noise: what is asked here is who takes the file, not how accurate it is."""
    model = source(path)
    x = rows(model, 16)
    return compress_model(
        model, f"int8:io={io},calibration=min-max", Dataset("noise", x, np.zeros(16, np.int64))
    )


def litert(data: bytes, x: np.ndarray, reference: bool) -> np.ndarray:
    kind = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    machine = interpreter.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    machine.allocate_tensors()
    (given,), (wanted, *_) = machine.get_input_details(), machine.get_output_details()
    found = []
    for row in x:
        machine.set_tensor(given["index"], np.ascontiguousarray(row.reshape(given["shape"])))
        machine.invoke()
        found.append(machine.get_tensor(wanted["index"]).copy())
    return np.concatenate(found)


def file_rows(data: bytes, model: Model, x: np.ndarray) -> np.ndarray:
    """Rows of a Model in the file's own order of axes."""
    network = parse(data, model.name)
    stored = network.tensors[network.inputs[0]].shape
    return x.transpose(0, 2, 3, 1) if x.ndim == 4 and stored[1:] != x.shape[1:] else x


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    a, b = wanted.astype(np.float64), got.astype(np.float64)
    noise = np.square(a - b).sum()
    return float("inf") if noise == 0 else float(10 * np.log10(np.square(a).sum() / noise))


# LiteRT


@pytest.mark.parametrize("name", cases(FLOAT))
def test_float_on_both_sets_of_kernels(name: str, data_folder: Path) -> None:
    model = source(data_folder / "models" / name)
    data, notes = to_bytes(model)
    assert notes == ()
    x = rows(model, 4)
    wanted = np.concatenate([predict(model, row[None]) for row in x])
    exact, fast = (litert(data, file_rows(data, model, x), reference) for reference in (True, False))
    least = min(120, db(exact, fast) - 3)  # the two sum in another order
    assert db(wanted, exact) >= least
    assert db(wanted, fast) >= least


@pytest.mark.parametrize("name", cases(FLOAT | {DYNAMIC: (), DETECTOR: SLOW}))
def test_int8_is_integer_but_for_the_ends(name: str, data_folder: Path) -> None:
    for io, wanted in (("int8", set()), ("float32", {"QUANTIZE", "DEQUANTIZE"})):
        model = in_int8(data_folder / "models" / name, io)
        data, notes = to_bytes(model)
        assert notes == ()
        network = parse(data, name)
        inexact = [
            op.kind
            for op in network.operations
            if any(network.tensors[i].dtype == "float32" for i in (*op.inputs, *op.outputs) if i >= 0)
        ]
        assert len(inexact) == len(wanted)
        assert set(inexact) == wanted


@pytest.mark.parametrize("name", cases(FLOAT | {DYNAMIC: (), DETECTOR: SLOW}))
def test_int8_layers_follow_the_specification(name: str, data_folder: Path) -> None:
    network = parse(to_bytes(in_int8(data_folder / "models" / name))[0], name)
    layers = [
        op for op in network.operations if op.kind in ("CONV_2D", "DEPTHWISE_CONV_2D", "FULLY_CONNECTED")
    ]
    assert layers
    for op in layers:
        x, weight, bias = (network.tensors[i] for i in op.inputs)
        assert (x.dtype, weight.dtype, bias.dtype) == ("int8", "int8", "int32")
        assert x.quant is not None
        assert weight.quant is not None
        assert bias.quant is not None
        assert not weight.quant.zero_point.any()
        channels = 3 if op.kind.startswith("DEPTHWISE") else 0
        assert len(weight.quant.scale) == weight.shape[channels]
        assert weight.quant.axis in (channels, None if weight.shape[channels] == 1 else channels)
        assert weight.data is not None
        assert weight.data.min() >= -127
        assert not bias.quant.zero_point.any()
        assert np.allclose(bias.quant.scale, x.quant.scale * weight.quant.scale, rtol=1e-6)


# TVM


def tvm_first(data: bytes, x: np.ndarray) -> np.ndarray:
    """First output that a compiled TVM module gives."""
    tvm = pytest.importorskip("tvm")
    tflite = pytest.importorskip("tflite")
    if importlib.util.find_spec("tvm.relax.frontend.tflite") is None:
        pytest.skip("this TVM has no front end for tflite files")
    from tvm import relax
    from tvm.relax.frontend.tflite import from_tflite

    module = from_tflite(tflite.Model.GetRootAsModel(data, 0))
    module = module[0] if isinstance(module, tuple) else module
    machine = relax.VirtualMachine(relax.build(module, target="llvm"), tvm.cpu())
    results = [machine["main"](tvm.runtime.tensor(np.ascontiguousarray(row[None]))) for row in x]
    return np.concatenate([(r if hasattr(r, "numpy") else r[0]).numpy() for r in results])


@pytest.mark.parametrize("name", cases(FLOAT))
def test_tvm_takes_float(name: str, data_folder: Path) -> None:
    model = source(data_folder / "models" / name)
    data, _ = to_bytes(model)
    x = file_rows(data, model, rows(model, 2))
    assert db(litert(data, x, True), tvm_first(data, x)) >= 120


INT8_IN_TVM = {
    "mlperf-tiny/ad01_autoencoder_float.tflite": (),
    "mlperf-tiny/kws_dscnn_float.tflite": (),
    "mlperf-tiny/ic_resnet8_float.tflite": SLOW,
    "imagenet/mobilenet_v1_0.25_128_float.tflite": SLOW,
}


@pytest.mark.parametrize("name", cases(INT8_IN_TVM))
def test_tvm_takes_int8(name: str, data_folder: Path) -> None:
    model = in_int8(data_folder / "models" / name)
    data, _ = to_bytes(model)
    shape = (3, *(int(d) for d in model.inputs[0].shape[1:]))
    x = np.random.default_rng(1).integers(-128, 128, shape, np.int8)
    wanted, got = litert(data, x, True), tvm_first(data, x)
    assert got.dtype == wanted.dtype == np.int8
    # TVM computes in float between the integers, LiteRT in fixed point: what LiteRT's own kernels differ by, or more.
    floor = db(wanted + 128.0, litert(data, x, False) + 128.0)
    assert db(wanted + 128.0, got + 128.0) >= min(floor, 40) - 10
    assert np.array_equal(wanted.argmax(-1), got.argmax(-1))


# Vela


def by_vela(data: bytes, folder: Path, accelerator: str = "ethos-u55-128") -> list[str]:
    """Operators of the file that Vela gives back: ``ethos-u`` for the NPU's share, builtins for the CPU's."""
    if importlib.util.find_spec("ethosu") is None:
        pytest.skip("ethos-u-vela is not installed")
    (folder / "net.tflite").write_bytes(data)
    command = [sys.executable, "-m", "ethosu.vela", "--accelerator-config", accelerator]
    done = subprocess.run(
        [*command, "--output-dir", str(folder), str(folder / "net.tflite")],
        capture_output=True, text=True, timeout=300, cwd=folder,
    )  # fmt: skip
    assert done.returncode == 0, done.stdout[-2000:] + done.stderr[-2000:]
    model = schema().ModelT.InitFromPackedBuf((folder / "net_vela.tflite").read_bytes(), 0)
    names = enum_names("BuiltinOperator")
    found = []
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        kind = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        found.append(code.customCode.decode() if kind == "CUSTOM" else kind)
    return found


@pytest.mark.parametrize("name", cases(FLOAT | {DYNAMIC: (), DETECTOR: SLOW}))
def test_vela_places_everything_on_the_npu(name: str, data_folder: Path, tmp_path: Path) -> None:
    data, _ = to_bytes(in_int8(data_folder / "models" / name))
    assert set(by_vela(data, tmp_path)) == {"ethos-u"}


def test_vela_leaves_the_ends_to_the_cpu(data_folder: Path, tmp_path: Path) -> None:
    data, _ = to_bytes(in_int8(data_folder / "models" / DYNAMIC, "float32"))
    assert by_vela(data, tmp_path) == ["QUANTIZE", "ethos-u", "DEQUANTIZE"]


def test_vela_takes_imported_int8(data_folder: Path, tmp_path: Path) -> None:
    model = load_model(data_folder / "models" / "mlperf-tiny/ic_resnet8_int8.tflite")
    assert set(by_vela(to_bytes(model)[0], tmp_path, "ethos-u65-256")) == {"ethos-u"}
