"""Old opsets are brought up to date without dragging the weights through the converter."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnxruntime
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.graph.format import load_model
from dlas.graph.reference import predict

RNG = np.random.default_rng(9)
WEIGHTS = {
    "small": RNG.standard_normal(8).astype(np.float32),
    "large": RNG.standard_normal((8, 300)).astype(np.float32),
    "shape": np.array([0, 8, 1], np.int64),
    "second": RNG.standard_normal((300, 8)).astype(np.float32),
}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    """Opset 9: Gemm, Reshape, Squeeze by attribute, Clip by attributes, weights of all sizes among the inputs."""
    nodes = [
        helper.make_node("Gemm", ["x", "second", "small"], ["a"]),
        helper.make_node("Clip", ["a"], ["b"], min=-1.0, max=1.0),
        helper.make_node("Reshape", ["b", "shape"], ["c"]),
        helper.make_node("Squeeze", ["c"], ["d"], axes=[2]),
        helper.make_node("MatMul", ["d", "large"], ["y"]),
    ]
    ends = [helper.make_tensor_value_info(n, TensorProto.FLOAT, [2, 300]) for n in ("x", "y")]
    weights = [numpy_helper.from_array(a, n) for n, a in WEIGHTS.items()]
    inputs = [helper.make_tensor_value_info(t.name, t.data_type, list(t.dims)) for t in weights]
    graph = helper.make_graph(nodes, "old", [ends[0], *inputs], ends[1:], weights)
    onnx.save(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 9)], ir_version=4),
        tmp_path / "old.onnx",
    )
    return tmp_path / "old.onnx"


def test_weights_and_results_survive(old: Path) -> None:
    model = load_model(old)
    found = model.initializers
    assert {n for n in found if n in WEIGHTS} == set(WEIGHTS)
    for name, array in WEIGHTS.items():
        np.testing.assert_array_equal(found[name], array)
    assert [s.name for s in model.inputs] == ["x"]
    x = RNG.standard_normal((2, 300)).astype(np.float32)
    session = onnxruntime.InferenceSession(str(old), providers=["CPUExecutionProvider"])
    np.testing.assert_allclose(predict(model, x), session.run(None, {"x": x})[0], rtol=1e-5, atol=1e-5)


def test_the_converter_sees_no_large_weight(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    seen: list[list[str]] = []
    original = onnx.version_converter.convert_version

    def noted(proto: onnx.ModelProto, target: int) -> onnx.ModelProto:
        seen.append([t.name for t in proto.graph.initializer])
        return original(proto, target)

    monkeypatch.setattr(onnx.version_converter, "convert_version", noted)
    load_model(old)
    assert seen == [["small", "shape"]]
