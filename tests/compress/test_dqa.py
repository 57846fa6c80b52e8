"""Quantised activations: the graph computes what the bytes hold, on whichever network, and bad input is named."""

from __future__ import annotations

import dataclasses
import json

import numpy as np
import onnx
import onnxruntime
import pytest
import torch

from dlas.compress.method import compress_model, methods
from dlas.compress.quantize._activations import importance
from dlas.compress.quantize._activations.network import places
from dlas.core.errors import DataError, DlasError, OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch, tidy
from dlas.graph.reference import intermediates
from dlas.graph.torch_module import to_torch
from dlas.kernels.formats import dqa as form
from dlas.testing import models
from dlas.testing.methods import MethodSuite

PUBLISHED = "dqa:extra=3,importance=greedy,range=dynamic-batch,signed=yes"


def run(model: Model, x: np.ndarray) -> np.ndarray:
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {model.inputs[0].name: x})[0])


def rows(count: int = 48) -> Dataset:
    x = models.images(count, seed=7)
    return Dataset("rows", x, run(models.residual(), x).argmax(1).astype(np.int64))


class TestDqa(MethodSuite):
    method = "dqa"


class TestPublished(MethodSuite):
    method = PUBLISHED


class TestNoisyQuant(MethodSuite):
    method = "noisyquant"


@pytest.mark.parametrize(
    "choice",
    [
        "dqa",
        "dqa:extra=3,tables=static,top=peak",
        "dqa:fraction=0,per_channel=false,range=dynamic-batch,signed=yes",
        "dqa:range=dynamic-sample,extra=2,importance=random,where=all",
        "dqa:range=dynamic-batch,signed=yes,extra=3,bits=4,importance=random",
    ],
)
def test_the_graph_computes_what_the_bytes_hold(choice: str) -> None:
    """Each quantised value equals decode(encode(x)) of the value before it, to the bit, in two back ends."""
    name, _, text = choice.partition(":")
    given = dict(part.split("=") for part in text.split(",") if part)
    member = methods.get(name)(
        **{k: json.loads(v) if v[0].isdigit() or v == "false" else v for k, v in given.items()}
    )
    model, data = models.residual(), rows()
    graph, found = member._found(model)
    base = member._base(graph, found, member._rows(model, data))
    scores = member.rank(model, data)
    made, layouts, _ = member._by_fraction(graph, base, scores, member._rows(model, data), lambda _: None)
    x = models.images(16, seed=9)
    seen = intermediates(Model(made, "made"), {model.inputs[0].name: x})
    module = to_torch(Model(made, "made"))
    ends = {
        p: next(n for n in seen if n.startswith(f"{p.value}_quantized") and "node" not in n) for p in found
    }
    with torch.no_grad(), module.kept([*ends.values(), *(p.value for p in found)]) as kept:  # type: ignore[operator]
        module(torch.from_numpy(x))
    for place, layout in layouts.items():
        before = place.forward(seen[place.value])
        data_bytes = form.encode(before, layout)
        np.testing.assert_array_equal(
            form.decode(data_bytes, layout, before.shape[2:]), place.forward(seen[ends[place]])
        )
        theirs = place.forward(kept[place.value].numpy())
        np.testing.assert_array_equal(
            form.dequantized(theirs, layout), place.forward(kept[ends[place]].numpy())
        )
    assert np.unique(seen[ends[found[0]]][:1, 0]).size <= 2 ** (member.options.bits + 3)


def test_the_size_in_the_history_is_that_of_the_bytes() -> None:
    member = methods.get("dqa")(extra=3, batch=16, rows=48)
    model, data = models.residual(), rows()
    changed = member.apply(model, data)
    graph, found = member._found(model)
    calibration = member._rows(model, data)
    base = member._base(graph, found, calibration)
    made, layouts, _ = member._by_fraction(graph, base, member.rank(model, data), calibration, lambda _: None)
    size = values = 0
    for batch in np.split(np.asarray(data.samples), 3):
        seen = intermediates(Model(made, "made"), {model.inputs[0].name: batch}, [p.value for p in found])
        for place, layout in layouts.items():
            size += len(form.encode(place.forward(seen[place.value]), layout)) * 8
            values += seen[place.value].size
    assert changed.history[-1].options["stored_bits_per_value"] == pytest.approx(size / values, abs=1e-9)
    assert f"{size / values:.4g} stored bits per value" in changed.history[-1].notes[0]


def test_more_bits_come_closer() -> None:
    model, data, x = models.residual(), rows(), models.images(32, seed=5)
    exact = run(model, x)
    errors = [
        float(np.square(run(compress_model(model, f"dqa:fraction=0,bits={b}", data), x) - exact).mean())
        for b in (2, 4, 8)
    ]
    assert errors[0] > errors[1] * 2 > errors[2] * 20


def test_all_channels_with_extra_bits_are_that_many_bits() -> None:
    model, data, x = models.residual(), rows(), models.images(8, seed=5)
    rich = compress_model(model, "dqa:bits=3,extra=2,fraction=1,importance=random", data)
    plain = compress_model(model, "dqa:bits=5,fraction=0", data)
    np.testing.assert_array_equal(run(rich, x), run(plain, x))


def test_a_row_depends_on_its_batch_only_where_ranges_do() -> None:
    model, data, x = models.residual(), rows(), models.images(8, seed=5)
    for choice, same in (("static", True), ("dynamic-sample", True), ("dynamic-batch", False)):
        changed = compress_model(model, f"dqa:range={choice},fraction=0", data)
        together, alone = run(changed, x), np.concatenate([run(changed, x[i : i + 1]) for i in range(8)])
        assert np.allclose(together, alone, atol=1e-5) is same


def test_a_budget_is_kept_and_used() -> None:
    model, data = models.residual(), rows()
    stored = [
        compress_model(model, f"dqa:budget={b},extra=3", data).history[-1].options["stored_bits_per_value"]
        for b in (3.3, 4.0)
    ]
    assert 3.1 < stored[0] <= 3.3
    assert 3.7 < stored[1] <= 4.0
    with pytest.raises(OptionError, match="at least 3"):
        compress_model(model, "dqa:budget=2.5", data)


def test_fisher_is_the_squared_change_of_the_loss() -> None:
    """Against the loss itself: a channel's importance is the sum over rows of (dL/dx . rounding error)**2."""
    member = methods.get("dqa")(rows=8, batch=8)
    model, data = models.residual(), rows(8)
    graph, found = member._found(model)
    base = member._base(graph, found, member._rows(model, data))
    scores = member.rank(model, data)
    place, layout = next(iter(base.items()))
    module = to_torch(dataclasses.replace(model, ir=graph))
    x = torch.from_numpy(np.asarray(data.samples))
    with torch.no_grad(), module.kept([place.value]) as kept:  # type: ignore[operator]
        module(x)
    exact = kept[place.value].numpy()
    error = exact - form.dequantized(exact, layout)
    labels = torch.from_numpy(np.asarray(data.labels))

    def loss(channel: int, scale: float) -> np.ndarray:
        step = np.zeros_like(exact)
        step[:, channel] = scale * error[:, channel]
        take_away = module.on_value(place.value, lambda v: v + torch.from_numpy(step))  # type: ignore[operator]
        with torch.no_grad():
            made = torch.nn.functional.cross_entropy(module(x), labels, reduction="none").double().numpy()
        take_away()
        return made

    wanted = [np.square((loss(c, 1e-2) - loss(c, -1e-2)) / 2e-2).sum() for c in range(place.channels)]
    np.testing.assert_allclose(scores[place.value], wanted, rtol=0.05, atol=1e-4 * max(wanted))


def test_greedy_is_the_accuracy_with_one_channel_exact() -> None:
    """Against the plain way: the whole network with the value replaced."""
    member = methods.get("dqa")(importance="greedy", range="dynamic-batch", signed="yes", rows=32, batch=32)
    model, data = models.residual(), rows(32)
    graph, found = member._found(model)
    base = member._base(graph, found, member._rows(model, data))
    coarse = {p: dataclasses.replace(v, bits=2) for p, v in base.items()}
    sample = importance.Sample(lambda: iter([np.asarray(data.samples)]), data.labels, 32)
    scores = importance.greedy(graph, model.inputs[0].name, coarse, sample)
    place, layout = next(iter(coarse.items()))
    module = to_torch(dataclasses.replace(model, ir=graph))
    for channel in range(place.channels):

        def change(v: torch.Tensor, channel: int = channel) -> torch.Tensor:
            made = torch.from_numpy(form.dequantized(v.numpy(), layout))
            made[:, channel] = v[:, channel]
            return made

        take_away = module.on_value(place.value, change)  # type: ignore[operator]
        with torch.no_grad():
            hits = (
                module(torch.from_numpy(np.asarray(data.samples))).argmax(1).numpy() == data.labels
            ).mean()
        take_away()
        assert scores[place.value][channel] == pytest.approx(hits)


def test_ranking_takes_the_best_share() -> None:
    scores = np.array([0.1, 5.0, 3.0, 0.2, 4.0])
    assert importance.top(scores, 0.4, 2).tolist() == [0, 2, 0, 0, 2]
    assert importance.top(scores, 0.0, 2).tolist() == [0] * 5
    given = importance.allocate({"a": scores, "b": scores * 100}, {"a": 4, "b": 1}, 3, 0.5)
    assert given["b"].sum() > given["a"].sum()
    assert 4 * given["a"].sum() + given["b"].sum() <= 0.5 * 25
    assert given["b"][1] == 3


def test_blocks_are_found_by_what_they_are() -> None:
    model = models.residual()
    graph = model.editable()
    tidy(graph)
    blocks, everything = places(graph, model), places(graph, model, "all")
    producers = {v.name: n for n in graph.graph for v in n.outputs}
    for place in blocks:
        node = producers[place.value]
        source = node if node.op_type == "Add" else node.inputs[0].producer()  # type: ignore[union-attr]
        assert source is not None
        assert source.op_type == "Add"
    assert {p.value for p in blocks} < {p.value for p in everything}
    assert places(graph, model, "all", everything[0].layer)[0] == everything[0]


def test_bad_input_is_named() -> None:
    model, data = models.residual(), rows()
    with pytest.raises(UnknownNameError, match="no-such-layer"):
        compress_model(model, "dqa:only=no-such-layer", data)
    with pytest.raises(OptionError, match="can be negative"):
        compress_model(signed_blocks(), "dqa:signed=no", data)
    with pytest.raises(DataError, match="label is 99"):
        compress_model(model, "dqa", dataclasses.replace(data, labels=np.full(48, 99)))
    with pytest.raises(DataError, match="label is -1"):
        compress_model(model, "dqa:importance=greedy", dataclasses.replace(data, labels=np.full(48, -1)))
    for choice in ("dqa", "noisyquant"):
        with pytest.raises(DataError, match="expected numbers"):
            compress_model(model, choice, Dataset("words", np.full((8, 3, 12, 12), "a")))
    with pytest.raises(DataError, match="training rows"):
        compress_model(model, "dqa")
    with pytest.raises(DataError, match="loss over the calibration rows is nan"):
        compress_model(models.residual(nan=True), "dqa", data)
    holes = np.array(data.samples)
    holes[3, 0, 0, 0] = np.nan
    with pytest.raises(DataError, match="not finite"):
        compress_model(model, "dqa", dataclasses.replace(data, samples=holes))
    with pytest.raises(DlasError):
        compress_model(model, "dqa", Dataset("wrong", np.zeros((8, 5), np.float32), np.zeros(8, np.int64)))
    with pytest.raises(OptionError):
        compress_model(model, "dqa:extra=4", data)
    with pytest.raises(OptionError, match="do not add up"):
        compress_model(model, "dqa:importance=greedy,budget=3.5", data)
    with pytest.raises(UnsupportedError):
        compress_model(models.residual_half(), "dqa", data)


def test_a_fixed_batch_is_calibrated_in_whole_batches() -> None:
    fixed = bind_batch(models.residual(), 20)
    changed = compress_model(fixed, "dqa", rows())
    assert "the bytes of 40 rows, 20 at a time" in changed.history[-1].notes[0]
    with pytest.raises(DataError, match="takes 20 rows at a time"):
        compress_model(fixed, "dqa", rows(8))


def test_rows_without_labels_are_judged_by_the_network_itself() -> None:
    model, data = models.residual(), rows()
    own = compress_model(model, "dqa", dataclasses.replace(data, labels=None))
    assert "own answers" in " ".join(own.history[-1].notes)
    x = models.images(4)
    np.testing.assert_array_equal(run(own, x), run(compress_model(model, "dqa", data), x))
    plain = compress_model(model, "dqa:fraction=0", dataclasses.replace(data, labels=None))
    assert "own answers" not in " ".join(plain.history[-1].notes)  # nothing was ranked


def test_noise_helps_or_is_left_out() -> None:
    """The shift is chosen by squared error, so it never leaves more of it than none."""
    rng = np.random.default_rng(0)
    from dlas.compress.quantize.noisyquant import _best_shift, _best_step, _rounded

    x = np.abs(rng.standard_normal(20_000)).astype(np.float32) + 0.3
    step = _best_step(x, 3)
    shift = _best_shift(x, np.ones_like(x), step, 3, both=True)
    before = np.square(_rounded(x, step, 3) - x).mean()
    after = np.square(_rounded(x + np.float32(shift), step, 3) - np.float32(shift) - x).mean()
    assert abs(shift) <= step * (1 + 1e-6)
    assert after < before * 0.9


def signed_blocks() -> Model:
    """A network whose blocks end in a sum without an activation."""
    rng = np.random.default_rng(0)
    weights = [(rng.standard_normal((6, c, 3, 3)) / 5).astype(np.float32) for c in (3, 6)]
    head = rng.standard_normal((6, 10)).astype(np.float32)
    spec = models.residual().inputs[0]
    image = onnx.helper.make_tensor_value_info("image", 1, ["N", *[int(d) for d in spec.shape[1:]]])
    answer = onnx.helper.make_tensor_value_info("answer", 1, ["N", 10])
    node = onnx.helper.make_node
    nodes = [
        node("Conv", ["image", "w0"], ["a"], name="a", pads=[1, 1, 1, 1]),
        node("Conv", ["a", "w1"], ["b"], name="b", pads=[1, 1, 1, 1]),
        node("Add", ["a", "b"], ["sum"], name="sum"),
        node("GlobalAveragePool", ["sum"], ["pooled"], name="pool"),
        node("Flatten", ["pooled"], ["flat"], name="flat"),
        node("MatMul", ["flat", "head"], ["answer"], name="head"),
    ]
    stored = [
        onnx.numpy_helper.from_array(w, n)
        for w, n in zip([*weights, head], ("w0", "w1", "head"), strict=True)
    ]
    graph = onnx.helper.make_graph(nodes, "signed", [image], [answer], stored)
    imports = [onnx.helper.make_opsetid("", 13)]
    return Model.from_proto(onnx.helper.make_model(graph, opset_imports=imports, ir_version=8))


def test_signed_values_of_an_older_opset() -> None:
    model, data = signed_blocks(), rows()
    noises = ("noisyquant:bits=8", "noisyquant:bits=8,noise=uniform")
    for choice in ("dqa:bits=8", "dqa:bits=8,range=dynamic-batch", *noises):
        changed = compress_model(model, choice, data)
        x = models.images(8, seed=3)
        np.testing.assert_allclose(run(changed, x), run(model, x), atol=0.05 * np.abs(run(model, x)).max())
        assert "Add" in {n.op_type for n in changed.ir.graph}
