"""What exporters leave behind gets shorter and keeps its answers."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, checker, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlas.graph.rewriting import fresh_name, shorten


@pytest.fixture
def wordy() -> ir.Model:
    """Two transposes that cancel, a cast to what it is already, a product with one, and a MatMul with its bias."""
    weight = np.arange(12, dtype=np.float32).reshape(4, 3)
    nodes = [
        helper.make_node("Transpose", ["x"], ["a"], perm=[1, 0]),
        helper.make_node("Transpose", ["a"], ["b"], perm=[1, 0]),
        helper.make_node("Cast", ["b"], ["c"], to=TensorProto.FLOAT),
        helper.make_node("Mul", ["c", "one"], ["d"]),
        helper.make_node("MatMul", ["d", "w"], ["e"]),
        helper.make_node("Add", ["e", "bias"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes,
        "wordy",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [2, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [2, 3])],
        [
            numpy_helper.from_array(np.array(1, np.float32), "one"),
            numpy_helper.from_array(weight, "w"),
            numpy_helper.from_array(np.ones(3, np.float32), "bias"),
        ],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    checker.check_model(proto)
    return ir.from_proto(proto)


def answers(graph: ir.Model) -> np.ndarray:
    x = np.arange(8, dtype=np.float32).reshape(2, 4)
    return ReferenceEvaluator(ir.to_proto(graph)).run(None, {"x": x})[0]


def test_what_computes_nothing_goes(wordy: ir.Model) -> None:
    before = answers(wordy)
    shorten(wordy)
    assert [node.op_type for node in wordy.graph] == ["MatMul", "Add"]
    np.testing.assert_array_equal(answers(wordy), before)


def test_further_rules_join_in(wordy: ir.Model) -> None:
    before = answers(wordy)
    shorten(wordy, first=("matmul_add_to_gemm",))
    assert [node.op_type for node in wordy.graph] == ["Gemm"]
    np.testing.assert_array_equal(answers(wordy), before)


def test_names_stay_apart() -> None:
    taken = {"conv"}
    assert [fresh_name(n, taken) for n in ("conv", "conv", "relu", "conv_2")] == [
        "conv_2",
        "conv_3",
        "relu",
        "conv_2_2",
    ]
