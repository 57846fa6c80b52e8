"""Published ONNX files: read, simplified and compressed they still compute what the file computes."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import pytest

from dlas.compress.method import compress_model
from dlas.graph.analysis import summary
from dlas.graph.format import load_model, save_model
from dlas.graph.passes import simplified
from dlas.graph.reference import Reference

FILES = {
    "detect/fastestdet_coco.onnx": (240_301, 121_491_744),
    "detect/ultraface_rfb320.onnx": None,
    "imagenet/squeezenet1.0_deepcompressed.onnx": (1_248_424, 832_667_936),
}


def answers(path: Path, x: np.ndarray) -> dict[str, np.ndarray]:
    """What ONNX Runtime makes of the file as it is."""
    import onnxruntime as ort

    options = ort.SessionOptions()
    options.log_severity_level = 3
    session = ort.InferenceSession(str(path), options, providers=["CPUExecutionProvider"])
    names = [o.name for o in session.get_outputs()]
    return dict(zip(names, session.run(names, {session.get_inputs()[0].name: x}), strict=True))


SLOW = {"imagenet/squeezenet1.0_deepcompressed.onnx"}  # tests/real/test_every_model.py reads it in every run
NAMES = [pytest.param(n, marks=pytest.mark.slow if n in SLOW else ()) for n in FILES]


@pytest.mark.parametrize("name", NAMES)
def test_a_published_file(data_folder: Path, tmp_path: Path, name: str) -> None:
    path = data_folder / "models" / name
    model = load_model(path)
    spec = model.inputs[0]
    x = np.random.default_rng(0).standard_normal(spec.bound(1)).astype(spec.dtype)
    expected = answers(path, x)

    small = simplified(model)
    half = compress_model(model, "float16")
    save_model(half, tmp_path / "half.onnx")
    onnx.checker.check_model(str(tmp_path / "half.onnx"), full_check=True)
    for network, tolerance in ((model, 1e-5), (small, 1e-5), (load_model(tmp_path / "half.onnx"), 2e-2)):
        with Reference(network) as reference:
            found = reference.run({spec.name: x})
        assert list(found) == list(expected)
        for key, array in expected.items():
            assert np.abs(found[key] - array).max() <= tolerance * np.abs(array).max()

    facts = summary(model)
    if FILES[name] is not None:
        assert (facts["params"], facts["macs"]) == FILES[name]
    # 32 to 16 bits; what is left over is the graph
    assert summary(half)["weight_bytes"] <= 0.51 * summary(small)["weight_bytes"]
    assert "BatchNormalization" not in summary(small)["ops"]


def test_deep_compression_left_two_thirds_zeros(data_folder: Path) -> None:
    model = load_model(data_folder / "models/imagenet/squeezenet1.0_deepcompressed.onnx")
    assert summary(model)["sparsity"] == pytest.approx(0.666, abs=0.001)
    pruned = compress_model(model, "magnitude:sparsity=0.5,keep_first=false")
    # it has more zeros than asked for, so nothing changes
    assert pruned.hash == model.hash
