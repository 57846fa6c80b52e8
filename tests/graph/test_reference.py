"""The yardstick: ONNX Runtime against the ONNX reference evaluator, and its behaviour on bad input."""

from __future__ import annotations

import ml_dtypes
import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlas.core.errors import ModelError, OptionError, ShapeError, UnknownNameError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.graph.reference import LEVELS, Reference, intermediates, predict
from dlas.testing.models import images, residual, residual_quantized


def two_inputs() -> Model:
    graph = helper.make_graph(
        [helper.make_node("Add", ["a", "b"], ["c"]), helper.make_node("Neg", ["a"], ["d"])],
        "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "ab"],
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 2]) for n in "cd"],
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )


@pytest.mark.parametrize("level", ["all", "basic", "disable"])
def test_it_agrees_with_the_onnx_reference(level: str) -> None:
    model, x = residual(), images(4)
    expected = ReferenceEvaluator(model.to_proto()).run(None, {"image": x})[0]
    with Reference(model, level=level) as reference:
        found = reference.run({"image": x})
    assert list(found) == ["logits"]
    np.testing.assert_allclose(found["logits"], expected, rtol=1e-4, atol=1e-5)


def test_outputs_come_by_name() -> None:
    a, b = np.ones((3, 2), np.float32), np.full((3, 2), 2, np.float32)
    with Reference(two_inputs()) as reference:
        found = reference.run({"b": b, "a": a})
    np.testing.assert_array_equal(found["c"], a + b)
    np.testing.assert_array_equal(found["d"], -a)


@pytest.mark.parametrize("batch_size", [1, 3, 7, 100])
def test_predict_returns_all_rows_in_order(batch_size: int) -> None:
    x = images(7)
    expected = np.concatenate([predict(residual(), row[None]) for row in x])
    found = predict(residual(), x, batch_size=batch_size)
    assert found.shape == (7, 10)
    np.testing.assert_allclose(found, expected, rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize("fixed", [1, 3])
def test_predict_loops_over_a_fixed_batch(fixed: int) -> None:
    x = images(7)
    found = predict(bind_batch(residual(), fixed), x)
    np.testing.assert_allclose(found, predict(residual(), x), rtol=1e-5, atol=1e-6)


def test_inputs_that_do_not_fit_are_refused() -> None:
    with Reference(residual()) as reference:
        for inputs in ({}, {"image": images(1).astype(np.float64)}, {"image": images(1)[:, :2]}):
            with pytest.raises(ShapeError):
                reference.run(inputs)
    with pytest.raises(ShapeError, match="no rows"):
        predict(residual(), images(1)[:0])
    with pytest.raises(UnsupportedError, match="2 inputs"):
        predict(two_inputs(), np.ones((1, 2), np.float32))


def test_options_out_of_range_are_refused() -> None:
    with pytest.raises(OptionError, match="'most'"):
        Reference(residual(), level="most")
    with pytest.raises(OptionError, match="threads"):
        Reference(residual(), threads=0)
    with pytest.raises(OptionError, match="batch_size"):
        predict(residual(), images(1), batch_size=0)


def test_a_closed_reference_says_so() -> None:
    reference = Reference(residual())
    reference.close()
    reference.close()
    with pytest.raises(ModelError, match="is closed"):
        reference.run({"image": images(1)})


def single(op: str, kind: int, weight: np.ndarray, domain: str = "") -> Model:
    graph = helper.make_graph(
        [helper.make_node(op, ["x", "w"], ["y"], name="node", domain=domain)],
        "g",
        [helper.make_tensor_value_info("x", kind, ["N", 4])],
        [helper.make_tensor_value_info("y", kind, ["N", 4])],
        [numpy_helper.from_array(weight, "w")],
    )
    opsets = [helper.make_opsetid("", 18), helper.make_opsetid("odd", 1)]
    return Model.from_proto(helper.make_model(graph, opset_imports=opsets, ir_version=9))


def test_errors_of_the_runtime_become_one_line() -> None:
    cases = [
        (single("Pow", TensorProto.BFLOAT16, np.ones(4, ml_dtypes.bfloat16)), UnsupportedError),
        (single("Strange", TensorProto.FLOAT, np.ones(4, np.float32), "odd"), ModelError),
    ]
    for model, kind in cases:
        with pytest.raises(kind, match="ONNX Runtime") as caught:
            Reference(model)
        assert "\n" not in str(caught.value)


def test_a_failure_while_running_becomes_one_line() -> None:
    model = single("MatMul", TensorProto.FLOAT, np.ones((4, 4), np.float32))
    proto = model.to_proto()
    proto.graph.input[0].CopyFrom(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", "M"]))
    with Reference(Model.from_proto(proto)) as reference, pytest.raises(ModelError, match="MatMul"):
        reference.run({"x": np.ones((2, 3), np.float32)})


def test_intermediates_are_those_of_the_onnx_reference() -> None:
    model, x = residual(), images(2)
    names = ["bn1", "relu2", "pool"]
    proto = model.to_proto()
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    expected = ReferenceEvaluator(proto).run(None, {"image": x})[1:]
    found = intermediates(model, {"image": x}, names)
    assert list(found) == names
    for name, array in zip(names, expected, strict=True):
        np.testing.assert_allclose(found[name], array, rtol=1e-4, atol=1e-5)


def test_all_intermediates_include_quantised_tensors() -> None:
    model, x = residual_quantized(), images(2)
    found = intermediates(model, {"image": x})
    assert set(found) == {o.name for n in model.ir.graph for o in n.outputs}
    assert found["relu1_q"].dtype == np.int8
    scale, zero = (model.initializers[f"relu1_{k}"] for k in ("scale", "zero"))
    np.testing.assert_allclose(
        found["relu1_dq"], (found["relu1_q"].astype(np.float32) - zero) * scale, rtol=1e-6
    )
    np.testing.assert_array_equal(found["logits"], predict(model, x, level="disable"))


def test_inputs_outputs_and_weights_can_be_asked_for_too() -> None:
    x = images(1)
    found = intermediates(residual(), {"image": x}, ["image", "fc_b", "logits"])
    np.testing.assert_array_equal(found["image"], x)
    assert found["fc_b"].shape == (10,)
    assert found["logits"].shape == (1, 10)


def test_an_unknown_tensor_is_refused_with_the_closest_name() -> None:
    with pytest.raises(UnknownNameError, match="'relu1'"):
        intermediates(residual(), {"image": images(1)}, ["relu_1"])


def test_activations_are_not_rounded_where_weights_are_dequantised() -> None:
    rng = np.random.default_rng(0)
    weights = rng.integers(-127, 128, (256, 128)).astype(np.int8)
    graph = helper.make_graph(
        [
            helper.make_node("DequantizeLinear", ["w", "s"], ["real"]),
            helper.make_node("MatMul", ["x", "real"], ["y"]),
        ],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 256])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 128])],
        [onnx.numpy_helper.from_array(weights, "w"), onnx.numpy_helper.from_array(np.float32(0.01), "s")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    x = rng.standard_normal((4, 256)).astype(np.float32)
    wanted = x.astype(np.float64) @ (weights * np.float64(np.float32(0.01)))
    for level in LEVELS:
        np.testing.assert_allclose(predict(Model.from_proto(proto), x, level=level), wanted, atol=1e-4)
