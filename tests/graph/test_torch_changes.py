"""What is put in the place of weights and values while a graph runs in torch."""

from __future__ import annotations

import numpy as np
import pytest
import torch
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import ModelError, UnknownNameError
from dlas.graph.model import Model
from dlas.graph.torch_module import to_torch


class Doubled(torch.nn.Module):
    def __init__(self) -> None:
        super().__init__()
        self.factor = torch.nn.Parameter(torch.tensor(2.0))

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.factor * x


@pytest.fixture
def module() -> torch.nn.Module:
    """relu(x @ w) @ v."""
    w, v = np.eye(3, dtype=np.float32), np.ones((3, 1), np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "first"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("MatMul", ["r", "v"], ["y"], "second"),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [1, 3])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [1, 1])],
        [numpy_helper.from_array(w, "w"), numpy_helper.from_array(v, "v")],
    )
    return to_torch(Model.from_proto(helper.make_model(graph, opset_imports=[helper.make_opsetid("", 21)])))


X = torch.tensor([[1.0, -2.0, 3.0]])


def test_a_weight_is_changed_where_it_is_read_and_keeps_its_own_value(module):
    remove = module.on_weight("w", lambda w: 3 * w)
    assert module(X).item() == 12
    assert torch.equal(module.weights()["w"], torch.eye(3))
    remove()
    assert module(X).item() == 4


def test_gradients_and_parameters_pass_through_a_module(module):
    change = Doubled()
    remove = module.on_weight("w", change)
    assert any(p is change.factor for p in module.parameters())
    module(X).sum().backward()
    assert change.factor.grad.item() == 4  # d/df of f * (1 + 3)
    assert module.weights()["w"].grad[0, 0].item() == 2
    remove()
    assert not any(p is change.factor for p in module.parameters())


def test_inputs_values_and_outputs_are_changed(module):
    module.on_value("x", lambda x: -x)
    module.on_value("r", lambda r: r + 1)
    module.on_value("y", lambda y: 10 * y)
    assert module(X).item() == 50  # relu(-1, 2, -3) + 1 = 1, 3, 1


def test_values_are_kept_as_handed_on_with_their_gradients(module):
    module.on_value("r", lambda r: r * 2)
    with module.kept(["h", "r"]) as kept:
        module(X).sum().backward()
        assert kept["h"].tolist() == [[1, -2, 3]]
        assert kept["r"].tolist() == [[2, 0, 6]]
        assert kept["r"].grad.tolist() == [[1, 1, 1]]
    assert module(X).item() == 8  # the change is still there, the keeping is not
    kept.clear()
    module(X)
    assert not kept


def test_unknown_names_and_second_changes_are_refused(module):
    with pytest.raises(UnknownNameError, match="'w'"):
        module.on_weight("ww", lambda w: w)
    with pytest.raises(UnknownNameError, match="value"):
        module.on_value("w", lambda w: w)
    with pytest.raises(UnknownNameError), module.kept(["no"]):
        pass
    module.on_value("h", lambda x: x)
    with pytest.raises(ModelError, match="twice"):
        module.on_value("h", lambda x: x)


@pytest.mark.parametrize(("opset", "axis"), [(13, -1), (11, 1)])
def test_scores_add_up_to_one_where_products_are_in_bfloat16(opset: int, axis: int) -> None:
    """Training tells probabilities from logits by that."""
    w = np.random.default_rng(0).normal(size=(8, 10)).astype(np.float32)
    graph = helper.make_graph(
        [
            helper.make_node("MatMul", ["x", "w"], ["h"], "product"),
            helper.make_node("Softmax", ["h"], ["y"], "scores", axis=axis),
        ],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 8])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 10])],
        [numpy_helper.from_array(w, "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=8)
    module = to_torch(Model.from_proto(proto))
    with torch.no_grad(), torch.autocast("cpu", torch.bfloat16), module.kept(["h"]) as kept:
        scores = module(torch.randn(64, 8, generator=torch.Generator().manual_seed(0)))
    assert kept["h"].dtype == torch.bfloat16
    assert (scores.sum(1) - 1).abs().max() < 1e-5
