"""What a fault is called and what it is said to look like: in the words of the field, and no more than is known."""

from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from dlas.core.errors import ModelError
from dlas.verify.localize.engine import Found, find
from dlas.verify.localize.network import named
from dlas.verify.localize.roles import role

CHANNELS = 4


def network(
    *,
    stride: int = 1,
    kernel: int = 3,
    pads: tuple[int, ...] = (1, 1, 1, 1),
    seed: int = 0,
    layers: int = 1,
    bias: float = 0.5,
    apart: bool = False,
    dilated: int = -1,
) -> ir.Model:
    """Convolutions with Relus, then class scores, ``(N, 3, 8, 8)`` to ``(N, 5)``.

    With ``apart`` biases are added by an operator of their own; the convolution of number ``dilated`` is another one.
    """
    rng = np.random.default_rng(seed)
    nodes, weights, tensor, channels = [], [], "x", 3
    for i in range(layers):
        shape = (CHANNELS, channels, kernel, kernel)
        weights.append(onnx.numpy_helper.from_array(rng.standard_normal(shape).astype(np.float32), f"w{i}"))
        weights.append(onnx.numpy_helper.from_array(np.full(CHANNELS, bias, np.float32), f"b{i}"))
        settings = {"strides": [stride] * 2, "pads": list(pads)} if i == 0 else {"pads": [1, 1, 1, 1]}
        if i == dilated:
            settings = {"pads": [2, 2, 2, 2], "dilations": [2, 2]}
        if apart:
            weights[-1] = onnx.numpy_helper.from_array(np.full((CHANNELS, 1, 1), bias, np.float32), f"b{i}")
            nodes.append(helper.make_node("Conv", [tensor, f"w{i}"], [f"p{i}"], f"conv{i}", **settings))
            nodes.append(helper.make_node("Add", [f"p{i}", f"b{i}"], [f"c{i}"], f"add{i}"))
        else:
            given = [tensor, f"w{i}", f"b{i}"]
            nodes.append(helper.make_node("Conv", given, [f"c{i}"], f"conv{i}", **settings))
        nodes.append(helper.make_node("Relu", [f"c{i}"], [f"r{i}"], f"relu{i}"))
        tensor, channels = f"r{i}", CHANNELS
    head = rng.standard_normal((CHANNELS, 5)).astype(np.float32)
    weights.append(onnx.numpy_helper.from_array(head, "head"))
    nodes += [
        helper.make_node("GlobalAveragePool", [tensor], ["pooled"], "pool"),
        helper.make_node("Flatten", ["pooled"], ["flat"], "flatten"),
        helper.make_node("Gemm", ["flat", "head"], ["y"], "head"),
    ]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 8, 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 5])],
        weights,
    )
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    found = ir.from_proto(onnx.shape_inference.infer_shapes(model))
    named(found)
    return found


def localised(source: ir.Model, target: ir.Model, heard: list[str] | None = None) -> Found:
    x = {"x": np.random.default_rng(9).standard_normal((8, 3, 8, 8)).astype(np.float32)}
    return find(source, target, x, x, tell=(heard if heard is not None else []).append)


def test_parameters_are_called_by_what_they_are() -> None:
    (fault,) = localised(network(), network(bias=0.9)).faults
    assert (fault.kind, fault.target_node) == ("scaled by 1.8", "conv0")
    assert fault.detail.startswith("Conv conv0 bias: scaled by 1.8 against Conv conv0")
    assert role("Conv", 1) == "weights"
    assert role("Gemm", 2) == "bias"
    assert role("MatMul", 1, constant=False) == "input 1"
    assert role("Add", 1) == "input 1"
    assert role("ReduceMean", 1) == "axes"


@pytest.mark.parametrize(
    ("stride", "kernel", "right", "wrong", "uneven"),
    [
        (1, 3, (1, 1, 1, 1), (0, 0, 2, 2), False),  # SAME adds two rows, one on each side
        (2, 3, (1, 1, 1, 1), (0, 0, 1, 1), True),
        (1, 4, (1, 1, 2, 2), (2, 2, 1, 1), True),
        (2, 4, (1, 1, 1, 1), (0, 0, 2, 2), False),
    ],
)
def test_same_is_named_only_where_it_pads_unevenly(
    stride: int, kernel: int, right: tuple[int, ...], wrong: tuple[int, ...], uneven: bool
) -> None:
    source = network(stride=stride, kernel=kernel, pads=right)
    (fault,) = localised(source, network(stride=stride, kernel=kernel, pads=wrong)).faults
    assert fault.kind == "pads differs"
    assert ("SAME pads one side more" in fault.hint) is uneven


def test_a_batch_norm_is_a_guess_and_said_to_be() -> None:
    source, target = network(layers=2), network(layers=2)
    other = np.random.default_rng(5).standard_normal((CHANNELS, 3, 3, 3)).astype(np.float32)
    target.graph.initializers["w0"].const_value = ir.tensor(other, name="w0")
    (fault,) = localised(source, target).faults
    assert fault.kind == "values differ"
    assert fault.hint.startswith("perhaps a batch norm")


def test_networks_that_have_nothing_in_common_are_refused() -> None:
    with pytest.raises(ModelError, match="the networks do not correspond"):
        localised(network(layers=6), network(layers=6, seed=1))
    with pytest.raises(ModelError, match="the networks do not correspond"):
        localised(network(layers=6), network(layers=3, seed=1, stride=2))


def test_biases_in_operators_of_their_own_are_no_other_network() -> None:
    found = localised(network(layers=4), network(layers=4, apart=True, dilated=2))
    assert [(f.fault, f.target_node) for f in found.faults] == [("attribute", "conv2")]


def test_one_mistake_at_every_layer_is_a_fault_of_the_conversion() -> None:
    target = network(layers=6)
    for name, value in target.graph.initializers.items():
        if name.startswith("w"):
            turned = np.ascontiguousarray(value.const_value.numpy()[:, :, ::-1, ::-1])
            value.const_value = ir.tensor(turned, name=name)
    found = localised(network(layers=6), target)
    assert {"kernels turned round"} <= {f.kind for f in found.faults}
    assert {f.fault for f in found.faults} <= {"parameter", "unexplained"}


def test_a_search_says_how_far_it_is(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("dlas.verify.localize.search.now_and_then", lambda tell: tell)
    monkeypatch.setattr("dlas.verify.localize.walk.now_and_then", lambda tell: tell)
    heard: list[str] = []
    localised(network(layers=3), network(layers=3, bias=0.9), heard)
    assert "replay operator 2 of 9" in heard
    assert any(line.startswith("explain place 1 of 3: ") for line in heard)
    assert any(line.startswith("change 1: ") for line in heard)
