"""Networks that are computed node by node: the same numbers as the network in one piece."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas import api
from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import Model
from dlas.testing import models
from dlas.verify.localize.network import Network, named

RNG = np.random.default_rng(0)


def _graph(
    nodes: Sequence[onnx.NodeProto],
    inputs: dict[str, list],
    outputs: list[str],
    weights: dict[str, np.ndarray] | None = None,
    kind: int = TensorProto.FLOAT,
) -> ir.Model:
    graph = helper.make_graph(
        list(nodes),
        "net",
        [helper.make_tensor_value_info(n, kind, shape) for n, shape in inputs.items()],
        [onnx.ValueInfoProto(name=o) for o in outputs],
        [numpy_helper.from_array(a, n) for n, a in (weights or {}).items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = ir.from_proto(onnx.shape_inference.infer_shapes(proto))
    named(found)
    return found


def _whole(graph: ir.Model, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    """Every tensor of the network as ONNX Runtime gives it in one piece, one row at a time, with an axis of rows."""
    proto = ir.to_proto(graph)
    del proto.graph.output[:]
    names = [o for n in proto.graph.node for o in n.output if o]
    proto.graph.output.extend(onnx.ValueInfoProto(name=n) for n in names)
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_DISABLE_ALL
    session = ort.InferenceSession(proto.SerializeToString(), options, providers=["CPUExecutionProvider"])
    count = len(next(iter(rows.values())))
    found = [session.run(None, {n: v[i : i + 1] for n, v in rows.items()}) for i in range(count)]
    return {name: np.stack([f[i] for f in found]) for i, name in enumerate(names)}


def _traced(network: Network, rows: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    found: dict[str, np.ndarray] = {}
    for _, results in network.trace({n: v[:, None] for n, v in rows.items()}):
        found.update(results)
    return found


def _agrees(network: Network, graph: ir.Model, rows: dict[str, np.ndarray]) -> None:
    whole, traced = _whole(graph, rows), _traced(network, rows)
    halves = any(v.dtype == np.float16 for v in whole.values())
    for name, wanted in whole.items():
        if name in traced:
            assert traced[name].dtype == wanted.dtype, name
            # In one piece ONNX Runtime leaves out the rounding between two half-precision operators.
            limit = 1e-2 if halves else 2e-5
            np.testing.assert_allclose(traced[name], wanted, rtol=limit, atol=limit, err_msg=name)
        else:  # it depends on no sample
            np.testing.assert_array_equal(network.constants[name], wanted[0], err_msg=name)
    assert set(network.outputs) <= set(traced)


@functools.cache
def _loaded() -> Model:
    return api.load("digits-cnn")


def _digits() -> ir.Model:
    return _opened(_loaded())


@pytest.mark.parametrize(
    ("make", "rows"),
    [
        (_digits, {"input": RNG.random((5, 1, 8, 8), np.float32)}),
        (lambda: _opened(models.residual()), {"image": models.images(3)}),
        (lambda: _opened(models.residual_nhwc()), {"image": models.images(3, nhwc=True)}),
        (lambda: _opened(models.residual_half()), {"image": models.images(2)}),
        (lambda: _opened(models.residual_quantized()), {"image": models.images(2)}),
    ],
    ids=["digits-cnn", "float", "nhwc", "half", "int8"],
)
def test_node_by_node_is_the_network_in_one_piece(make, rows: dict[str, np.ndarray]) -> None:
    graph = make()
    network = Network(graph)
    assert len(network.steps) > 10
    _agrees(network, graph, rows)


def _opened(model: Model) -> ir.Model:
    graph = model.editable()
    named(graph)
    return graph


def test_shapes_computed_in_the_graph() -> None:
    """Exporters write ``x.view(x.size(0), -1)`` as a chain of operators on shapes; so do pads and slices."""
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["c"], pads=[1, 1, 1, 1]),
        helper.make_node("Shape", ["c"], ["shape"]),
        helper.make_node("Gather", ["shape", "zero"], ["batch"], axis=0),
        helper.make_node("Unsqueeze", ["batch", "axis"], ["batch1"]),
        helper.make_node("Concat", ["batch1", "rest"], ["target"], axis=0),
        helper.make_node("Shape", ["c"], ["sizes"], start=2, end=4),
        helper.make_node("Div", ["sizes", "two"], ["half"]),
        helper.make_node("Slice", ["c", "begin", "half", "axes"], ["cut"]),
        helper.make_node("Reshape", ["cut", "target"], ["flat"]),
        helper.make_node(
            "ConstantOfShape", ["four"], ["zeros"], value=numpy_helper.from_array(np.int64([0]), "v")
        ),
        helper.make_node("Concat", ["zeros", "four"], ["padding"], axis=0),
        helper.make_node("Cast", ["padding"], ["pads"], to=TensorProto.INT64),
        helper.make_node("Identity", ["pads"], ["unread"]),
        helper.make_node("MatMul", ["flat", "m"], ["y"]),
    ]
    weights = {
        "w": RNG.standard_normal((4, 3, 3, 3)).astype(np.float32),
        "m": RNG.standard_normal((36, 5)).astype(np.float32),
        "zero": np.int64(0),
        "axis": np.int64([0]),
        "rest": np.int64([-1]),
        "two": np.int64([2, 2]),
        "begin": np.int64([0, 0]),
        "axes": np.int64([2, 3]),
        "four": np.int64([4]),
    }
    graph = _graph(nodes, {"x": ["N", 3, 6, 6]}, ["y"], weights)
    network = Network(graph)
    _agrees(network, graph, {"x": RNG.standard_normal((3, 3, 6, 6)).astype(np.float32)})
    # What depends on no sample is no step of its own.
    assert {"zeros", "padding", "pads", "unread"} <= set(network.constants)
    assert not {"ConstantOfShape", "Cast", "Identity"} & {n.op_type for n in network.steps}


def test_several_inputs_and_outputs() -> None:
    nodes = [
        helper.make_node("Add", ["a", "b"], ["s"]),
        helper.make_node("Split", ["s"], ["left", "right"], axis=1, num_outputs=2),
        helper.make_node("Mul", ["left", "right"], ["p"]),
    ]
    graph = _graph(nodes, {"a": ["N", 6], "b": ["N", 6]}, ["p", "right"])
    rows = {n: RNG.standard_normal((4, 6)).astype(np.float32) for n in "ab"}
    _agrees(Network(graph), graph, rows)


def test_rows_do_not_mix() -> None:
    """An operator across the batch is right for one sample at a time, and only then."""
    nodes = [
        helper.make_node("ReduceMean", ["x", "axes"], ["mean"]),
        helper.make_node("Sub", ["x", "mean"], ["y"]),
        helper.make_node("Softmax", ["y"], ["z"], axis=0),
    ]
    graph = _graph(nodes, {"x": ["N", 5]}, ["z"], {"axes": np.int64([0])})
    rows = {"x": RNG.standard_normal((6, 5)).astype(np.float32)}
    found = _traced(Network(graph), rows)
    assert not found["y"].any()  # the mean over one sample is the sample
    np.testing.assert_allclose(found["z"], 1)


def test_values_from_outside_take_the_place_of_computed_ones() -> None:
    graph = _digits()
    network = Network(graph)
    rows = {"input": RNG.random((3, 1, 8, 8), np.float32)}
    known = _traced(network, rows)
    given = {"relu_3": 2 * known["relu_3"]}
    assert next(n.name for n in network.between(["logits"], given)) == "conv4"
    found = network.compute(["logits"], given)["logits"]
    assert not np.allclose(found, known["logits"])
    same = network.compute(["logits"], {"relu_3": known["relu_3"]})["logits"]
    np.testing.assert_allclose(same, known["logits"], rtol=1e-5, atol=1e-5)


def test_who_makes_and_who_reads() -> None:
    network = Network(_digits())
    assert network.maker("input") is None
    assert network.maker("add").name == "add"  # type: ignore[union-attr]
    assert [n.name for n in network.readers("relu")] == ["conv2", "add"]
    assert network.fed(network.maker("add")) == ["relu", "bn3"]  # type: ignore[arg-type]


def test_a_node_that_fails_is_named() -> None:
    network = Network(_digits())
    node = network.maker("conv2")
    assert node is not None
    with pytest.raises(ModelError, match="conv2"):
        network.run(node, {"relu": np.zeros((1, 1, 7, 8, 8), np.float32)})


def test_rows_of_different_shapes_are_refused() -> None:
    graph = _graph([helper.make_node("NonZero", ["x"], ["y"])], {"x": ["N", 5]}, ["y"])
    network = Network(graph)
    rows = np.float32([[[0, 1, 0, 0, 0]], [[0, 1, 1, 0, 0]]])
    with pytest.raises(ModelError, match="another shape for every row"):
        network.run(network.steps[0], {"x": rows})


def test_control_flow_is_refused() -> None:
    body = helper.make_graph(
        [helper.make_node("Identity", ["x"], ["t"])], "then", [], [onnx.ValueInfoProto(name="t")]
    )
    node = helper.make_node("If", ["c"], ["y"], then_branch=body, else_branch=body, name="choose")
    graph = helper.make_graph(
        [node],
        "net",
        [
            helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 2]),
            helper.make_tensor_value_info("c", TensorProto.BOOL, []),
        ],
        [onnx.ValueInfoProto(name="y")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(UnsupportedError, match="'choose' \\(If\\)"):
        Network(ir.from_proto(proto))


def test_names_become_unique_and_those_that_are_stay() -> None:
    graph = _graph(
        [
            helper.make_node("Relu", ["x"], ["a"], name="n"),
            helper.make_node("Relu", ["a"], ["b"], name="n"),
            helper.make_node("Relu", ["b"], ["c"]),
            helper.make_node("Relu", ["c"], ["d"], name="last"),
        ],
        {"x": ["N", 2]},
        ["d"],
    )
    names = [n.name for n in graph.graph]
    assert len(set(names)) == 4
    assert (names[0], names[3]) == ("n", "last")
    again = list(names)
    named(graph)
    assert [n.name for n in graph.graph] == again
