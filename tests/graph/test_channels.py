from __future__ import annotations

from functools import cache

import channel_nets as nets
import numpy as np
import onnx
import onnx_ir as ir
import pytest
import torch
import torch_pruning
from onnx import numpy_helper

from dlas.core.errors import UnsupportedError
from dlas.graph import channels
from dlas.graph.channels import ChannelGroup
from dlas.graph.passes import infer_shapes
from dlas.testing import models


def exported(name: str, optimize: bool = True) -> ir.Model:
    return _exported(name, optimize)


@cache  # by position: a default or a keyword would be another key, and the export is what takes the time
def _exported(name: str, optimize: bool) -> ir.Model:
    return nets.export(nets.build(name), optimize=optimize)


def some_of(group: ChannelGroup) -> np.ndarray:
    """About a third of the channels, not the first and not in one run."""
    return group.ids[1::3] if group.size > 2 else group.ids[: group.size - 1]


def edited(graph: ir.Model, change, ids) -> ir.Model:
    copy = graph.clone()
    change(copy, ids)
    return copy


def assert_same(graph: ir.Model, ids: np.ndarray, x: np.ndarray, tolerance: float = 1e-4) -> ir.Model:
    """The network without the channels, which computes what the one with zeros in their place does."""
    removed, masked = edited(graph, channels.remove, ids), edited(graph, channels.mask, ids)
    difference = np.abs(nets.run(removed, x) - nets.run(masked, x)).max()
    assert difference <= tolerance
    return removed


@pytest.mark.parametrize("name", nets.NETS)
def test_removing_is_masking(name: str) -> None:
    graph, x = exported(name), nets.images()
    found = channels.groups(graph)
    sizes = {n: w.shape for n, w in nets.weights(graph).items()}
    assert len(found.prunable) >= 2
    for group in found.prunable:
        ids = some_of(group)
        shrunk = nets.weights(assert_same(graph, ids, x))
        for entry in group.entries:
            lost = sizes[entry.name][entry.axis] - shrunk[entry.name].shape[entry.axis]
            assert lost == len(ids) * entry.positions.shape[1]


@pytest.mark.parametrize("optimize", [True, False], ids=["folded", "with-batch-norm"])
@pytest.mark.parametrize("name", nets.NETS)
def test_removing_from_all_groups_is_masking(name: str, optimize: bool) -> None:
    graph = exported(name, optimize)
    ids = np.concatenate([some_of(g) for g in channels.groups(graph).prunable])
    assert_same(graph, ids, nets.images())


@pytest.mark.parametrize("name", nets.NETS)
def test_channels_that_are_already_zero_cost_nothing(name: str) -> None:
    graph, x = exported(name, optimize=False), nets.images()
    before = nets.run(graph, x)
    effects = []
    for group in channels.groups(graph).prunable:
        ids = some_of(group)
        chosen = np.isin(group.ids, ids)
        zeroed = graph.clone()
        for entry in group.entries:
            value = zeroed.graph.initializers[entry.name]
            assert value.const_value is not None
            array = value.const_value.numpy().copy()
            if (
                entry.role == "producer" or array.ndim == 1
            ):  # filters, biases, batch norms; not what reads the channel
                np.moveaxis(array, entry.axis, 0)[entry.positions[chosen].ravel()] = 0
            value.const_value = ir.tensor(array, name=entry.name)
        after = nets.run(zeroed, x)
        assert np.abs(nets.run(edited(zeroed, channels.remove, ids), x) - after).max() <= 1e-5
        effects.append(np.abs(after - before).max())
    assert max(effects) > 1e-3


def test_option_a_couples_a_channel_with_its_shifted_position() -> None:
    graph = exported("option-a")
    shared = next(g for g in channels.groups(graph).groups if len(g.producers) == 7)
    by_width = {nets.weights(graph)[e.name].shape[0]: e for e in shared.entries if e.role == "producer"}
    for width, shift in ((8, 0), (16, 4), (32, 12)):
        assert by_width[width].positions[:, 0].tolist() == [k + shift for k in range(8)]


def test_option_a_padding_shrinks_on_the_side_that_lost_channels() -> None:
    graph = exported("option-a")
    second = next(g for g in channels.groups(graph).groups if len(g.producers) == 4)
    assert second.size == 8
    channels.remove(graph_copy := graph.clone(), second.ids[[0, 1, 7]])
    assert _pads(graph) == [(4, 4), (8, 8)]
    assert _pads(graph_copy) == [(2, 3), (8, 8)]


def _pads(graph: ir.Model) -> list[tuple[int, int]]:
    amounts = []
    for node in graph.graph:
        if node.op_type == "Pad":
            tensor = ir.convenience.get_const_tensor(node.inputs[1])
            assert tensor is not None
            pads = tensor.numpy()
            rank = len(pads) // 2
            axes = ir.convenience.get_const_tensor(node.inputs[3]) if len(node.inputs) > 3 else None
            at = 1 if axes is None else axes.numpy().tolist().index(1)
            amounts.append((int(pads[at]), int(pads[at + rank])))
    return amounts


def parameters(graph: ir.Model) -> int:
    return sum(w.size for w in nets.weights(graph).values() if w.dtype == np.float32 and w.ndim)


@pytest.mark.parametrize("name", nets.NETS)
def test_costs_are_those_of_the_smaller_graph(name: str) -> None:
    graph = exported(name)
    found = channels.groups(graph)
    for group in found.prunable:
        smaller = edited(graph, channels.remove, group.ids[:1])
        assert found.macs - channels.groups(smaller).macs == group.macs_per_channel
        assert parameters(graph) - parameters(smaller) == group.parameters_per_channel


def test_macs_of_a_known_network() -> None:
    convolutions = 3 * 8 * 9 * 16 * 16 + 8 * 12 * 9 * 8 * 8
    assert channels.groups(exported("vgg")).macs == convolutions + 12 * 16 * 20 + 20 * 10


def test_flatten_maps_a_channel_to_all_its_positions() -> None:
    group = next(g for g in channels.groups(exported("vgg")).groups if g.size == 12)
    reader = next(e for e in group.entries if e.positions.shape[1] == 16)
    assert reader.positions[3].tolist() == list(range(48, 64))


def test_heads_are_removed_whole() -> None:
    graph = exported("attention")
    heads = next(g for g in channels.groups(graph).prunable if len(g.producers) == 3)
    assert heads.size == 2
    assert {e.positions.shape[1] for e in heads.entries} == {8}
    assert_same(graph, heads.ids[1:], nets.images())


def test_frozen_groups_say_why() -> None:
    torch.manual_seed(0)
    graph = nets.export(nets.Attention(normalised=True).eval())
    reasons = " / ".join(g.reason for g in channels.groups(graph).frozen)
    assert "normalises over channels" in reasons
    assert "is an output of the network" in reasons


@pytest.mark.parametrize("name", ["vgg", "projection", "mobilenet-v2"])
def test_agrees_with_torch_pruning(name: str) -> None:
    net, x = nets.build(name), nets.images()
    graph = exported(name, optimize=False).clone()
    group = channels.groups(graph).groups[0]
    first = next(e for e in group.entries if e.role == "producer")
    indices = first.positions[np.isin(group.ids, some_of(group)), 0].tolist()
    channels.remove(graph, some_of(group))
    layer = next(m for m in net.modules() if isinstance(m, torch.nn.Conv2d))
    peers = torch_pruning.DependencyGraph().build_dependency(net, torch.zeros(1, 3, 16, 16))
    peers.get_pruning_group(layer, torch_pruning.prune_conv_out_channels, indices).prune()
    with torch.no_grad():
        expected = net(torch.from_numpy(x)).numpy()
    assert np.abs(nets.run(graph, x) - expected).max() <= 1e-5
    state = {n: t.numel() for n, t in net.state_dict().items() if not n.endswith("num_batches_tracked")}
    stored = nets.weights(graph)
    assert {n: stored[n].size for n in state} == state


@pytest.mark.parametrize("make", [models.residual, models.residual_nhwc, models.residual_quantized])
def test_models_of_the_conformance_suite(make) -> None:
    graph = make().editable()
    infer_shapes(graph)
    x = models.images(3, nhwc=make is models.residual_nhwc)
    prunable = channels.groups(graph).prunable
    assert prunable
    for group in prunable:
        assert_same(graph, some_of(group), x, 1e-4)


def parsed(body: str, **arrays: np.ndarray) -> ir.Model:
    """A graph from ONNX text with ``arrays`` as initializers."""
    proto = onnx.parser.parse_model(f'<ir_version: 9, opset_import: ["" : 18]>\n{body}')
    proto.graph.initializer.extend(numpy_helper.from_array(a, n) for n, a in arrays.items())
    graph = ir.from_proto(proto)
    infer_shapes(graph)
    return graph


def weight(*shape: int, seed: int = 0) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal(shape).astype(np.float32)


def test_channels_last_as_imported_from_tflite() -> None:
    """Transposes around each convolution, a bias added in NHWC, zeros padded on the last axis, NHWC flatten."""
    graph = parsed(
        """g (float[n, 6, 6, 3] image) => (float[n, 5] logits) {
            a = Transpose <perm = [0, 3, 1, 2]> (image)
            b = Conv <pads = [1, 1, 1, 1]> (a, w1)
            c = Transpose <perm = [0, 2, 3, 1]> (b)
            d = Add (c, bias)
            e = Relu (d)
            f = Transpose <perm = [0, 3, 1, 2]> (e)
            h = Conv <pads = [1, 1, 1, 1]> (f, w2)
            i = Transpose <perm = [0, 2, 3, 1]> (h)
            j = Pad (e, pads)
            k = Add (i, j)
            l = Relu (k)
            m = Reshape (l, shape)
            logits = MatMul (m, w3)
        }""",
        w1=weight(4, 3, 3, 3),
        bias=weight(4, seed=1),
        w2=weight(8, 4, 3, 3, seed=2) / 6,
        pads=np.array([0, 0, 0, 2, 0, 0, 0, 2]),
        shape=np.array([-1, 288]),
        w3=weight(288, 5, seed=3) / 17,
    )
    x = np.random.default_rng(5).standard_normal((2, 6, 6, 3)).astype(np.float32)
    first, second = channels.groups(graph).prunable
    assert (first.size, second.size) == (4, 4)
    reader = next(e for e in first.entries if e.name == "w3")
    assert reader.positions[0, :3].tolist() == [2, 10, 18]
    for ids in (first.ids[1:3], second.ids[:3], np.r_[first.ids[:2], second.ids[2:]]):
        assert_same(graph, ids, x)
    smaller = edited(graph, channels.remove, second.ids[:3])
    assert nets.weights(smaller)["w3"].shape == (180, 5)


def test_gather_split_and_depth_to_space() -> None:
    graph = parsed(
        """g (float[n, 3, 4, 4] image) => (float[n, 4] logits) {
            a = Conv (image, w1)
            b = Gather <axis = 1> (a, order)
            c, d = Split <axis = 1> (b, sizes)
            e = SpaceToDepth <blocksize = 2> (c)
            f = DepthToSpace <blocksize = 2> (e)
            h = Concat <axis = 1> (d, f)
            i = ReduceSum <keepdims = 0> (h, space)
            logits = Gemm <transB = 1> (i, w2)
        }""",
        w1=weight(8, 3, 1, 1),
        order=np.array([7, 2, 1, 0, 4, 3, 6, 5]),
        sizes=np.array([3, 5]),
        space=np.array([2, 3]),
        w2=weight(4, 8, seed=1),
    )
    x = nets.images(2, (3, 4, 4))
    before = channels.groups(graph)
    ids = np.concatenate([g.ids[:-1] for g in before.prunable])
    assert sum(g.size for g in before.prunable) == 8
    assert len(ids) >= 5
    assert_same(graph, ids, x)


@pytest.mark.parametrize(
    ("body", "reason"),
    [
        ("logits = CumSum (a, one)", "CumSum, for which there is no channel rule"),
        ("logits = Softmax <axis = 1> (a)", "runs over channels"),
        ("b = ReduceMax (a, one)\n logits = Add (b, image)", "runs over channels"),
        ("b = Slice (a, zero, four, one, two)\n logits = Mul (b, b)", "in steps of 2"),
        ("logits = Add (a, image)", "cannot lose channels"),
        ("b = Pad (a, pads, fill)\n logits = Relu (b)", "something else than zeros"),
    ],
)
def test_what_cannot_be_followed_is_frozen(body: str, reason: str) -> None:
    graph = parsed(
        f"g (float[n, 4, 2, 2] image) => (float[n, c, h, w] logits) {{\n a = Conv (image, w1)\n {body}\n }}",
        w1=weight(4, 4, 1, 1),
        zero=np.array([0]),
        one=np.array([1]),
        two=np.array([2]),
        four=np.array([4]),
        pads=np.array([0, 1, 0, 0, 0, 1, 0, 0]),
        fill=np.array(1.0, np.float32),
    )
    found = channels.groups(graph)
    assert not found.prunable
    assert any(reason in g.reason for g in found.frozen), [g.reason for g in found.frozen]


def test_refused_removals_change_nothing() -> None:
    graph = exported("vgg").clone()
    found = channels.groups(graph)
    before = ir.to_proto(graph).SerializeToString()
    for change in (channels.remove, channels.mask):
        with pytest.raises(UnsupportedError, match="999999 is not a channel"):
            change(graph, [999999])
        with pytest.raises(UnsupportedError, match=r"must stay: .* is an output"):
            change(graph, found.frozen[0].ids[:1])
    with pytest.raises(UnsupportedError, match="would leave nothing"):
        channels.remove(graph, found.prunable[0].ids)
    assert ir.to_proto(graph).SerializeToString() == before


def test_tied_weights_and_captured_values_are_safe() -> None:
    """A weight read by two layers couples their channels; a value a sub-graph captures stays."""
    graph = parsed(
        """g (float[n, 4] x, bool flag) => (float[n, 4] y) {
            a = MatMul (x, w)
            b = Relu (a)
            c = MatMul (b, w2)
            d = MatMul (c, w2)
            e = If (flag) <
                then_branch = t () => (float[n, 4] p) { p = Relu (d) },
                else_branch = f () => (float[n, 4] q) { q = Identity (d) }
            >
            y = MatMul (e, w)
        }""",
        w=weight(4, 4),
        w2=weight(4, 4, seed=1),
    )
    found = channels.groups(graph)
    assert not found.prunable
    assert any("If" in g.reason for g in found.frozen)
