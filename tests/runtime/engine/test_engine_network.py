"""Lowering and passes: what is merged, what is left alone, and that a pass can be left out."""

from __future__ import annotations

import numpy as np
import pytest
from networks import model_of, residual
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import DlasError, ModelError, UnknownNameError
from dlas.graph.model import Model
from dlas.kernels.kernel import ACTIVATIONS
from dlas.runtime.engine.engine import prepared
from dlas.runtime.engine.lower import lower
from dlas.runtime.engine.passes import PASSES


def test_everything_around_a_convolution_becomes_part_of_it():
    network = prepared(residual())
    assert network.count() == {"Conv": 6, "ReduceMean": 1, "Gemm": 1}
    by_name = {call.name: call.node for call in network.calls}
    assert by_name["second"].attributes["act"] == ACTIVATIONS["Relu"]
    assert by_name["second"].operand(3).shape == (1, 16, 12, 12)
    assert by_name["third"].attributes["act"] == ACTIVATIONS["Clip"]
    assert by_name["third"].attributes["act_high"] == 6


def test_a_shortcut_of_copied_channels_is_a_convolution_of_ones():
    shortcut = {call.name: call.node for call in prepared(residual()).calls}["pad"]
    weight = shortcut.constant(1)
    assert shortcut.attributes["strides"] == (2, 2)
    assert weight is not None
    assert weight.sum() == 16
    assert weight[8, 0, 0, 0] == 1


@pytest.mark.parametrize("name", list(PASSES))
def test_each_pass_can_be_left_out(name):
    assert len(prepared(residual(), without=[name]).calls) >= len(prepared(residual()).calls)


def test_an_unknown_pass_is_refused():
    with pytest.raises(UnknownNameError, match="fuse-residual"):
        prepared(residual(), without=["fuse-residuals"])


def test_a_value_that_somebody_else_reads_is_not_merged_away():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["b"], "relu"),
        helper.make_node("Add", ["a", "b"], ["y"], "sum"),
    ]
    w = np.ones((4, 3, 1, 1), np.float32)
    network = prepared(model_of(nodes, {"x": [1, 3, 4, 4]}, {"y": [1, 4, 4, 4]}, {"w": w}))
    assert network.count() == {"Conv": 1, "Relu": 1, "Add": 1}


def test_an_output_is_not_merged_away():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["a"], "conv"),
        helper.make_node("Relu", ["a"], ["y"], "relu"),
    ]
    w = np.ones((4, 3, 1, 1), np.float32)
    shapes = {"a": [1, 4, 4, 4], "y": [1, 4, 4, 4]}
    assert prepared(model_of(nodes, {"x": [1, 3, 4, 4]}, shapes, {"w": w})).count() == {"Conv": 1, "Relu": 1}


@pytest.mark.parametrize(
    ("auto", "pads"), [("SAME_UPPER", (0, 0, 1, 1)), ("SAME_LOWER", (1, 1, 0, 0)), ("VALID", (0, 0, 0, 0))]
)
def test_automatic_padding_is_written_out(auto, pads):
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", auto_pad=auto, strides=[2, 2])]
    w = np.ones((4, 3, 3, 3), np.float32)
    out = 4 if auto.startswith("SAME") else 3
    network = lower(model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, out, out]}, {"w": w}))
    assert network.calls[0].node.attributes["pads"] == pads


def test_rows_become_images_of_height_one():
    nodes = [helper.make_node("Conv", ["x", "w"], ["y"], "conv", pads=[1, 2], dilations=[2])]
    w = np.ones((4, 3, 3), np.float32)
    network = prepared(model_of(nodes, {"x": [1, 3, 20]}, {"y": [1, 4, 19]}, {"w": w}))
    conv = next(call.node for call in network.calls if call.node.op == "Conv")
    assert conv.attributes["kernel_shape"] == (1, 3)
    assert conv.attributes["pads"] == (0, 1, 0, 2)


def test_gates_become_one_operator():
    nodes = [
        helper.make_node("Sigmoid", ["x"], ["s"], "gate"),
        helper.make_node("Mul", ["s", "x"], ["a"], "silu"),
        helper.make_node("HardSigmoid", ["a"], ["h"], "hard", alpha=1 / 6, beta=0.5),
        helper.make_node("Mul", ["a", "h"], ["y"], "swish"),
    ]
    assert prepared(model_of(nodes, {"x": [1, 8]}, {"y": [1, 8]}, {})).count() == {"Silu": 1, "HardSwish": 1}


def test_a_dimension_that_is_not_bound_is_refused():
    nodes = [helper.make_node("Relu", ["x"], ["y"], "relu")]
    with pytest.raises(DlasError, match="width"):
        lower(model_of(nodes, {"x": [1, 3, 8, "width"]}, {"y": [1, 3, 8, "width"]}, {}))


def _ones(*shape):
    return np.ones(shape, np.float32)


@pytest.mark.parametrize(
    ("op", "shape", "said", "given", "attributes"),
    [
        ("Conv", [1, 4, 6, 6], [1, 4, 4, 4], [_ones(4, 8, 3, 3)], {}),
        ("Conv", [1, 4, 6, 6], [1, 4, 4, 4], [_ones(4, 2, 3, 3)], {"group": 3}),
        ("Conv", [1, 4, 6, 6], [1, 4, 4, 4], [_ones(4, 4, 3, 3), _ones(2)], {}),
        ("Conv", [1, 4, 6, 6], [1, 4, 2, 2], [_ones(4, 4, 3, 3)], {"kernel_shape": [5, 5]}),
        ("Conv", [1, 4, 6, 6], [1, 4, 9, 9], [_ones(4, 4, 3, 3)], {"pads": [-3, 0, 0, 0]}),
        ("ConvTranspose", [1, 4, 6, 6], [1, 4, 8, 8], [_ones(3, 4, 3, 3)], {}),
        ("MaxPool", [1, 4, 6, 6], [1, 4, 8, 8], [], {"kernel_shape": [2, 2], "strides": [0, 0]}),
        ("Gemm", [1, 8], [1, 3], [_ones(4, 3)], {}),
        ("Gemm", [1, 4], [1, 3], [_ones(4, 3), _ones(2)], {}),
        ("MatMul", [1, 8], [1, 3], [_ones(4, 3)], {}),
        ("BatchNormalization", [1, 8, 4, 4], [1, 8, 4, 4], [_ones(3)] * 4, {}),
        ("Softmax", [1, 8], [1, 8], [], {"axis": 7}),
        ("Reshape", [1, 8], [1, 9], [np.array([1, 9])], {}),
        ("Pad", [1, 8], [1, 8], [np.zeros(3, np.int64)], {}),
    ],
)
def test_operands_that_contradict_each_other_are_refused(op, shape, said, given, attributes):
    """Native kernels read as far as the shapes say."""
    names = [f"c{i}" for i in range(len(given))]
    graph = helper.make_graph(
        [helper.make_node(op, ["x", *names], ["y"], **attributes)],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, said)],
        [numpy_helper.from_array(array, name) for name, array in zip(names, given, strict=True)],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    with pytest.raises(ModelError, match=op):
        lower(Model.from_proto(proto, "net"))


def test_shapes_that_the_file_claims_are_not_believed():
    nodes = [
        helper.make_node("Conv", ["x", "w"], ["h"], "conv", pads=[1, 1, 1, 1]),
        helper.make_node("Relu", ["h"], ["y"], "relu"),
    ]
    proto = model_of(nodes, {"x": [1, 3, 8, 8]}, {"y": [1, 4, 8, 8]}, {"w": _ones(4, 3, 3, 3)}).to_proto()
    proto.graph.value_info.append(helper.make_tensor_value_info("h", TensorProto.FLOAT, [1, 4, 2, 2]))
    network = lower(Model.from_proto(proto, "net"))
    assert [call.node.outputs[0].shape for call in network.calls] == [(1, 4, 8, 8)] * 2
