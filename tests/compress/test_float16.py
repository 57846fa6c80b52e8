"""Half precision: what is stored, what is computed, what happens at the edges of the range."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra import numpy as hnp
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model, methods
from dlas.core.errors import ModelError, OptionError, UnsupportedError
from dlas.graph.analysis import layers, summary
from dlas.graph.model import Model
from dlas.graph.passes import simplified
from dlas.graph.reference import intermediates, predict
from dlas.testing.methods import MethodSuite
from dlas.testing.models import images, residual, residual_nhwc, residual_quantized

BOTH = ["float16", "float16:arithmetic=float32"]


class TestFloat16Weights(MethodSuite):
    method = "float16:arithmetic=float32"


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    shape: list[Any],
    outputs: tuple[str, ...] = ("y",),
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def valid(model: Model) -> Model:
    onnx.checker.check_model(model.to_proto(), full_check=True)
    return model


@pytest.mark.parametrize("make", [residual, residual_nhwc])
@pytest.mark.parametrize("choice", BOTH)
def test_the_answer_stays_within_half_precision(make: Any, choice: str) -> None:
    model = make()
    x = images(6, nhwc="nhwc" in model.name)
    half = valid(compress_model(model, choice))
    assert half.inputs == model.inputs
    assert half.outputs == model.outputs
    expected = predict(model, x)
    error = np.abs(predict(half, x) - expected).max() / np.abs(expected).max()
    assert 0 < error < 2e-3


def test_arithmetic_in_half_precision() -> None:
    half = compress_model(residual(), "float16")
    assert {a.dtype.name for a in half.initializers.values()} == {"float16"}
    inside = intermediates(half, {"image": images(1)})
    assert {a.dtype.name for n, a in inside.items() if n != "logits"} == {"float16"}
    assert inside["logits"].dtype == np.float32
    assert summary(half)["kind"] == "float16"
    ops = [n.op_type for n in half.ir.graph]
    assert ops.count("Cast") == 2


def test_weights_only() -> None:
    half = compress_model(residual(), "float16:arithmetic=float32")
    inside = intermediates(half, {"image": images(1)})
    assert inside["relu1"].dtype == np.float32
    assert summary(half)["kind"] == "float16 weights"
    expected = simplified(residual()).initializers["w2"].astype(np.float16)
    np.testing.assert_array_equal(half.initializers["w2"], expected)
    assert half.initializers["b3"].dtype == np.float32
    # Simplifying again must not bring the float32 weights back.
    assert summary(simplified(half))["kind"] == "float16 weights"


@pytest.mark.parametrize("choice", BOTH)
def test_layer_names_stay(choice: str) -> None:
    names = {layer.name for layer in layers(simplified(residual()))}
    assert names <= {layer.name for layer in layers(compress_model(residual(), choice))}


@settings(max_examples=40, deadline=None)
@given(hnp.arrays(np.float32, (16, 16), elements=st.floats(width=32, allow_nan=False, allow_infinity=False)))
def test_values_are_rounded_clamped_and_counted(w: np.ndarray) -> None:
    model = model_of([helper.make_node("MatMul", ["x", "w"], ["y"], name="m")], {"w": w}, ["N", 16])
    half = compress_model(model, "float16:arithmetic=float32")
    found = half.initializers["w"].astype(np.float64)
    wide = w.astype(np.float64)
    inside = np.abs(wide) <= 65504
    np.testing.assert_array_less(
        np.abs(found - wide)[inside], np.maximum(np.abs(wide) * 2**-11, 2**-24)[inside] * 1.0001 + 1e-300
    )
    np.testing.assert_array_equal(found[~inside], np.sign(wide[~inside]) * 65504)
    np.testing.assert_array_equal(found == 0, np.abs(wide) <= 2**-25)
    notes = " ".join(half.history[-1].notes)
    over = int((~inside).sum())
    under = int(((np.abs(wide) <= 2**-25) & (wide != 0)).sum())
    assert (f"{over} values beyond" in notes) == (over > 0)
    assert (f"{under} weights nearer to 0" in notes) == (under > 0)


def test_a_tiny_divisor_does_not_become_zero() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Div", ["h", "tiny"], ["y"]),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "tiny": np.array(1e-12, np.float32)}
    half = compress_model(model_of(nodes, weights, ["N", 4]), "float16")
    assert half.initializers["tiny"] == np.float16(2**-24)
    assert "1 constants nearer to 0" in " ".join(half.history[-1].notes)


def test_a_single_infinity_stays() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"]),
        helper.make_node("Min", ["h", "top"], ["y"]),
    ]
    weights = {"w": np.eye(4, dtype=np.float32), "top": np.array(np.inf, np.float32)}
    half = compress_model(model_of(nodes, weights, ["N", 4]), "float16")
    x = np.arange(4, dtype=np.float32)[None]
    np.testing.assert_array_equal(predict(half, x), x)


def test_operators_defined_for_float32_only_keep_it() -> None:
    # The sizes that Resize takes are float32 by definition; Cast and ConstantOfShape name a dtype.
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="conv", kernel_shape=[1, 1]),
        helper.make_node("Resize", ["c", "", "scales"], ["r"], name="up", mode="nearest"),
        helper.make_node("Shape", ["r"], ["s"]),
        helper.make_node("ConstantOfShape", ["s"], ["k"], value=helper.make_tensor("v", 1, [1], [0.5])),
        helper.make_node("Cast", ["s"], ["f"], to=TensorProto.FLOAT),
        helper.make_node("ReduceSum", ["f"], ["t"], keepdims=0),
        helper.make_node("Add", ["r", "k"], ["a"]),
        helper.make_node("Add", ["a", "t"], ["y"]),
    ]
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((4, 3, 1, 1)).astype(np.float32),
        "scales": np.array([1, 1, 2, 2], np.float32),
    }
    model = model_of(nodes, weights, ["N", 3, "H", "W"])
    half = valid(compress_model(model, "float16"))
    x = rng.standard_normal((2, 3, 4, 4)).astype(np.float32)
    np.testing.assert_allclose(predict(half, x), predict(model, x), rtol=2e-3)
    assert half.initializers["scales"].dtype == np.float32


def test_inputs_and_outputs_used_several_times() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["y"], name="a"),
        helper.make_node("Add", ["y", "x"], ["z"], name="b"),
        helper.make_node("MatMul", ["z", "w"], ["q"], name="c"),
    ]
    model = model_of(nodes, {"w": np.eye(4, dtype=np.float32) / 2}, ["N", 4], ("y", "q"))
    half = valid(compress_model(model, "float16"))
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    np.testing.assert_array_equal(predict(half, x), x / 2)
    assert list(half.initializers) == ["w"]
    assert [o.name for o in half.outputs] == ["y", "q"]


def test_recurrent_networks_run() -> None:
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.standard_normal((1, 12, 5)).astype(np.float32) * 0.3,
        "r": rng.standard_normal((1, 12, 3)).astype(np.float32) * 0.3,
    }
    node = helper.make_node("LSTM", ["x", "w", "r"], ["y"], name="cell", hidden_size=3)
    model = model_of([node], weights, [4, 2, 5])
    x = rng.standard_normal((4, 2, 5)).astype(np.float32)
    for choice in BOTH:
        half = valid(compress_model(model, choice))
        assert np.abs(predict(half, x) - predict(model, x)).max() < 2e-3


def test_plan_lists_bytes_and_changes_nothing() -> None:
    model = residual()
    before = model.hash
    plan = methods.get("float16")().plan(model)
    assert model.hash == before
    sizes = {c.layer: (c.before, c.after) for c in plan.changes}
    assert sizes["logits_Gemm"] == ("360 bytes", "180 bytes")
    assert plan.expected["weight_bytes"].value * 2 == plan.expected["weight_bytes_before"].value
    assert summary(compress_model(model, "float16"))["weight_bytes"] == plan.expected["weight_bytes"].value


def test_history_and_torch_module() -> None:
    from dataclasses import replace

    model = replace(residual(), torch_module=object())
    half = compress_model(model, "float16:arithmetic=float32")
    assert half.torch_module is None
    assert half.history[-1].action == "float16"
    assert half.history[-1].options == {"arithmetic": "float32"}


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="quantised already"):
        compress_model(residual_quantized(), "float16")
    with pytest.raises(UnsupportedError, match="no float32 weights"):
        compress_model(compress_model(residual(), "float16"), "float16")
    with pytest.raises(ModelError, match="'fc_w' has"):
        compress_model(residual(nan=True), "float16")
    with pytest.raises(OptionError, match="float16, float32"):
        compress_model(residual(), "float16:arithmetic=int8")


def test_operators_without_a_known_half_form_are_named() -> None:
    node = helper.make_node("Gelu", ["h"], ["y"], domain="com.microsoft", name="g")
    proto = helper.make_model(
        helper.make_graph(
            [helper.make_node("MatMul", ["x", "w"], ["h"]), node],
            "g",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 16])],
            [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 16])],
            [numpy_helper.from_array(np.eye(16, dtype=np.float32), "w")],
        ),
        opset_imports=[helper.make_opsetid("", 18), helper.make_opsetid("com.microsoft", 1)],
        ir_version=9,
    )
    model = Model.from_proto(proto)
    with pytest.raises(UnsupportedError, match=r"com\.microsoft::Gelu"):
        compress_model(model, "float16")
    x = np.ones((1, 16), np.float32)
    weights_only = compress_model(model, "float16:arithmetic=float32")
    np.testing.assert_array_equal(predict(weights_only, x), predict(model, x))
