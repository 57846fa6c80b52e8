"""Dynamic range: what is stored, how near the answers stay, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model, methods
from dlas.core.errors import ModelError, OptionError, UnsupportedError
from dlas.graph.analysis import summary
from dlas.graph.model import Model
from dlas.graph.passes import simplified
from dlas.graph.reference import predict
from dlas.testing.methods import MethodSuite
from dlas.testing.models import images, residual, residual_nhwc, residual_quantized

EVERY = "dynamic-int8:min_elements=0"


class TestDynamicInt8(MethodSuite):
    method = EVERY


class TestDynamicInt8PerTensor(MethodSuite):
    method = "dynamic-int8:granularity=per-tensor,min_elements=64"


def codes(model: Model) -> dict[str, np.ndarray]:
    return {n: a for n, a in model.initializers.items() if a.dtype == np.int8 and a.ndim > 1}


@pytest.mark.parametrize("make", [residual, residual_nhwc])
def test_the_answer_stays_near(make) -> None:
    model = make()
    x = images(6, nhwc="nhwc" in model.name)
    small = compress_model(model, EVERY)
    onnx.checker.check_model(small.to_proto(), full_check=True)
    expected = predict(model, x)
    error = np.abs(predict(small, x) - expected).max() / np.abs(expected).max()
    assert 0 < error < 0.03
    assert {s.dtype for s in (*small.inputs, *small.outputs)} == {"float32"}


def test_per_channel_is_nearer_than_per_tensor() -> None:
    model, x = residual(), images(8)
    expected = predict(model, x)
    errors = [
        np.linalg.norm(predict(compress_model(model, f"{EVERY},granularity={g}"), x) - expected)
        for g in ("per-channel", "per-tensor")
    ]
    assert errors[0] < errors[1]


def test_codes_are_symmetric_and_scales_one_per_channel() -> None:
    small = compress_model(residual(), EVERY)
    found = codes(small)
    assert len(found) == 4
    assert min(int(a.min()) for a in found.values()) >= -127
    for node in small.ir.graph:
        if node.op_type != "DequantizeLinear":
            continue
        stored, scale, zero = (v.const_value.numpy() for v in node.inputs)  # type: ignore[union-attr]
        assert scale.shape == zero.shape == (stored.shape[node.attributes["axis"].value],)
        assert not zero.any()
        others = tuple(i for i in range(stored.ndim) if i != node.attributes["axis"].value)
        assert (np.abs(stored.astype(int)).max(others) == 127).all()


def test_small_weights_stay_float() -> None:
    wide = compress_model(residual(), "dynamic-int8:min_elements=200")
    assert sorted(a.size for a in codes(wide).values()) == [216, 576]
    with pytest.raises(UnsupportedError, match="1024 values"):
        compress_model(residual(), "dynamic-int8")


def test_plan_tells_the_bytes() -> None:
    model = residual()
    plan = methods.get("dynamic-int8")(min_elements=0).plan(model)
    before, after = (plan.expected[k].value for k in ("weight_bytes_before", "weight_bytes"))
    assert before == sum(a.nbytes for a in simplified(model).initializers.values())
    real = sum(a.nbytes for a in compress_model(model, EVERY).initializers.values())
    assert abs(after - real) <= 8
    assert len(plan.changes) == 4


def test_kind_is_told() -> None:
    assert "int8" in str(summary(compress_model(residual(), EVERY))["kind"])


def recurrent(op: str, directions: int = 1) -> Model:
    gates = {"LSTM": 4, "GRU": 3}[op]
    rng = np.random.default_rng(1)
    weights = {
        "w": rng.standard_normal((directions, gates * 6, 5)).astype(np.float32),
        "r": rng.standard_normal((directions, gates * 6, 6)).astype(np.float32) / 3,
    }
    way = "bidirectional" if directions == 2 else "forward"
    node = helper.make_node(op, ["x", "w", "r"], ["y"], hidden_size=6, direction=way)
    graph = helper.make_graph(
        [node], "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [7, 1, 5])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [7, directions, 1, 6])],
        [numpy_helper.from_array(v, k) for k, v in weights.items()],
    )  # fmt: skip
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )


@pytest.mark.parametrize("op", ["LSTM", "GRU"])
@pytest.mark.parametrize("directions", [1, 2])
def test_recurrent_layers_have_one_scale_per_gate(op: str, directions: int) -> None:
    model = recurrent(op, directions)
    small = compress_model(model, EVERY)
    scales = [a for n, a in small.initializers.items() if n.endswith("_scale")]
    assert [len(np.unique(a)) for a in scales] == [{"LSTM": 4, "GRU": 3}[op]] * 2
    x = np.random.default_rng(0).standard_normal((7, 1, 5)).astype(np.float32)
    from dlas.graph.reference import Reference

    with Reference(model) as a, Reference(small) as b:
        first, second = a.run({"x": x})["y"], b.run({"x": x})["y"]
    assert 0 < np.abs(first - second).max() < 0.05


def test_refusals() -> None:
    with pytest.raises(UnsupportedError, match="quantised already"):
        compress_model(residual_quantized(), EVERY)
    with pytest.raises(ModelError, match="NaN"):
        compress_model(residual(nan=True), EVERY)
    with pytest.raises(OptionError, match="per-channel"):
        methods.get("dynamic-int8")(granularity="per-row")
    with pytest.raises(OptionError, match="min_elements"):
        methods.get("dynamic-int8")(min_elements=-1)


@pytest.mark.parametrize("kept", [False, True])
def test_the_plan_counts_a_shared_weight_once(kept: bool) -> None:
    nodes = [helper.make_node("MatMul", ["x", "w"], ["a"]), helper.make_node("Relu", ["a"], ["b"]),
             helper.make_node("MatMul", ["b", "w"], ["c"]), helper.make_node("Relu", ["c"], ["d"]),
             helper.make_node("MatMul", ["w", "e"], ["f"]), helper.make_node("Transpose", ["d"], ["e"]),
             helper.make_node("Add", ["f", "w" if kept else "f"], ["y"])]  # fmt: skip
    weight = np.random.default_rng(0).standard_normal((64, 64)).astype(np.float32)
    graph = helper.make_graph(
        [nodes[i] for i in (0, 1, 2, 3, 5, 4, 6)],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 64])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(weight, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = Model.from_proto(onnx.shape_inference.infer_shapes(proto))
    method = methods.get("dynamic-int8")()
    stored = sum(a.nbytes for a in method.apply(model).initializers.values())
    # Codes per column and in one scale for the left factor; the float values stay when a sum reads them.
    assert method.plan(model).expected["weight_bytes"].value == stored
    assert (stored > 4 * weight.size) == kept


def test_layers_that_stay_float_are_named() -> None:
    method = methods.get("dynamic-int8")(min_elements=300)
    (note,) = [n for n in method.plan(residual()).notes if "values stay" in n]
    small = method.apply(residual())
    assert note in small.history[-1].notes
    assert note.startswith("weights of fewer than 300 values stay float (option min_elements): ")
    named = dict(part[:-1].split(" (") for part in note.partition(": ")[2].split(", "))
    floats = {
        str(n.name): n.inputs[1].const_value.size  # type: ignore[union-attr]
        for n in small.ir.graph
        if n.op_type in ("Conv", "Gemm") and n.inputs[1].const_value is not None  # type: ignore[union-attr]
    }
    assert {name: int(size) for name, size in named.items()} == floats
    assert len(floats) < 4
    assert not [
        n for n in methods.get("dynamic-int8")(min_elements=0).plan(residual()).notes if "values stay" in n
    ]
