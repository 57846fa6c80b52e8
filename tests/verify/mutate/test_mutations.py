"""Graph mutations: where they apply, what they do, and that what they leave is a valid network."""

from __future__ import annotations

from collections.abc import Callable

import numpy as np
import onnx
import pytest
from mutate_networks import kitchen, kitchen_rows

from dlas.core.errors import OptionError, UnknownNameError
from dlas.graph.model import Model
from dlas.graph.reference import intermediates, predict
from dlas.testing import models
from dlas.verify.mutate.mutation import (
    FAULTS,
    LEVELS,
    Mutation,
    Site,
    mutated,
    mutation_for,
    mutations,
    named,
    prepared,
)

NETWORKS: dict[str, tuple[Callable[[], Model], Callable[[], np.ndarray]]] = {
    "kitchen": (kitchen, kitchen_rows),
    "residual": (models.residual, lambda: models.images(6)),
    "residual-nhwc": (models.residual_nhwc, lambda: models.images(6, nhwc=True)),
    "residual-int8": (models.residual_quantized, lambda: models.images(6)),
}
GRAPH = [name for name, member in mutations.members() if member.level == "graph"]
# No change: the order of addends, a ReLU before a quantiser that clips, a scale of values that never occur.
EQUIVALENT = {"swap-inputs", "drop-activation", "scale-factor"}


def graph_mutation(choice: str) -> Mutation:
    found = mutation_for(choice)
    assert isinstance(found, Mutation)
    return found


@pytest.mark.parametrize("network", NETWORKS)
@pytest.mark.parametrize("name", GRAPH)
def test_every_mutant_is_valid_runs_and_answers_otherwise(name: str, network: str) -> None:
    model, x = NETWORKS[network][0](), NETWORKS[network][1]()
    mutation = graph_mutation(name)
    sites = mutation.sites(prepared(model))
    if network != "kitchen" and mutation.category not in ("input", "quantisation"):
        sites = sites[:2]  # the rest is more of the same
    before = predict(model, x)
    for site in sites:
        mutant = mutated(model, mutation, site)
        onnx.checker.check_model(mutant.to_proto(), full_check=True)
        after = predict(mutant, x)
        assert after.shape == before.shape
        if name not in EQUIVALENT:
            assert not np.array_equal(after, before), str(site)
    assert np.array_equal(predict(model, x), before)  # the original is left alone


def test_every_mutation_has_a_site_somewhere() -> None:
    graphs = [prepared(make()) for make, _ in NETWORKS.values()]
    assert [n for n in GRAPH if not any(graph_mutation(n).sites(g) for g in graphs)] == []


def test_mutations_say_what_they_are() -> None:
    for name, member in mutations.members():
        assert member.name == name
        assert member.summary
        assert member.category
        assert member.level in LEVELS
        assert member.fault in FAULTS


def test_sites_are_the_same_twice_and_in_graph_order() -> None:
    first, second = prepared(kitchen()), prepared(kitchen())
    order = [node.name for node in first.graph]
    for name in GRAPH:
        sites = graph_mutation(name).sites(first)
        assert sites == graph_mutation(name).sites(second)
        places = [order.index(site.node) for site in sites]
        assert places == sorted(places)
        assert len(set(sites)) == len(sites)


def test_nodes_get_names_of_their_own_and_keep_good_ones() -> None:
    graph = kitchen().editable()
    graph.graph[3].name = "mine"
    graph.graph[4].name = "mine"
    named(graph)
    names = [node.name for node in graph.graph]
    assert names[0] == "Conv_0"
    assert names[3] == "mine"
    assert len(set(names)) == len(names)


def test_a_mutant_remembers_what_was_done_to_it() -> None:
    mutant = mutated(kitchen(), graph_mutation("scale-alpha:factor=2"), Site("LeakyRelu_1"), seed=7)
    step = mutant.history[-1]
    assert step.action == "mutate"
    assert step.options["mutation"] == "scale-alpha"
    assert step.options["sites"] == [["LeakyRelu_1", ""]]
    assert step.options["seed"] == 7
    assert mutant.ir.graph[1].attributes.get_float("alpha") == pytest.approx(0.2)


def test_a_site_that_is_not_there() -> None:
    with pytest.raises(UnknownNameError, match="unknown node 'Conv_9'"):
        mutated(kitchen(), graph_mutation("scale-weights"), Site("Conv_9"))


def test_shapes_that_no_longer_fit_are_no_sites() -> None:
    found = {str(s) for s in graph_mutation("increase-stride").sites(prepared(kitchen()))}
    assert found == {"MaxPool_10"}  # behind the others a MatMul wants 256 numbers
    unpadded = graph_mutation("increase-dilation:pad=false").sites(prepared(models.residual()))
    assert [s.node for s in unpadded] == ["conv1_Conv", "conv3_Conv"]  # not on one side of a residual


def test_occurrences_make_one_mutant_of_several_sites() -> None:
    graph = prepared(models.residual())
    alone = graph_mutation("relu-to-sigmoid")
    together = graph_mutation("relu-to-sigmoid:start=2,end=3")
    every = graph_mutation("relu-to-sigmoid:start=1")
    sites = alone.sites(graph)
    assert [len(g) for g in alone.groups(sites)] == [1, 1, 1]
    assert together.groups(sites) == [tuple(sites[1:3])]
    assert every.groups(sites) == [tuple(sites)]
    assert graph_mutation("relu-to-sigmoid:start=9").groups(sites) == []
    with pytest.raises(OptionError, match="start = 3"):
        graph_mutation("relu-to-sigmoid:start=3,end=1").groups(sites)
    mutant = mutated(models.residual(), every, sites)
    assert sum(node.op_type == "Sigmoid" for node in mutant.ir.graph) == 3


def test_the_batch_axis_of_data_is_never_transposed() -> None:
    proto = models.residual().to_proto()
    proto.graph.input[0].type.tensor_type.shape.dim[0].dim_value = 3  # as many as channels
    model = Model.from_proto(proto)
    sites = graph_mutation("transpose-input:where=conv").sites(prepared(model))
    mutant = mutated(model, graph_mutation("transpose-input"), sites[0])
    inserted = next(node for node in mutant.ir.graph if node.op_type == "Transpose")
    assert list(inserted.attributes.get_ints("perm")) == [0, 1, 3, 2]


def test_where_limits_transpose_input() -> None:
    graph = prepared(models.residual())
    kinds = {where: graph_mutation(f"transpose-input:where={where}").sites(graph) for where in (
        "conv", "dense", "layers", "weights", "batch-norm", "pad", "any")}  # fmt: skip
    assert {s.detail for s in kinds["weights"]} == {"input 1"}
    assert {s.node for s in kinds["batch-norm"]} == {"bn1_BatchNormalization", "bn2_BatchNormalization"}
    assert kinds["pad"] == []
    assert len(kinds["any"]) == len(kinds["layers"]) + len(kinds["weights"]) + len(kinds["batch-norm"])


def test_a_permuted_last_layer_permutes_the_labels() -> None:
    model, x = models.residual(), models.images(4)
    before = predict(model, x)
    after = predict(mutated(model, graph_mutation("permute-channels"), Site("logits_Gemm")), x)
    assert np.allclose(np.sort(before, axis=1), np.sort(after, axis=1), atol=1e-6)


def test_a_softmax_keeps_the_labels_and_the_output_name() -> None:
    model, x = models.residual(), models.images(4)
    mutant = mutated(model, graph_mutation("extra-softmax"), Site("logits_Gemm", "output 0"))
    assert [s.name for s in mutant.outputs] == ["logits"]
    after = predict(mutant, x)
    assert np.allclose(after.sum(axis=1), 1)
    assert (after.argmax(1) == predict(model, x).argmax(1)).all()


def test_other_readers_of_a_shared_weight_keep_it() -> None:
    proto = models.residual().to_proto()
    next(n for n in proto.graph.node if n.output[0] == "conv2").input[1] = "w2"
    proto.graph.node.append(
        onnx.helper.make_node("Conv", ["relu1", "w2"], ["again"], name="again", pads=[1] * 4)
    )
    proto.graph.output.append(onnx.helper.make_tensor_value_info("again", 1, ["N", 8, 12, 12]))
    model, x = Model.from_proto(proto), models.images(2)
    mutant = mutated(model, graph_mutation("scale-weights:factor=3"), Site("conv2_Conv"))
    before = intermediates(model, {"image": x}, ["conv2", "again"])
    after = intermediates(mutant, {"image": x}, ["conv2", "again"])
    assert np.allclose(after["conv2"], 3 * before["conv2"], atol=1e-4)
    assert np.array_equal(after["again"], before["again"])


def test_only_the_constants_a_mutation_makes_are_new() -> None:
    model = models.residual()
    mutant = mutated(model, graph_mutation("drop-bias"), Site("conv3_Conv"))
    assert set(model.initializers) - set(mutant.initializers) == {"b3"}
    assert set(mutant.initializers) <= set(model.initializers)


def small(nodes: list[onnx.NodeProto], inputs: dict[str, list[int | str]], outputs: dict[str, list[int | str]],
          **constants: np.ndarray) -> Model:  # fmt: skip
    graph = onnx.helper.make_graph(
        nodes,
        "small",
        [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in inputs.items()],
        [onnx.helper.make_tensor_value_info(name, 1, shape) for name, shape in outputs.items()],
        [onnx.numpy_helper.from_array(array, name) for name, array in constants.items()],
    )
    opset = [onnx.helper.make_opsetid("", 18)]
    return Model.from_proto(onnx.helper.make_model(graph, opset_imports=opset, ir_version=10))


def test_a_reshape_that_no_longer_fits_is_no_site() -> None:
    make = onnx.helper.make_node
    model = small(
        [
            make("MaxPool", ["x"], ["pooled"], kernel_shape=[2, 2], strides=[2, 2]),
            make("Reshape", ["pooled", "shape"], ["flat"]),
            make("ReduceSum", ["flat", "axes"], ["y"]),
        ],
        {"x": [1, 2, 5, 5]},
        {"y": [1, 1]},
        shape=np.array([1, 8]),
        axes=np.array([1]),
    )
    assert graph_mutation("ceil-mode").sites(prepared(model)) == []  # 2 x 3 x 3 numbers are no 8
    assert graph_mutation("increase-stride").sites(prepared(model)) == [
        Site("MaxPool_0")
    ]  # 2 x 2 x 2 still are


def test_tensors_of_unknown_size_are_not_taken_for_alike() -> None:
    make = onnx.helper.make_node
    model = small(
        [
            make("Compress", ["x", "first"], ["a"], axis=1),
            make("Compress", ["x", "second"], ["b"], axis=1),
            make("Concat", ["a", "x"], ["y"], axis=1),
            make("Neg", ["b"], ["z"]),
        ],
        {"x": [1, 4]},
        {"y": [1, "sum"], "z": [1, "few"]},
        first=np.array([True, False, True, True]),
        second=np.array([True, False, False, False]),
    )
    sites = graph_mutation("rewire-residual").sites(prepared(model))
    assert [s.detail for s in sites] == []
