# ruff: noqa: E501 - one case per line reads better than wrapped ones
from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.torch_module import to_torch, weights_back

F = np.float32
_TYPES = {
    np.dtype(F): TensorProto.FLOAT,
    np.dtype(np.float16): TensorProto.FLOAT16,
    np.dtype(np.int64): TensorProto.INT64,
    np.dtype(np.int8): TensorProto.INT8,
    np.dtype(np.uint8): TensorProto.UINT8,
    np.dtype(bool): TensorProto.BOOL,
}


def normal(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(F)


def positive(*shape: int) -> np.ndarray:
    return np.abs(normal(*shape)) + F(0.5)


def ints(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def model_of(nodes: list, inputs: dict, constants: dict, outputs: dict, opset: int = 18) -> Model:
    """Outputs: name to dtype; their shapes are left to inference."""
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, _TYPES[a.dtype], a.shape) for n, a in inputs.items()],
        [helper.make_tensor_value_info(n, t, None) for n, t in outputs.items()],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def by_onnxruntime(model: Model, inputs: dict) -> list[np.ndarray]:
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads = 1
    options.log_severity_level = 3
    options.graph_optimization_level = onnxruntime.GraphOptimizationLevel.ORT_DISABLE_ALL
    return onnxruntime.InferenceSession(model.to_proto().SerializeToString(), options).run(None, inputs)


def by_torch(model: Model, inputs: dict) -> list[np.ndarray]:
    with torch.no_grad():
        answer = to_torch(model)(*[torch.from_numpy(a) for a in inputs.values()])
    return [a.numpy() for a in (answer if isinstance(answer, tuple) else (answer,))]


X4 = normal(2, 3, 7, 9)
UNARY = [
    ("Abs", {}, normal(3, 4)),
    ("Ceil", {}, normal(3, 4)),
    ("Cos", {}, normal(3, 4)),
    ("Elu", {"alpha": 0.7}, normal(3, 4)),
    ("Celu", {"alpha": 0.7}, normal(3, 4)),
    ("Erf", {}, normal(3, 4)),
    ("Exp", {}, normal(3, 4)),
    ("Floor", {}, normal(3, 4)),
    ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}, 4 * normal(3, 4)),
    ("HardSigmoid", {}, 4 * normal(3, 4)),
    ("HardSwish", {}, 4 * normal(3, 4)),
    ("Identity", {}, normal(3, 4)),
    ("LeakyRelu", {"alpha": 0.2}, normal(3, 4)),
    ("LeakyRelu", {}, normal(3, 4)),
    ("Log", {}, positive(3, 4)),
    ("Mish", {}, normal(3, 4)),
    ("Neg", {}, normal(3, 4)),
    ("Reciprocal", {}, positive(3, 4)),
    ("Relu", {}, normal(3, 4)),
    ("Round", {}, np.array([0.5, 1.5, -0.5, 2.4], F)),
    ("Selu", {}, normal(3, 4)),
    ("Sigmoid", {}, normal(3, 4)),
    ("Sign", {}, normal(3, 4)),
    ("Sin", {}, normal(3, 4)),
    ("Softplus", {}, normal(3, 4)),
    ("Softsign", {}, normal(3, 4)),
    ("Sqrt", {}, positive(3, 4)),
    ("Tanh", {}, normal(3, 4)),
    ("ThresholdedRelu", {"alpha": 0.3}, normal(3, 4)),
    ("Softmax", {}, normal(3, 4)),
    ("Softmax", {"axis": 1}, X4),
    ("LogSoftmax", {"axis": -2}, X4),
    ("Flatten", {}, X4),
    ("Flatten", {"axis": 0}, X4),
    ("Flatten", {"axis": -1}, X4),
    ("Transpose", {}, X4),
    ("Transpose", {"perm": [0, 2, 3, 1]}, X4),
    ("Squeeze", {}, normal(1, 3, 1)),
    ("GlobalAveragePool", {}, X4),
    ("GlobalMaxPool", {}, X4),
    ("LRN", {"size": 3, "alpha": 0.1, "beta": 0.6, "bias": 1.2}, X4),
    ("LRN", {"size": 5}, normal(2, 6, 3, 3)),
    ("DepthToSpace", {"blocksize": 2}, normal(2, 8, 3, 4)),
    ("DepthToSpace", {"blocksize": 2, "mode": "CRD"}, normal(2, 8, 3, 4)),
    ("SpaceToDepth", {"blocksize": 2}, normal(2, 2, 6, 4)),
    ("MaxPool", {"kernel_shape": [3, 2]}, X4),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, X4),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [0, 1, 2, 0]}, X4),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, normal(2, 3, 8, 10)),
    ("MaxPool", {"kernel_shape": [2, 2], "strides": [3, 3], "ceil_mode": 1, "pads": [0, 0, 1, 1]}, X4),
    ("MaxPool", {"kernel_shape": [2, 2], "dilations": [2, 3]}, X4),
    ("MaxPool", {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_UPPER"}, normal(1, 2, 8, 9)),
    ("MaxPool", {"kernel_shape": [3], "strides": [2]}, normal(2, 3, 11)),
    ("AveragePool", {"kernel_shape": [3, 2]}, X4),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "pads": [1, 1, 1, 1]}, X4),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0], "count_include_pad": 1}, X4),
    ("AveragePool", {"kernel_shape": [3, 3], "pads": [0, 1, 2, 0]}, X4),
    ("AveragePool", {"kernel_shape": [3, 3], "strides": [2, 2], "ceil_mode": 1}, normal(2, 3, 8, 10)),
    (
        "AveragePool",
        {"kernel_shape": [3, 3], "strides": [2, 2], "auto_pad": "SAME_LOWER"},
        normal(1, 2, 8, 9),
    ),
    ("AveragePool", {"kernel_shape": [2, 2, 2]}, normal(1, 2, 4, 5, 6)),
    ("ReduceMean", {"keepdims": 0}, X4),
    ("ReduceSum", {"noop_with_empty_axes": 1}, X4),
    ("ArgMax", {"axis": 1, "keepdims": 0}, X4),
    ("ArgMin", {"axis": -1}, X4),
    ("Shape", {}, X4),
    ("Shape", {"start": 1, "end": -1}, X4),
    ("Size", {}, X4),
    ("Cast", {"to": TensorProto.FLOAT16}, X4),
    ("Cast", {"to": TensorProto.INT64}, 5 * X4),
]


@pytest.mark.parametrize(("op", "attributes", "x"), UNARY, ids=[f"{i}-{c[0]}" for i, c in enumerate(UNARY)])
def test_one_input(op: str, attributes: dict, x: np.ndarray) -> None:
    kinds = {"ArgMax": 7, "ArgMin": 7, "Shape": 7, "Size": 7, "Cast": attributes.get("to")}
    model = model_of(
        [helper.make_node(op, ["x"], ["y"], **attributes)], {"x": x}, {}, {"y": kinds.get(op, 1)}
    )
    (want,), (got,) = by_onnxruntime(model, {"x": x}), by_torch(model, {"x": x})
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=1e-5, atol=1e-5)


# (operator, attributes, inputs in order; those named c* are constants and u* computed, opset)
W = normal(4, 3, 3, 3, seed=1)
CASES = [
    ("Add", {}, {"a": X4, "c": normal(3, 1, 1)}),
    ("Sub", {}, {"a": X4, "b": normal(9)}),
    ("Mul", {}, {"a": X4, "c": F(2)}),
    ("Div", {}, {"a": X4, "b": positive(9)}),
    ("Div", {}, {"a": ints(7, -7, 9), "b": ints(2, 2, -4)}),
    ("Pow", {}, {"a": positive(3, 4), "c": F(2.5)}),
    ("Mod", {}, {"a": ints(7, -7, 9), "b": ints(3, 3, -4)}),
    ("Mod", {"fmod": 1}, {"a": normal(4), "b": positive(4)}),
    ("Max", {}, {"a": X4, "b": normal(9), "c": F(0.1)}),
    ("Min", {}, {"a": X4, "b": normal(9)}),
    ("Mean", {}, {"a": X4, "b": normal(9)}),
    ("Sum", {}, {"a": X4, "b": normal(9), "c": F(0.1)}),
    ("Greater", {}, {"a": X4, "b": normal(9)}),
    ("Equal", {}, {"a": ints(1, 2), "b": ints(1, 3)}),
    ("Where", {}, {"a": X4[0] > 0, "b": X4[0], "c": F(0)}),
    ("Clip", {}, {"x": X4, "c0": F(-0.5), "c1": F(0.7)}),
    ("Clip", {}, {"x": X4, "": None, "c1": F(0.7)}),
    ("PRelu", {}, {"x": X4, "c": normal(3, 1, 1)}),
    ("MatMul", {}, {"a": normal(2, 4, 5), "c": normal(5, 3)}),
    ("Gemm", {"transB": 1}, {"a": normal(4, 5), "c": normal(3, 5), "c1": normal(3)}),
    ("Gemm", {"alpha": 0.5, "beta": 2.0, "transA": 1}, {"a": normal(5, 4), "c": normal(5, 3), "c1": normal(4, 1)}),
    ("Gemm", {}, {"a": normal(4, 5), "c": normal(5, 3)}),
    ("Einsum", {"equation": "bij,bjk->bik"}, {"a": normal(2, 3, 4), "b": normal(2, 4, 5)}),
    ("Conv", {}, {"x": X4, "c": W, "c1": normal(4)}),
    ("Conv", {"pads": [1, 1, 1, 1], "strides": [2, 1]}, {"x": X4, "c": W}),
    ("Conv", {"pads": [0, 1, 2, 1], "dilations": [2, 1]}, {"x": X4, "c": W}),
    ("Conv", {"auto_pad": "SAME_UPPER", "strides": [2, 2]}, {"x": normal(1, 3, 8, 9), "c": W}),
    ("Conv", {"auto_pad": "VALID"}, {"x": X4, "c": W}),
    ("Conv", {"group": 3}, {"x": X4, "c": normal(6, 1, 3, 3)}),
    ("Conv", {"pads": [1, 1]}, {"x": normal(2, 3, 9), "c": normal(4, 3, 3)}),
    ("Conv", {}, {"x": normal(1, 2, 4, 5, 6), "c": normal(3, 2, 2, 2, 2)}),
    ("ConvTranspose", {"strides": [2, 2]}, {"x": X4, "c": normal(3, 4, 3, 3), "c1": normal(4)}),
    ("ConvTranspose", {"strides": [2, 2], "pads": [0, 1, 1, 0], "output_padding": [1, 0]}, {"x": X4, "c": normal(3, 4, 3, 3)}),
    ("ConvTranspose", {"strides": [2, 2], "auto_pad": "SAME_UPPER"}, {"x": X4, "c": normal(3, 4, 3, 3)}),
    ("ConvTranspose", {"strides": [3, 2], "output_shape": [20, 17]}, {"x": X4, "c": normal(3, 4, 3, 3)}),
    ("ConvTranspose", {"group": 3, "dilations": [2, 1]}, {"x": X4, "c": normal(3, 2, 3, 3)}),
    ("BatchNormalization", {"epsilon": 1e-3}, {"x": X4, "c0": normal(3), "c1": normal(3), "c2": normal(3), "c3": positive(3)}),
    ("InstanceNormalization", {}, {"x": X4, "c0": normal(3), "c1": normal(3)}),
    ("LayerNormalization", {}, {"x": X4, "c0": normal(9), "c1": normal(9)}),
    ("LayerNormalization", {"axis": 2, "epsilon": 1e-2}, {"x": X4, "c0": normal(7, 9)}),
    ("ReduceMean", {"keepdims": 0}, {"x": X4, "c": ints(2, 3)}),
    ("ReduceSum", {}, {"x": X4, "c": ints(-1)}),
    ("ReduceMax", {}, {"x": X4, "c": ints(1, 2)}),
    ("ReduceMin", {"keepdims": 0}, {"x": X4, "c": ints(0)}),
    ("ReduceProd", {"keepdims": 0}, {"x": X4, "c": ints(1, 3)}),
    ("ReduceSumSquare", {}, {"x": X4, "c": ints(1)}),
    ("ReduceL1", {}, {"x": X4, "c": ints(1)}),
    ("ReduceL2", {}, {"x": X4, "c": ints(1, -1)}),
    ("ReduceLogSumExp", {}, {"x": X4, "c": ints(1)}),
    ("Reshape", {}, {"x": X4, "c": ints(0, -1, 9)}),
    ("Reshape", {}, {"x": X4, "u": ints(2, 21, 9)}),
    ("Squeeze", {}, {"x": normal(1, 3, 1, 2), "c": ints(0, -2)}),
    ("Unsqueeze", {}, {"x": normal(3, 2), "c": ints(0, -1)}),
    ("Slice", {}, {"x": X4, "c0": ints(0, 1), "c1": ints(2**62, -1), "c2": ints(2, 3), "c3": ints(2, 3)}),
    ("Slice", {}, {"x": X4, "c0": ints(-1), "c1": ints(-(2**62)), "c2": ints(3), "c3": ints(-2)}),
    ("Slice", {}, {"x": X4, "u0": ints(0, 1), "u1": ints(1, 3)}),
    ("Pad", {}, {"x": X4, "c": ints(0, 1, 0, 2, 0, 1, 3, 0), "c1": F(0.5)}),
    ("Pad", {}, {"x": X4, "c": ints(0, 0, -1, 0, 0, 0, 0, -2)}),
    ("Pad", {"mode": "reflect"}, {"x": X4, "c": ints(0, 0, 1, 2, 0, 0, 3, 0)}),
    ("Pad", {"mode": "edge"}, {"x": X4, "c": ints(0, 1, 0, 2, 0, 1, 3, 0)}),
    ("Pad", {}, {"x": X4, "c": ints(1, 2), "": None, "c2": ints(1)}),
    ("Concat", {"axis": 1}, {"a": X4, "b": X4, "c": X4[:, :1]}),
    ("Gather", {"axis": 1}, {"x": X4, "c": np.array([[0, -1], [2, 1]], np.int64)}),
    ("Gather", {}, {"c": normal(5, 3), "i": ints(0, 4, 4)}),
    ("Gather", {"axis": 1}, {"x": X4, "c": np.int64(1)}),
    ("GatherElements", {"axis": 1}, {"x": normal(2, 3), "i": np.array([[0, -1], [2, 1]], np.int64)}),
    ("Expand", {}, {"x": normal(3, 1), "c": ints(2, 1, 4)}),
    ("Tile", {}, {"x": normal(3, 2), "c": ints(2, 3)}),
    ("Range", {}, {"c0": np.int64(2), "i": np.array(9, np.int64), "c2": np.int64(3)}),
    ("CumSum", {}, {"x": normal(3, 4), "c": np.int64(1)}),
    ("Resize", {"mode": "nearest"}, {"x": X4, "": None, "c": np.array([1, 1, 2, 2], F)}),
    ("Resize", {"mode": "nearest", "coordinate_transformation_mode": "asymmetric", "nearest_mode": "floor"}, {"x": X4, "": None, "c": np.array([1, 1, 1.7, 0.6], F)}),
    ("Resize", {"mode": "linear"}, {"x": X4, "": None, "c": np.array([1, 1, 1.7, 0.6], F)}),
    ("Resize", {"mode": "linear", "coordinate_transformation_mode": "align_corners"}, {"x": X4, "": None, " ": None, "c": ints(2, 3, 11, 5)}),
    ("Resize", {"mode": "linear", "coordinate_transformation_mode": "pytorch_half_pixel"}, {"x": X4, "": None, " ": None, "c": ints(2, 3, 1, 5)}),
    ("Resize", {"mode": "nearest", "nearest_mode": "ceil", "axes": [2, 3]}, {"x": X4, "": None, " ": None, "c": ints(13, 5)}),
]  # fmt: skip


@pytest.mark.parametrize(
    ("op", "attributes", "given"), CASES, ids=[f"{i}-{c[0]}" for i, c in enumerate(CASES)]
)
def test_several_inputs(op: str, attributes: dict, given: dict) -> None:
    constants = {n: a for n, a in given.items() if a is not None and n.startswith("c")}
    inputs = {n: a for n, a in given.items() if a is not None and not n.startswith("c")}
    names = [n.strip() for n in given]
    kind = {"Greater": TensorProto.BOOL, "Equal": TensorProto.BOOL}.get(op)
    if kind is None:
        carrier = next(a for a in given.values() if a is not None and np.asarray(a).dtype != bool)
        kind = _TYPES[np.asarray(carrier).dtype]
    model = model_of([helper.make_node(op, names, ["y"], **attributes)], inputs, constants, {"y": kind})
    (want,), (got,) = by_onnxruntime(model, inputs), by_torch(model, inputs)
    assert got.dtype == want.dtype
    assert got.shape == want.shape
    np.testing.assert_allclose(got, want, rtol=2e-5, atol=2e-5)


@pytest.mark.parametrize("sizes", [None, [1, 4, 2]])
def test_split(sizes: list[int] | None) -> None:
    x = normal(2, 7)
    constants = {} if sizes is None else {"s": np.array(sizes, np.int64)}
    attributes = {"axis": 1, **({"num_outputs": 3} if sizes is None else {})}
    node = helper.make_node("Split", ["x", *constants], ["a", "b", "c"], **attributes)
    model = model_of([node], {"x": x}, constants, dict.fromkeys("abc", 1))
    for want, got in zip(by_onnxruntime(model, {"x": x}), by_torch(model, {"x": x}), strict=True):
        np.testing.assert_array_equal(got, want)


@pytest.mark.parametrize("opset", [7, 9, 11])
def test_older_operator_sets_keep_their_arguments_in_attributes(opset: int) -> None:
    x = normal(2, 1, 3, 4)
    nodes = [
        helper.make_node("Squeeze", ["x"], ["s"], axes=[1]),
        helper.make_node("Softmax", ["s"], ["p"]),  # over everything from axis 1 on
        helper.make_node("ReduceSum", ["p"], ["r"], axes=[2], keepdims=1),
        helper.make_node("Unsqueeze", ["r"], ["y"], axes=[0]),
    ]
    if opset < 10:
        nodes[1:1] = [helper.make_node("Slice", ["s"], ["s2"], axes=[2], starts=[0], ends=[3])]
        nodes[2].input[0] = "s2"
    model = model_of(nodes, {"x": x}, {}, {"y": 1}, opset)
    np.testing.assert_allclose(by_torch(model, {"x": x})[0], by_onnxruntime(model, {"x": x})[0], atol=1e-6)


def quantised(axis: int | None, kind: type) -> tuple[Model, np.ndarray]:
    x = 3 * normal(2, 3, 4, 4)
    shape = () if axis is None else (3,)
    constants = {
        "s": np.full(shape, 0.05, F) if axis is None else np.array([0.05, 0.01, 0.1], F),
        "z": np.full(shape, 3, kind),
    }
    attributes = {} if axis is None else {"axis": axis}
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"], **attributes),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"], **attributes),
    ]
    return model_of(nodes, {"x": x}, constants, {"q": _TYPES[np.dtype(kind)], "y": 1}), x


@pytest.mark.parametrize("axis", [None, 1])
@pytest.mark.parametrize("kind", [np.int8, np.uint8])
def test_quantise_and_back(axis: int | None, kind: type) -> None:
    model, x = quantised(axis, kind)
    for want, got in zip(by_onnxruntime(model, {"x": x}), by_torch(model, {"x": x}), strict=True):
        assert got.dtype == want.dtype
        np.testing.assert_array_equal(got, want)


def test_gradient_passes_straight_through_rounding_and_stops_at_the_clip() -> None:
    model, _ = quantised(None, np.int8)
    x = torch.tensor(np.linspace(-20, 20, 96, dtype=F).reshape(2, 3, 4, 4), requires_grad=True)
    to_torch(model)(x)[1].sum().backward()
    inside = (x.detach() / 0.05 + 3 >= -128) & (x.detach() / 0.05 + 3 <= 127)
    assert inside.any()
    assert not inside.all()
    torch.testing.assert_close(x.grad, inside.float())


def small_network(dtype: type = F) -> tuple[Model, np.ndarray]:
    x = normal(2, 3, 6, 6).astype(dtype)
    constants = {
        "conv.weight": 0.3 * W,
        "conv.bias": normal(4),
        "linear.weight": 0.1 * normal(5, 4),
        "linear.bias": normal(5),
        "half": np.array(0.5),
    }
    nodes = [
        helper.make_node("Conv", ["x", "conv.weight", "conv.bias"], ["c"]),
        helper.make_node("Relu", ["c"], ["r"]),
        helper.make_node("Mul", ["r", "half"], ["h"]),
        helper.make_node("GlobalAveragePool", ["h"], ["p"]),
        helper.make_node("Flatten", ["p"], ["f"]),
        helper.make_node("Gemm", ["f", "linear.weight", "linear.bias"], ["y"], transB=1),
    ]
    cast = {n: a.astype(dtype) for n, a in constants.items()}
    return model_of(nodes, {"x": x}, cast, {"y": _TYPES[np.dtype(dtype)]}), x


def test_half_precision_network() -> None:
    model, x = small_network(np.float16)
    want, got = by_onnxruntime(model, {"x": x})[0], by_torch(model, {"x": x})[0]
    assert got.dtype == np.float16
    np.testing.assert_allclose(got, want, rtol=5e-3, atol=5e-3)


def test_weights_keep_their_names_and_scalars_are_not_trained() -> None:
    model, _ = small_network()
    module = to_torch(model)
    assert {n for n, _ in module.named_parameters()} == {
        "conv.weight", "conv.bias", "linear.weight", "linear.bias",
    }  # fmt: skip
    assert set(module.weights()) == set(model.initializers)


def test_gradients_agree_with_finite_differences() -> None:
    model, x = small_network()
    module = to_torch(model).double()
    inputs = torch.from_numpy(x).double()
    module(inputs).square().sum().backward()
    weight = module.weights()["conv.weight"]
    for index in [(0, 0, 0, 0), (3, 2, 1, 2)]:
        with torch.no_grad():
            values = []
            for change in (1e-6, -2e-6):
                weight[index] += change
                values.append(module(inputs).square().sum().item())
            weight[index] += 1e-6
        assert weight.grad[index].item() == pytest.approx((values[0] - values[1]) / 2e-6, rel=1e-4, abs=1e-6)


def test_weights_go_back_into_a_copy_of_the_graph() -> None:
    model, x = small_network()
    before = model.hash
    module = to_torch(model)
    with torch.no_grad():
        for parameter in module.parameters():
            parameter.mul_(1.5)
        want = module(torch.from_numpy(x)).numpy()
    changed = Model(weights_back(model, module))
    np.testing.assert_allclose(by_onnxruntime(changed, {"x": x})[0], want, atol=1e-5)
    assert Model(model.ir).hash == before


def test_weights_of_another_network_are_refused() -> None:
    model, _ = small_network()
    other = model_of([helper.make_node("Add", ["x", "w"], ["y"])], {"x": X4}, {"w": X4}, {"y": 1})
    with pytest.raises(ModelError, match="no weight"):
        weights_back(model, to_torch(other))


def test_all_unknown_operators_are_named() -> None:
    nodes = [
        helper.make_node("Unique", ["x"], ["u", "n"]),
        helper.make_node("MaxUnpool", ["x", "n"], ["y"], kernel_shape=[2, 2]),
        helper.make_node("Relu", ["x"], ["z"]),
    ]
    model = model_of(nodes, {"x": normal(3, 3)}, {}, {"n": 7, "y": 1, "z": 1})
    with pytest.raises(UnsupportedError, match="MaxUnpool, Unique"):
        to_torch(model)


def test_names_that_torch_cannot_hold_still_work() -> None:
    constants = {"a": normal(3), "a.b": normal(3), "..": normal(3), "training": normal(3)}
    nodes = [
        helper.make_node("Add", ["x", "a"], ["1"]),
        helper.make_node("Mul", ["1", "a.b"], ["2"]),
        helper.make_node("Add", ["2", ".."], ["3"]),
        helper.make_node("Mul", ["3", "training"], ["y"]),
    ]
    x = normal(2, 3)
    model = model_of(nodes, {"x": x}, constants, {"y": 1})
    np.testing.assert_allclose(by_torch(model, {"x": x})[0], by_onnxruntime(model, {"x": x})[0], atol=1e-6)
    module = to_torch(model)
    assert len(list(module.parameters())) == 4
    weights_back(model, module)


def test_weights_in_constant_nodes_are_trained_and_go_back() -> None:
    weight = normal(4, 5)
    nodes = [
        helper.make_node("Constant", [], ["w"], value=numpy_helper.from_array(weight.T.copy())),
        helper.make_node("Transpose", ["w2"], ["t"]),
        helper.make_node("MatMul", ["x", "t"], ["h"]),
        helper.make_node("MatMul", ["h", "w"], ["y"]),
    ]
    x = normal(2, 5)
    model = model_of(nodes, {"x": x}, {"w2": normal(5, 5)}, {"y": 1})
    module = to_torch(model)
    module(torch.from_numpy(x)).square().sum().backward()
    assert {n for n, p in module.named_parameters() if p.grad.abs().sum() > 0} == {"w", "w2"}
    with torch.no_grad():
        for parameter in module.parameters():
            parameter -= 0.1 * parameter.grad
        want = module(torch.from_numpy(x)).numpy()
    trained = Model(weights_back(model, module))
    np.testing.assert_allclose(by_onnxruntime(trained, {"x": x})[0], want, rtol=1e-5, atol=1e-5)
    assert not np.allclose(by_onnxruntime(model, {"x": x})[0], want, atol=1e-2)


def test_what_is_not_learned() -> None:
    """Initial states, masks with infinities, scales, and the values of a one-hot vector."""
    constants = {
        "w": normal(1, 4, 3), "r": normal(1, 4, 4), "h0": normal(1, 2, 4),
        "mask": np.array([0, -np.inf, 0, 0], F), "values": np.array([0, 1], F), "depth": ints(4),
    }  # fmt: skip
    nodes = [
        helper.make_node("RNN", ["x", "w", "r", "", "", "h0"], ["s"], hidden_size=4),
        helper.make_node("Add", ["s", "mask"], ["m"]),
        helper.make_node("Softmax", ["m"], ["p"]),
        helper.make_node("ArgMax", ["p"], ["a"], axis=-1, keepdims=0),
        helper.make_node("OneHot", ["a", "depth", "values"], ["o"]),
        helper.make_node("Sub", ["p", "o"], ["y"]),
    ]
    x = normal(5, 2, 3)
    model = model_of(nodes, {"x": x}, constants, {"y": 1})
    module = to_torch(model)
    assert {n for n, _ in module.named_parameters()} == {"w", "r"}
    np.testing.assert_allclose(by_torch(model, {"x": x})[0], by_onnxruntime(model, {"x": x})[0], atol=1e-6)
    module.train()(torch.from_numpy(x)).square().sum().backward()
    assert all(p.grad.isfinite().all() for p in module.parameters())


def test_dropout_drops_in_training_only() -> None:
    node = helper.make_node("Dropout", ["x", "ratio"], ["y", "kept"])
    model = model_of([node], {"x": np.ones((50, 40), F)}, {"ratio": F(0.25)}, {"y": 1, "kept": 9})
    module, x = to_torch(model), torch.ones(50, 40)
    torch.testing.assert_close(module(x)[0], x)
    assert bool(module(x)[1].all())
    torch.manual_seed(0)
    y, kept = module.train()(x)
    assert 0.7 < kept.float().mean().item() < 0.8
    torch.testing.assert_close(y, kept.float() / 0.75)
    torch.testing.assert_close(module.eval()(x)[0], x)


def test_brain_floats_go_there_and_back() -> None:
    weight = helper.make_tensor("w", TensorProto.BFLOAT16, [3], [1.5, -2.0, 0.25])
    graph = helper.make_graph(
        [helper.make_node("Mul", ["x", "w"], ["y"])],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.BFLOAT16, [2, 3])],
        [helper.make_tensor_value_info("y", TensorProto.BFLOAT16, [2, 3])],
        [weight],
    )
    model = Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    module = to_torch(model)
    answer = module(torch.full((2, 3), 2.0, dtype=torch.bfloat16))
    assert answer.dtype == torch.bfloat16
    assert answer[0].tolist() == [3.0, -4.0, 0.5]
    with torch.no_grad():
        module.weights()["w"].add_(1.0)
    stored = weights_back(model, module).graph.initializers["w"].const_value
    assert stored.dtype.name == "BFLOAT16"
    assert stored.numpy().astype(F).tolist() == [2.5, -1.0, 1.25]


@pytest.mark.parametrize("kind", [np.uint16, np.uint32])
def test_wide_unsigned_integers_wrap_as_they_should(kind: type) -> None:
    top = np.iinfo(kind).max
    a, b = np.array([top, 7, 1], kind), np.array([2, 2, 3], kind)
    code = helper.np_dtype_to_tensor_dtype(np.dtype(kind))
    nodes = [helper.make_node(op, ["a", "b"], [op]) for op in ("Add", "Div", "Less")]
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info(n, code, [3]) for n in "ab"],
        [helper.make_tensor_value_info(n, c, [3]) for n, c in (("Add", code), ("Div", code), ("Less", 9))],
    )
    model = Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    total, quotient, less = by_torch(model, {"a": a, "b": b})
    assert total.dtype == kind
    assert total.tolist() == [1, 9, 4]
    assert quotient.tolist() == [top // 2, 3, 0]
    assert less.tolist() == [False, False, True]


def test_refused_uses_are_all_named_with_their_nodes() -> None:
    nodes = [
        helper.make_node("Resize", ["x", "", "s"], ["r"], name="first", mode="linear"),
        helper.make_node(
            "BatchNormalization", ["r", *"abcd"], ["y", "m", "v"], name="second", training_mode=1
        ),
        helper.make_node("Cast", ["y"], ["z"], name="third", to=TensorProto.UINT64),
    ]
    constants = {"s": np.array([1, 1, 2, 2], F), **{n: np.ones(3, F) for n in "abcd"}}
    model = model_of(nodes, {"x": X4}, constants, {"z": TensorProto.UINT64})
    with pytest.raises(UnsupportedError, match=r"'second': training mode .*; Cast 'third': dtype UINT64"):
        to_torch(model)


def test_gradient_passes_through_integer_operators_to_the_weights_before_them() -> None:
    """Conv (float) -> Quantize -> QLinearConv -> Dequantize learns as the same network without rounding."""
    constants = {
        "w": 0.3 * W, "s": F(0.02), "z": np.uint8(128), "sw": F(0.01), "zw": np.int8(0), "sy": F(0.05),
        "wq": np.random.default_rng(0).integers(-127, 128, (2, 4, 3, 3)).astype(np.int8),
    }  # fmt: skip
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"]),
        helper.make_node("QuantizeLinear", ["c", "s", "z"], ["q"]),
        helper.make_node("QLinearConv", ["q", "s", "z", "wq", "sw", "zw", "sy", "z"], ["v"]),
        helper.make_node("DequantizeLinear", ["v", "sy", "z"], ["y"]),
    ]
    x = 0.3 * normal(1, 3, 9, 9)
    model = model_of(nodes, {"x": x}, constants, {"y": 1})
    module = to_torch(model)
    np.testing.assert_array_equal(by_torch(model, {"x": x})[0], by_onnxruntime(model, {"x": x})[0])
    module.train()(torch.from_numpy(x)).sum().backward()
    weight = torch.from_numpy(constants["w"]).requires_grad_()
    inner = torch.nn.functional.conv2d(torch.from_numpy(x), weight)
    inside = torch.nn.functional.conv2d(inner, torch.from_numpy(constants["wq"]) * 0.01)
    inside.clamp(-128 * 0.05, 127 * 0.05).sum().backward()
    (parameter,) = module.parameters()
    error = (parameter.grad - weight.grad).norm() / weight.grad.norm()
    assert error < 0.05  # a few values are clipped on the one side and not on the other


def test_what_does_not_fit_an_operator_is_one_error() -> None:
    node = helper.make_node("MatMul", ["x", "w"], ["y"], name="product")
    module = to_torch(model_of([node], {"x": normal(2, 3)}, {"w": normal(3, 4)}, {"y": 1}))
    with pytest.raises(ModelError, match=r"MatMul 'product' fails: mat1 and mat2") as caught:
        module(torch.zeros(2, 5))
    assert "\n" not in str(caught.value)
    broken = helper.make_node("MaxPool", ["x"], ["y"], name="pool")  # without its window
    graph = helper.make_graph(
        [broken],
        "g",
        [helper.make_tensor_value_info("x", 1, [1, 1, 4, 4])],
        [helper.make_tensor_value_info("y", 1, None)],
    )
    model = Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    with pytest.raises(ModelError, match="MaxPool 'pool': its attributes or inputs are not valid"):
        to_torch(model)
