"""Graph passes keep what the network computes; independent NumPy formulas say what that is."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model
from dlas.graph.passes import (
    FOLD_OUTPUT_ELEMENTS,
    bind_batch,
    fold_batch_norm,
    fold_constants,
    remove_identities,
    simplified,
)
from dlas.graph.reference import predict
from dlas.testing.models import images, residual, residual_half, residual_nhwc, residual_quantized


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    input_shape: list[Any],
    outputs: dict[str, int] | None = None,
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, input_shape)],
        [
            helper.make_tensor_value_info(name, TensorProto.FLOAT, [f"d{i}" for i in range(rank)])
            for name, rank in (outputs or {"y": 2}).items()
        ],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def evaluate(model: Model, x: np.ndarray) -> list[np.ndarray]:
    return [np.asarray(o) for o in ReferenceEvaluator(model.to_proto()).run(None, {"x": x})]


def ops(model: Model) -> list[str]:
    return [node.op_type for node in model.ir.graph]


def folded(model: Model) -> Model:
    graph = model.editable()
    fold_batch_norm(graph)
    return Model(graph, model.name)


def norm_weights(rng: np.random.Generator, channels: int) -> dict[str, np.ndarray]:
    return {
        "gamma": rng.standard_normal(channels).astype(np.float32),
        "beta": rng.standard_normal(channels).astype(np.float32),
        "mean": rng.standard_normal(channels).astype(np.float32),
        "var": rng.uniform(0.1, 3, channels).astype(np.float32),
    }


def normalise(y: np.ndarray, w: dict[str, np.ndarray], epsilon: float) -> np.ndarray:
    shape = (1, -1, *[1] * (y.ndim - 2))
    g, b, m, v = (w[k].astype(np.float64).reshape(shape) for k in ("gamma", "beta", "mean", "var"))
    return g * (y - m) / np.sqrt(v + epsilon) + b


NORM = ["gamma", "beta", "mean", "var"]


def numpy_conv(x: np.ndarray, w: np.ndarray, group: int) -> np.ndarray:
    """Valid convolution, stride 1: (N, C, H, W) with (M, C / group, k, k)."""
    n, _, height, width = x.shape
    m, per, k, _ = w.shape
    y = np.zeros((n, m, height - k + 1, width - k + 1))
    for out in range(m):
        first = out // (m // group) * per
        for dy in range(k):
            for dx in range(k):
                patch = x[:, first : first + per, dy : dy + y.shape[2], dx : dx + y.shape[3]]
                y[:, out] += np.einsum("nchw,c->nhw", patch, w[out, :, dy, dx])
    return y


@settings(max_examples=25, deadline=None)
@given(
    seed=st.integers(0, 2**31),
    group=st.sampled_from([1, 2, 4]),
    kernel=st.integers(1, 3),
    bias=st.booleans(),
    epsilon=st.sampled_from([1e-5, 1e-3, 0.1]),
)
def test_batch_norm_after_conv(seed: int, group: int, kernel: int, bias: bool, epsilon: float) -> None:
    rng = np.random.default_rng(seed)
    weights = {"w": rng.standard_normal((8, 4 // group, kernel, kernel)).astype(np.float32)}
    if bias:
        weights["b"] = rng.standard_normal(8).astype(np.float32)
    weights |= norm_weights(rng, 8)
    nodes = [
        helper.make_node("Conv", ["x", "w", *(["b"] if bias else [])], ["c"], name="conv", group=group),
        helper.make_node("BatchNormalization", ["c", *NORM], ["y"], name="bn", epsilon=epsilon),
    ]
    model = model_of(nodes, weights, ["N", 4, 5, 5], {"y": 4})
    after = folded(model)
    x = rng.standard_normal((2, 4, 5, 5)).astype(np.float32)
    plain = numpy_conv(x, weights["w"], group) + (weights["b"].reshape(1, -1, 1, 1) if bias else 0)
    expected = normalise(plain, weights, epsilon)
    assert ops(after) == ["Conv"]
    assert after.outputs[0].name == "y"
    np.testing.assert_allclose(evaluate(after, x)[0], expected, rtol=1e-5, atol=1e-5 * abs(expected).max())


@pytest.mark.parametrize("group", [1, 2])
def test_batch_norm_after_transposed_conv(group: int) -> None:
    rng = np.random.default_rng(group)
    weights = {"w": rng.standard_normal((4, 6 // group, 2, 2)).astype(np.float32), **norm_weights(rng, 6)}
    nodes = [
        helper.make_node("ConvTranspose", ["x", "w"], ["c"], name="up", strides=[2, 2], group=group),
        helper.make_node("BatchNormalization", ["c", *NORM], ["y"], name="bn"),
    ]
    after = folded(model_of(nodes, weights, ["N", 4, 3, 3], {"y": 4}))
    x = rng.standard_normal((2, 4, 3, 3)).astype(np.float32)
    # kernel = stride, so the output tiles do not overlap
    split = x.reshape(2, group, 4 // group, 3, 3)
    kernels = weights["w"].reshape(group, 4 // group, 6 // group, 2, 2)
    plain = np.einsum("ngchw,gcmab->ngmhawb", split, kernels).reshape(2, 6, 6, 6)
    assert ops(after) == ["ConvTranspose"]
    # (the ONNX reference evaluator splits grouped inputs wrongly, so ONNX Runtime computes here)
    np.testing.assert_allclose(
        predict(after, x), normalise(plain, weights, 1e-5), rtol=1e-4, atol=1e-5 * abs(plain).max()
    )


@pytest.mark.parametrize("transposed", [0, 1])
@pytest.mark.parametrize("bias", [None, (), (1,), (5,), (1, 5)])
def test_batch_norm_after_gemm(transposed: int, bias: tuple[int, ...] | None) -> None:
    rng = np.random.default_rng(7)
    weights = {"w": rng.standard_normal((5, 3) if transposed else (3, 5)).astype(np.float32)}
    if bias is not None:
        weights["b"] = rng.standard_normal(bias).astype(np.float32)
    weights |= norm_weights(rng, 5)
    inputs = ["x", "w", *(["b"] if bias is not None else [])]
    nodes = [
        helper.make_node("Gemm", inputs, ["c"], name="fc", transB=transposed, alpha=0.5, beta=2.0),
        helper.make_node("BatchNormalization", ["c", *NORM], ["y"], name="bn"),
    ]
    after = folded(model_of(nodes, weights, ["N", 3]))
    x = rng.standard_normal((4, 3)).astype(np.float32)
    plain = 0.5 * x.astype(np.float64) @ (weights["w"].T if transposed else weights["w"])
    plain = plain + (2.0 * weights["b"] if bias is not None else 0)
    assert ops(after) == ["Gemm"]
    np.testing.assert_allclose(evaluate(after, x)[0], normalise(plain, weights, 1e-5), rtol=1e-4, atol=1e-5)


def test_a_batch_norm_stays_where_the_layer_has_another_consumer() -> None:
    rng = np.random.default_rng(0)
    weights = {"w": rng.standard_normal((4, 4, 1, 1)).astype(np.float32), **norm_weights(rng, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("BatchNormalization", ["c", *NORM], ["b"]),
        helper.make_node("Add", ["b", "c"], ["y"]),
    ]
    model = model_of(nodes, weights, ["N", 4, 3, 3], {"y": 4})
    assert ops(folded(model)) == ["Conv", "BatchNormalization", "Add"]
    as_output = model_of(nodes[:2], weights, ["N", 4, 3, 3], {"b": 4, "c": 4})
    assert ops(folded(as_output)) == ["Conv", "BatchNormalization"]


def test_a_batch_norm_alone_stays() -> None:
    weights = norm_weights(np.random.default_rng(0), 4)
    model = model_of([helper.make_node("BatchNormalization", ["x", *NORM], ["y"])], weights, ["N", 4])
    assert ops(folded(model)) == ["BatchNormalization"]


def test_layers_that_share_a_weight_fold_apart() -> None:
    rng = np.random.default_rng(3)
    weights = {"w": rng.standard_normal((4, 4, 1, 1)).astype(np.float32), **norm_weights(rng, 4)}
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], name="a"),
        helper.make_node("BatchNormalization", ["c", *NORM], ["n"], name="bn"),
        helper.make_node("Conv", ["n", "w"], ["y"], name="b"),
    ]
    model = model_of(nodes, weights, ["N", 4, 3, 3], {"y": 4})
    after = folded(model)
    x = rng.standard_normal((2, 4, 3, 3)).astype(np.float32)
    assert ops(after) == ["Conv", "Conv"]
    np.testing.assert_allclose(evaluate(after, x)[0], evaluate(model, x)[0], rtol=1e-4, atol=1e-5)


def test_folding_leaves_the_original_alone() -> None:
    model = residual()
    before = model.hash
    after = simplified(model)
    assert model.hash == before
    assert ops(model).count("BatchNormalization") == 2
    assert ops(after).count("BatchNormalization") == 0
    assert after.history[-1].action == "simplify"


@pytest.mark.parametrize("make", [residual, residual_nhwc, residual_quantized])
def test_a_simplified_network_computes_the_same(make: Any) -> None:
    model = make()
    x = images(5, nhwc="nhwc" in model.name)
    before, after = (predict(m, x, level="disable") for m in (model, simplified(model)))
    np.testing.assert_allclose(after, before, rtol=1e-5, atol=1e-5 * abs(before).max())


def test_a_half_precision_network_stays_close() -> None:
    model = residual_half()
    x = images(5)
    before, after = (predict(m, x, level="disable") for m in (model, simplified(model)))
    assert abs(before - after).max() <= 5e-3 * abs(before).max()


@settings(max_examples=25, deadline=None)
@given(seed=st.integers(0, 2**31), length=st.integers(1, 8))
def test_random_chains_keep_their_result(seed: int, length: int) -> None:
    rng = np.random.default_rng(seed)
    weights: dict[str, np.ndarray] = {}
    nodes, last = [], "x"
    for i in range(length):
        op = rng.choice(["Gemm", "Relu", "Identity", "Dropout", "Add", "Const", "BatchNormalization", "Skip"])
        out, inputs = f"v{i}", [last]
        if op == "Gemm":
            weights[f"w{i}"] = rng.standard_normal((4, 4)).astype(np.float32)
            inputs.append(f"w{i}")
        elif op == "Add":
            weights[f"w{i}"] = rng.standard_normal(4).astype(np.float32)
            inputs.append(f"w{i}")
        elif op == "Const":
            weights[f"w{i}"] = rng.standard_normal(4).astype(np.float32)
            nodes.append(helper.make_node("Exp", [f"w{i}"], [f"e{i}"]))
            op, inputs = "Mul", [last, f"e{i}"]
        elif op == "BatchNormalization":
            added = {f"{k}{i}": v for k, v in norm_weights(rng, 4).items()}
            weights |= added
            inputs += list(added)
        elif op == "Skip":
            op, inputs = "Add", [last, "x"]
        nodes.append(helper.make_node(op, inputs, [out], name=f"n{i}"))
        last = out
    nodes.append(helper.make_node("Identity", [last], ["y"], name="end"))
    model = model_of(nodes, weights, ["N", 4])
    after = simplified(model)
    x = rng.standard_normal((3, 4)).astype(np.float32)
    expected = evaluate(model, x)[0]
    np.testing.assert_allclose(
        evaluate(after, x)[0], expected, rtol=1e-5, atol=1e-5 * max(1.0, float(abs(expected).max()))
    )
    assert [o.name for o in after.outputs] == ["y"]
    assert {"Exp", "Dropout"}.isdisjoint(ops(after))


def test_constants_are_folded_within_bounds() -> None:
    side = int(FOLD_OUTPUT_ELEMENTS**0.5) + 1
    weights = {
        "small": np.arange(4, dtype=np.float32),
        "row": np.ones((1, 4), np.float32),
        "shape": np.array([side * side, 4], np.int64),
    }
    nodes = [
        helper.make_node("Exp", ["small"], ["e"]),
        helper.make_node("Expand", ["row", "shape"], ["huge"]),
        helper.make_node("ReduceSum", ["huge"], ["total"], keepdims=0),
        helper.make_node("Add", ["x", "e"], ["h"]),
        helper.make_node("Add", ["h", "total"], ["y"]),
    ]
    model = model_of(nodes, weights, ["N", 4])
    graph = model.editable()
    fold_constants(graph)
    after = Model(graph)
    assert "Exp" not in ops(after)
    assert "Expand" in ops(after)
    assert max(a.size for a in after.initializers.values()) <= 4


@pytest.mark.parametrize(("count", "folded"), [(2, True), (FOLD_OUTPUT_ELEMENTS + 1, False)])
def test_paddings_that_exporters_compute_are_folded(count: int, folded: bool) -> None:
    # TorchScript's exporter fills up the amounts with zeros; TVM, for one, takes only known ones.
    weights = {"count": np.array([count], np.int64), "given": np.array([0, 1], np.int64)}
    nodes = [
        helper.make_node(
            "ConstantOfShape", ["count"], ["zeros"], value=numpy_helper.from_array(np.array([0]))
        ),
        helper.make_node("Concat", ["given", "zeros"], ["all"], axis=0),
        helper.make_node("Slice", ["all", "first", "last"], ["pads"]),
        helper.make_node("Pad", ["x", "pads"], ["y"]),
    ]
    weights |= {"first": np.array([0], np.int64), "last": np.array([4], np.int64)}
    after = simplified(model_of(nodes, weights, [3, 4]))
    assert (ops(after) == ["Pad"]) == folded
    assert max(a.size for a in after.initializers.values()) <= 4
    x = np.ones((3, 4), np.float32)
    np.testing.assert_array_equal(evaluate(after, x)[0], np.pad(x, ((0, 0), (1, 0))))


def test_narrow_weights_are_not_widened() -> None:
    weights = {"w": np.ones((4, 4), np.float16)}
    nodes = [
        helper.make_node("Cast", ["w"], ["wide"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "wide"], ["y"]),
    ]
    after = simplified(model_of(nodes, weights, ["N", 4]))
    assert after.initializers["w"].dtype == np.float16
    assert ops(after) == ["Cast", "MatMul"]


def test_an_identity_between_input_and_output_stays() -> None:
    model = model_of([helper.make_node("Dropout", ["x"], ["y"])], {}, ["N", 4])
    graph = model.editable()
    remove_identities(graph)
    after = Model(graph)
    x = np.ones((2, 4), np.float32)
    assert ops(after) == ["Identity"]
    np.testing.assert_array_equal(evaluate(after, x)[0], x)


# the batch


def reshaping(sizes: list[int], lead: str | None = "N") -> Model:
    weights = {"shape": np.array(sizes, np.int64), "w": np.ones((8, 3), np.float32)}
    nodes = [
        helper.make_node("Relu", ["x"], ["r"]),
        helper.make_node("Reshape", ["r", "shape"], ["f"], name="flatten"),
        helper.make_node("MatMul", ["f", "w"], ["y"]),
    ]
    return model_of(nodes, weights, [lead, 2, 4])


@pytest.mark.parametrize("sizes", [[-1, 8], [0, 8], [0, -1]])
def test_the_batch_is_bound_everywhere(sizes: list[int]) -> None:
    bound = bind_batch(reshaping(sizes), 3)
    assert bound.inputs[0].shape == (3, 2, 4)
    assert bound.outputs[0].shape == (3, 3)
    assert all(not v.shape or v.shape.is_static() for n in bound.ir.graph for v in n.outputs)
    assert bound.history == ()


@pytest.mark.parametrize("sizes", [[1, -1], [2, -1], [1, 8]])
@pytest.mark.parametrize("lead", ["N", None])
def test_a_batch_written_into_a_reshape_is_refused(sizes: list[int], lead: str | None) -> None:
    with pytest.raises(UnsupportedError, match="'flatten' reshapes to"):
        bind_batch(reshaping(sizes, lead), 4)


def test_a_batch_written_into_a_reshape_fits_itself() -> None:
    assert bind_batch(reshaping([1, 8]), 1).outputs[0].shape == (1, 3)


def test_a_fixed_batch_is_kept_or_refused() -> None:
    bound = bind_batch(residual(), 2)
    assert bind_batch(bound, 2) is bound
    with pytest.raises(UnsupportedError, match="fixed batch 2, not 5"):
        bind_batch(bound, 5)
    x = images(2)
    np.testing.assert_array_equal(predict(bound, x), predict(residual(), x))
    assert residual().inputs[0].shape[0] == "N"


def test_a_torch_export_is_simplified(tmp_path: Any) -> None:
    torch = pytest.importorskip("torch")
    torch.manual_seed(0)

    class Net(torch.nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.conv = torch.nn.Conv2d(3, 8, 3, stride=2, bias=False)
            self.bn = torch.nn.BatchNorm2d(8)
            self.drop = torch.nn.Dropout(0.5)
            self.fc = torch.nn.Linear(72, 5)

        def forward(self, x: Any) -> Any:
            y = torch.relu(self.bn(self.conv(x)))
            # an option-A shortcut: stride and zero channels
            z = torch.nn.functional.pad(x[:, :, 1:-1:2, 1:-1:2], (0, 0, 0, 0, 2, 3))
            return self.fc(self.drop((y + z).flatten(1)))

    net = Net().eval()
    net.bn.running_mean.uniform_(-1, 1)
    net.bn.running_var.uniform_(0.5, 2)
    x = torch.randn(2, 3, 8, 8)
    program = torch.onnx.export(
        net, (x,), dynamo=True, dynamic_shapes=({0: torch.export.Dim("batch")},), verbose=False
    )
    model = simplified(Model.from_proto(program.model_proto))
    assert {"BatchNormalization", "Dropout", "Identity", "Constant"}.isdisjoint(ops(model))
    rows = torch.randn(5, 3, 8, 8)
    with torch.no_grad():
        np.testing.assert_allclose(predict(model, rows.numpy()), net(rows).numpy(), rtol=1e-4, atol=1e-5)
    assert bind_batch(model, 7).outputs[0].shape == (7, 5)


def test_a_random_draw_stays_in_the_graph() -> None:
    nodes = [helper.make_node("Bernoulli", ["p"], ["d"]), helper.make_node("Mul", ["x", "d"], ["y"])]
    model = model_of(nodes, {"p": np.full(4, 0.5, np.float32)}, ["N", 4])
    assert ops(simplified(model)) == ["Bernoulli", "Mul"]
