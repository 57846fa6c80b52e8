"""Every real tflite file: read, run beside LiteRT, written again, run again."""

from __future__ import annotations

import io
from collections import Counter
from pathlib import Path

import numpy as np
import onnxruntime as ort
import pytest

from dlas.compress.unsigned import unsigned_activations
from dlas.graph.formats.tflite import from_bytes, to_bytes
from dlas.graph.model import Model

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
FILES = {
    "gan/dcgan_disc": 4,
    "gan/dcgan_gen": 4,
    "imagenet/mobilenet_v1_0.25_128_float": 2,
    "imagenet/mobilenet_v1_0.25_128_int8": 4,
    "imagenet/mobilenet_v1_0.25_128_uint8": 4,
    "imagenet/mobilenetv2_1.0_224_int8": 2,
    "mlperf-tiny/ad01_autoencoder_float": 8,
    "mlperf-tiny/ad01_autoencoder_int8": 8,
    "mlperf-tiny/ic_resnet8_float": 16,
    "mlperf-tiny/ic_resnet8_int8": 16,
    "mlperf-tiny/kws_dscnn_int8": 8,
    "mlperf-tiny/streaming_wakeword_int8": 8,
    "mlperf-tiny/vww_mobilenetv1_96_float": 4,
    "pot/apot_mobilenetv2_4bit_imagenet": 2,
    "pot/apot_resnet20_4bit_cifar10": 8,
}
HYBRID = "mlperf-tiny/kws_dscnn_float"


def litert(data: bytes, rows: np.ndarray, reference: bool) -> np.ndarray:
    resolver = interpreter.OpResolverType
    machine = interpreter.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=resolver.BUILTIN_REF if reference else resolver.AUTO,
    )
    machine.allocate_tensors()
    (given,), (wanted,) = machine.get_input_details(), machine.get_output_details()
    out = []
    for row in rows:
        machine.set_tensor(given["index"], row[None])
        machine.invoke()
        out.append(machine.get_tensor(wanted["index"]).copy())
    return np.concatenate(out).astype(np.float64)


def onnxruntime_rows(model, rows: np.ndarray) -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    (spec,) = model.inputs
    return np.concatenate([session.run(None, {spec.name: row[None]})[0] for row in rows]).astype(np.float64)


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(wanted - got).sum()
    return float("inf") if noise == 0 else 10 * np.log10(np.square(wanted).sum() / noise)


def cifar(data_folder: Path, count: int) -> np.ndarray:
    from PIL import Image
    from pyarrow import parquet

    table = parquet.ParquetFile(data_folder / "cifar10-test.parquet").read_row_group(0, columns=["image"])
    images = table["image"][:count].to_pylist()
    return np.stack([np.asarray(Image.open(io.BytesIO(i["bytes"])).convert("RGB")) for i in images])


def rows_for(model, name: str, count: int, data_folder: Path) -> np.ndarray:
    (spec,) = model.inputs
    shape = (count, *spec.shape[1:])
    rng = np.random.default_rng(11)
    if "ic_resnet8" in name:
        images = cifar(data_folder, count)
        return (
            images.astype(np.float32)
            if spec.dtype == "float32"
            else (images.astype(int) - 128).astype(np.int8)
        )
    if spec.dtype == "float32":
        return rng.uniform(-1 if "v1_0.25" in name else 0, 1, shape).astype(np.float32)
    limits = np.iinfo(spec.dtype)
    return rng.integers(limits.min, limits.max + 1, shape).astype(spec.dtype)


def step(model) -> float:
    """One level of a quantised output, in its own dtype; half a level of int8 over -1..1 when it comes as float."""
    return 1.0 if model.outputs[0].dtype != "float32" else 1 / 128


def file(data_folder: Path, name: str) -> bytes:
    return (data_folder / "models" / f"{name}.tflite").read_bytes()


def test_all_files_are_covered(data_folder: Path) -> None:
    models = data_folder / "models"
    found = {str(p.relative_to(models).with_suffix("")) for p in models.rglob("*.tflite")}
    assert {*FILES, HYBRID} <= found
    for name in found:
        from_bytes(file(data_folder, name), name)


@pytest.mark.parametrize("name", FILES)
def test_read_run_write_run(name: str, data_folder: Path) -> None:
    data = file(data_folder, name)
    model = from_bytes(data, name)
    machine = interpreter.Interpreter(model_content=data)
    for specs, details in (
        (model.inputs, machine.get_input_details()),
        (model.outputs, machine.get_output_details()),
    ):
        assert [s.name for s in specs] == [d["name"] for d in details]
        assert [s.dtype for s in specs] == [np.dtype(d["dtype"]).name for d in details]
        assert [s.bound(1) for s in specs] == [tuple(d["shape"].tolist()) for d in details]
    rows = rows_for(model, name, FILES[name], data_folder)
    reference, xnnpack = litert(data, rows, True), litert(data, rows, False)
    got = onnxruntime_rows(model, rows)
    floor = sqnr(reference, xnnpack)  # what LiteRT's own two sets of kernels differ by
    if any(a.dtype in (np.int8, np.uint8) and a.ndim > 1 for a in model.initializers.values()):
        assert max(sqnr(reference, got), sqnr(xnnpack, got)) >= min(floor, 120)
        flips = (reference.argmax(-1) != xnnpack.argmax(-1)).sum()
        assert (xnnpack.argmax(-1) != got.argmax(-1)).sum() <= max(flips, 1)
    else:
        assert sqnr(reference, got) >= min(120, floor)
    written, notes = to_bytes(model)
    assert notes == ()
    assert np.array_equal(litert(written, rows, True), reference)
    again = litert(written, rows, False)
    assert sqnr(xnnpack, again) >= min(floor, 120) or np.abs(xnnpack - again).max() <= step(model)


@pytest.mark.parametrize("name", ["mlperf-tiny/ic_resnet8_int8", "imagenet/mobilenet_v1_0.25_128_float"])
def test_one_transpose_at_the_input(name: str, data_folder: Path) -> None:
    kinds = [n.op_type for n in from_bytes(file(data_folder, name), name).ir.graph]
    assert kinds.count("Transpose") == 1
    assert "Conv" not in kinds[: kinds.index("Transpose")]


def test_dynamic_range_stays_dynamic_range(data_folder: Path) -> None:
    data = file(data_folder, HYBRID)
    model = from_bytes(data, "kws")
    assert any("dynamic-range" in n for n in model.history[-1].notes)
    rows = np.random.default_rng(3).normal(0, 5, (8, 49, 10, 1)).astype(np.float32)
    got = onnxruntime_rows(model, rows)
    assert sqnr(litert(data, rows, False), got) > 20  # LiteRT rounds the activations
    assert any(a.dtype == np.int8 and a.ndim == 4 for a in model.initializers.values())
    written, notes = to_bytes(model)
    assert any("rounds the activations" in n for n in notes)
    assert abs(len(written) / len(data) - 1) < 0.1
    for reference in (True, False):
        assert np.array_equal(litert(written, rows, reference), litert(data, rows, reference))
    again, _ = to_bytes(from_bytes(written, "kws"))
    assert np.array_equal(litert(again, rows, True), litert(data, rows, True))


def test_onnxruntime_fuses_the_integer_network(data_folder: Path, tmp_path: Path) -> None:
    import onnx

    graph = from_bytes(file(data_folder, "mlperf-tiny/ic_resnet8_int8"), "ic").editable()
    unsigned_activations(graph)  # what x86 kernels want; every value stays the same
    model = Model(graph)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.optimized_model_filepath = str(tmp_path / "fused.onnx")
    ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    kinds = Counter(n.op_type for n in onnx.load(tmp_path / "fused.onnx").graph.node)
    assert (kinds["QLinearConv"], kinds["QLinearAdd"], kinds["QGemm"]) == (9, 3, 1)
    assert not {"Conv", "Add", "Gemm"} & set(kinds)


@pytest.mark.parametrize("step", [997, 3001])
def test_truncated_real_file_is_refused(step: int, data_folder: Path) -> None:
    from dlas.core.errors import ModelError

    data = file(data_folder, "mlperf-tiny/kws_dscnn_int8")
    for end in range(0, len(data) - 64, step):
        with pytest.raises(ModelError):
            from_bytes(data[:end], "kws")
