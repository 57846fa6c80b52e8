"""Where each mutation finds a place, by name, and what it leaves of the node."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from mutate_networks import kitchen

from dlas.graph.model import Model
from dlas.testing import models
from dlas.verify.mutate.mutation import Mutation, mutated, mutation_for, prepared

KITCHEN = {
    "add-to-sub": ["Add_15"],  # Add_14 adds a constant
    "ceil-mode": ["MaxPool_10"],
    "count-include-pad": ["AveragePool_2"],
    "double-bias": ["Conv_0"],
    "drop-activation": ["LeakyRelu_1", "Clip_7"],
    "drop-bias": ["Conv_0", "Add_14"],
    "extra-softmax": ["Add_15 (output 0)"],
    "increase-dilation": ["Conv_0", "Conv_6"],
    "increase-stride": ["MaxPool_10"],
    "insert-function:where=exp-after-layers": ["Conv_0 (exp after)", "Conv_6 (exp after)", "MatMul_13 (exp after)"],
    "permute-channels": ["Conv_0", "Conv_6", "MatMul_13"],
    "perturb-bias": ["Conv_0"],
    "relu-to-clip": [],
    "resize-coordinates": ["Resize_9"],
    "rewire-residual": ["Concat_4 (input 0 from a1)", "Concat_4 (input 1 from a1)", "Add_15 (input 0 from m3)"],
    "round-weights": ["Conv_0", "Conv_6", "MatMul_13"],
    "scale-alpha": ["LeakyRelu_1"],
    "scale-bounds": ["Clip_7 (input 1)", "Clip_7 (input 2)"],
    "scale-input": ["Conv_0 (input image)"],
    "scale-weights": ["Conv_0", "Conv_6", "MatMul_13"],
    "shift-input": ["Conv_0 (input image)"],
    "shift-pads": [
        "Conv_0 (axis 0)", "Conv_0 (axis 1)", "AveragePool_2 (axis 0)", "AveragePool_2 (axis 1)", "Pad_5 (axis 2)",
        "Pad_5 (axis 3)",
    ],
    "swap-colours": ["Conv_0 (input image)"],
    "swap-inputs": ["Sub_3", "Concat_4", "Add_14 (commutative)", "Add_15 (commutative)"],
    "swap-pooling": ["AveragePool_2", "MaxPool_8", "MaxPool_10", "ReduceMean_11"],
    "transpose-flatten": ["Flatten_12"],
    "transpose-image": ["Conv_0 (input image)"],
    "transpose-input": [
        "Conv_0 (input 0)", "Conv_0 (input 1)", "Pad_5 (input 0)", "Conv_6 (input 0)", "Conv_6 (input 1)",
    ],
    "transpose-weights": ["Conv_0 (hw)", "Conv_6 (hw)"],
    "transpose-weights:axes=oi": [],
}  # fmt: skip


def graph_mutation(choice: str) -> Mutation:
    found = mutation_for(choice)
    assert isinstance(found, Mutation)
    return found


def first_mutant(choice: str, model: Model, at: int = 0) -> tuple[ir.Node, Model]:
    mutation = graph_mutation(choice)
    site = mutation.sites(prepared(model))[at]
    mutant = mutated(model, mutation, site)
    return next(n for n in mutant.ir.graph if n.name == site.node), mutant


@pytest.mark.parametrize("choice", KITCHEN)
def test_places_in_the_kitchen(choice: str) -> None:
    assert [str(s) for s in graph_mutation(choice).sites(prepared(kitchen()))] == KITCHEN[choice]


@pytest.mark.parametrize(
    ("choice", "count", "first"),
    [
        ("relu-to-clip", 3, "relu1_Relu"),
        ("relu-to-sigmoid", 3, "relu1_Relu"),
        ("scale-epsilon", 2, "bn1_BatchNormalization"),
        ("insert-function:where=round-before-norms", 2, "bn1_BatchNormalization (round before)"),
    ],
)
def test_places_in_a_residual_network(choice: str, count: int, first: str) -> None:
    sites = graph_mutation(choice).sites(prepared(models.residual()))
    assert (len(sites), str(sites[0])) == (count, first)


@pytest.mark.parametrize(
    ("choice", "count", "first"),
    [
        ("scale-factor", 26, "image_q_QuantizeLinear (input 1)"),
        ("zero-point", 22, "image_q_QuantizeLinear (input 2)"),  # int32 biases have none to move
        ("clip-range", 9, "image_q_QuantizeLinear"),
    ],
)
def test_places_in_a_quantised_network(choice: str, count: int, first: str) -> None:
    sites = graph_mutation(choice).sites(prepared(models.residual_quantized()))
    assert (len(sites), str(sites[0])) == (count, first)
    assert graph_mutation(choice).sites(prepared(models.residual())) == []


def test_attributes_after_a_mutation() -> None:
    node, _ = first_mutant("shift-pads", kitchen())
    assert list(node.attributes.get_ints("pads")) == [2, 1, 0, 1]
    node, mutant = first_mutant("shift-pads", kitchen(), at=4)
    assert mutant.initializers[str(node.inputs[1].name)].tolist() == [0, 0, 1, 1, 0, 0, 0, 0]
    node, _ = first_mutant("increase-dilation", kitchen())
    assert list(node.attributes.get_ints("dilations")) == [2, 2]
    assert list(node.attributes.get_ints("pads")) == [2, 2, 2, 2]
    node, _ = first_mutant("increase-stride", kitchen())
    assert list(node.attributes.get_ints("strides")) == [3, 3]
    node, _ = first_mutant("ceil-mode", kitchen())
    assert node.attributes.get_int("ceil_mode") == 1
    node, _ = first_mutant("count-include-pad", kitchen())
    assert node.attributes.get_int("count_include_pad") == 1
    node, _ = first_mutant("resize-coordinates", kitchen())
    assert node.attributes.get_string("coordinate_transformation_mode") == "asymmetric"
    node, _ = first_mutant("scale-epsilon", models.residual())
    assert node.attributes.get_float("epsilon") == pytest.approx(1e-3)


def test_weights_after_a_mutation() -> None:
    model = kitchen()
    before = model.initializers
    node, mutant = first_mutant("round-weights:bits=3", model)
    rounded = mutant.initializers[str(node.inputs[1].name)]
    assert len(np.unique(rounded)) <= 7
    assert np.abs(rounded - before["w1"]).max() <= np.abs(before["w1"]).max() / 6 + 1e-6
    node, mutant = first_mutant("transpose-weights", model)
    turned = mutant.initializers[str(node.inputs[1].name)]
    assert np.array_equal(turned, before["w1"].swapaxes(2, 3))
    node, mutant = first_mutant("perturb-bias:share=0.05", model)
    error = mutant.initializers[str(node.inputs[2].name)] - before["b1"]
    assert 0 < np.abs(error).max() < 0.25 * np.abs(before["b1"]).max()


def test_quantisation_after_a_mutation() -> None:
    model = models.residual_quantized()
    node, mutant = first_mutant("scale-factor", model)
    assert mutant.initializers[str(node.inputs[1].name)] == 2 * model.initializers["image_scale"]
    node, mutant = first_mutant("zero-point", model)
    moved = int(mutant.initializers[str(node.inputs[2].name)]) - int(model.initializers["image_zero"])
    assert moved == 1
    edge = graph_mutation("zero-point")
    at = next(s for s in edge.sites(prepared(model)) if s.node == "relu1_q_QuantizeLinear")
    assert int(model.initializers["relu1_zero"]) == -128  # it starts at zero, so it can only go up
    down = graph_mutation("zero-point:by=-1")
    node = next(n for n in mutated(model, down, at).ir.graph if n.name == at.node)
    tensor = node.inputs[2].const_value if node.inputs[2] is not None else None
    assert tensor is not None
    assert int(tensor.numpy()) == -127
    node, mutant = first_mutant("clip-range:share=0.5", model)
    clip = node.inputs[0].producer() if node.inputs[0] is not None else None
    assert clip is not None
    assert clip.op_type == "Clip"
    bounds = [float(mutant.initializers[str(v.name)]) for v in clip.inputs[1:] if v is not None]
    scale, zero = float(model.initializers["image_scale"]), int(model.initializers["image_zero"])
    assert bounds == pytest.approx([(-128 - zero) * scale / 2, (127 - zero) * scale / 2])
