from __future__ import annotations

import dataclasses
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest

from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.costs import Costs, LayerShape, mac_costs, macs_of
from dlas.compress.distill._fresh import fresh
from dlas.compress.distill._search import Search
from dlas.compress.distill._table import Table
from dlas.compress.method import compress_model, methods
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.analysis import figures
from dlas.graph.format import save_model
from dlas.graph.model import Model
from dlas.graph.passes import simplify, tidy
from dlas.graph.reference import Reference, predict
from dlas.testing import models
from dlas.testing.methods import MethodSuite


class TestStudent(MethodSuite):
    method = "student:threads=1,epochs=1,train_rows=16"


def rows(count: int = 32) -> Dataset:
    labels = np.random.default_rng(2).integers(0, models.CLASSES, count)
    return Dataset("rows", models.images(count, seed=2), labels.astype(np.int64))


def tidied(model: Model | None = None) -> Model:
    graph = (model or models.residual()).editable()
    tidy(graph)
    return Model(graph, "tidied")


def plain(widths: tuple[int, ...] = (64, 48, 32), size: int = 8) -> Model:
    """A chain of 3x3 convolutions with ReLUs and a classifier of ten classes."""
    rng = np.random.default_rng(0)
    image = ir.Value(
        name="image", shape=ir.Shape(["N", 3, size, size]), type=ir.TensorType(ir.DataType.FLOAT)
    )
    nodes, stored, x, before = [], [], image, 3

    def weight(name: str, *shape: int) -> ir.Value:
        array = (rng.standard_normal(shape) * math.sqrt(2 / math.prod(shape[1:]))).astype(np.float32)
        stored.append(ir.Value(name=name, shape=ir.Shape(shape), const_value=ir.tensor(array, name=name)))
        return stored[-1]

    def add(op: str, inputs: list[ir.Value], name: str, **attributes: Any) -> ir.Value:
        nodes.append(ir.node(op, inputs, attributes, name=name))
        nodes[-1].outputs[0].name = name
        return nodes[-1].outputs[0]

    for at, width in enumerate(widths):
        w = weight(f"w{at}", width, before, 3, 3)
        x = add("Conv", [x, w], f"conv{at}", kernel_shape=[3, 3], pads=[1, 1, 1, 1])
        x, before = add("Relu", [x], f"relu{at}"), width
    x = add("Flatten", [add("GlobalAveragePool", [x], "pool")], "flat")
    x = add("Gemm", [x, weight("fc", 10, before)], "logits", transB=1)
    graph = ir.Graph([image], [x], nodes=nodes, initializers=stored, opset_imports={"": 18}, name="plain")
    return tidied(Model(ir.Model(graph, ir_version=10), "plain"))


def stairs(step: int = 16) -> Costs:
    """Time goes up with every ``step`` channels, as where vectors have so many lanes."""

    def of_layer(layer: LayerShape) -> float:
        out, given = (-(-n // step) for n in layer.weight[:2])
        return 1e-3 * out * given * math.prod(layer.weight[2:]) * math.prod(layer.made[2:])

    def of_network(model: Model) -> float:
        graph = model.editable()
        tidy(graph)
        found = channels.groups(graph).prunable
        table = Table(graph, found, Costs("ms", of_layer, lambda m: 0.0, "made up", measured=True))
        return table.total(table.full) + 0.5

    return Costs("ms", of_layer, of_network, "made up", measured=True)


def search_on(model: Model, costs: Costs, **more: Any) -> tuple[Search, Table]:
    groups = channels.groups(model.ir).prunable
    table = Table(model.ir, groups, costs)
    rng = np.random.default_rng(3)
    scores = [rng.random(g.size) for g in groups]

    def whole(widths: tuple[int, ...]) -> float:
        graph = model.editable()
        gone = [g.ids[: g.size - kept] for g, kept in zip(groups, widths, strict=True)]
        channels.remove(graph, np.concatenate(gone))
        return costs.of_network(dataclasses.replace(model, ir=graph))

    return Search(table, scores, whole, **more), table


def channels_of(model: Model) -> list[int]:
    graph = model.editable()
    simplify(graph)
    return [g.size for g in channels.groups(graph).prunable]


# --- the table ------------------------------------------------------------------------------------------


def test_the_table_counts_what_the_graph_counts() -> None:
    for model in (tidied(), plain()):
        groups = channels.groups(model.ir)
        table = Table(model.ir, groups.prunable, mac_costs())
        assert table.total(table.full) == groups.macs == macs_of(model) == figures(model)["macs"].value
        widths = tuple(max(1, n // 2) for n in table.full)
        graph = model.editable()
        gone = [g.ids[: g.size - kept] for g, kept in zip(groups.prunable, widths, strict=True)]
        channels.remove(graph, np.concatenate(gone))
        assert table.total(widths) == channels.groups(graph).macs < groups.macs


def test_shapes_of_the_table_are_those_of_the_pruned_network() -> None:
    model = tidied()
    groups = channels.groups(model.ir).prunable
    table = Table(model.ir, groups, mac_costs())
    widths = tuple(n - 1 - at for at, n in enumerate(table.full))
    graph = model.editable()
    channels.remove(graph, np.concatenate([g.ids[: g.size - k] for g, k in zip(groups, widths, strict=True)]))
    shapes = table.shapes(widths)
    seen = 0
    for node in graph.graph:
        if (node.name or node.outputs[0].name) in shapes:
            shape = shapes[str(node.name or node.outputs[0].name)]
            weight, given = node.inputs[1], node.inputs[0]
            assert weight is not None
            assert weight.const_value is not None
            assert given is not None
            assert given.shape is not None
            assert node.outputs[0].shape is not None
            assert shape.weight == tuple(weight.const_value.shape.numpy())
            assert shape.given[1:] == tuple(given.shape[1:])
            assert shape.made[1:] == tuple(node.outputs[0].shape[1:])
            assert dict(shape.attributes).get("group", 1) == (
                node.attributes["group"].as_int() if "group" in node.attributes else 1
            )
            seen += 1
    assert seen == len(shapes) == 4


def test_a_layer_alone_is_a_network_that_runs() -> None:
    table = Table(tidied().ir, channels.groups(tidied().ir).prunable, mac_costs())
    for shape in table.shapes(table.full).values():
        alone = shape.network()
        x = np.ones(shape.given, np.float32)
        with Reference(alone) as reference:
            assert reference.run({"x": x})["answer"].shape == shape.made
        assert figures(alone)["macs"].value == shape.macs


def test_a_shape_is_asked_for_once() -> None:
    asked: list[LayerShape] = []

    def of_layer(layer: LayerShape) -> float:
        asked.append(layer)
        return 1.0

    model = plain((16, 16, 16))
    table = Table(model.ir, channels.groups(model.ir).prunable, Costs("ms", of_layer, macs_of, "made up"))
    table.total(table.full)
    table.total(table.full)
    assert len(asked) == 3  # the second and the third convolution are one shape
    again = Table(model.ir, table.groups, table.costs, table.known)
    again.total(again.full)
    assert len(asked) == 3


# --- the search -----------------------------------------------------------------------------------------


@pytest.mark.parametrize("share", [0.3, 0.7])
@pytest.mark.parametrize("how", ["rounded", "stairs"])
def test_on_stairs_of_16_channels_all_widths_are_multiples_of_16(share: float, how: str) -> None:
    search, table = search_on(plain(), stairs(16))
    full = search.whole(table.full)
    found = search.run(share * full, how)
    assert all(kept % 16 == 0 for kept in found.widths), found
    assert found.measured <= share * full * 1.02
    assert found.widths != table.full


def test_a_student_is_nowhere_narrower_than_the_scores_alone_at_the_same_time() -> None:
    search, table = search_on(plain(), stairs(16))
    budget = 0.6 * search.whole(table.full)
    by_score, student = search.run(budget, "fisher"), search.run(budget, "rounded")
    assert student.pruned == by_score.widths
    assert all(s >= p for s, p in zip(student.widths, by_score.widths, strict=True))
    assert sum(student.widths) > sum(by_score.widths)
    assert student.measured <= 1.02 * by_score.measured
    assert search.lost(student.widths) < search.lost(by_score.widths)


def test_where_nothing_is_free_nothing_is_widened() -> None:
    search, table = search_on(plain(), mac_costs(), tolerance=0.001)
    found = search.run(0.5 * search.whole(table.full), "rounded")
    assert found.widths == found.pruned
    assert 0.45 * search.whole(table.full) <= found.measured <= 0.51 * search.whole(table.full)


def test_one_width_for_all_keeps_the_same_share() -> None:
    search, table = search_on(plain((40, 20, 40)), mac_costs())
    found = search.run(0.5 * search.whole(table.full), "width")
    assert found.widths[0] == found.widths[2] < 40
    assert found.widths[1] == -(-found.widths[0] // 2)


def test_what_is_measured_decides_and_not_what_the_table_says() -> None:
    """Where the whole network takes longer than its layers promise, more channels go."""
    costs = stairs(16)
    model = plain()

    def slower(model: Model) -> float:
        macs = macs_of(model)
        return costs.of_network(model) * (1.0 if macs > 1.1e6 else 1.5)

    for how in ("rounded", "stairs", "fisher", "width"):
        search, table = search_on(model, dataclasses.replace(costs, of_network=slower))
        full = search.whole(table.full)
        found = search.run(0.5 * full, how)
        assert found.measured <= 0.5 * full * 1.02
        assert found.predicted < found.measured


def test_without_a_lower_stair_the_weakest_channels_go_one_by_one() -> None:
    flat = Costs("ms", lambda layer: 1.0, lambda m: macs_of(m) * 1e-6, "made up", measured=True)
    search, table = search_on(plain((6, 6)), flat)
    found = search.run(0.5 * search.whole(table.full), "rounded")
    assert found.measured <= 0.51 * search.whole(table.full)
    assert found.widths != (1, 1)


def test_what_a_coarse_stair_leaves_of_the_budget_is_spent() -> None:
    """One stair of the wide layer saves far more than is needed; the narrow one goes back up."""
    for how in ("stairs", "rounded"):
        search, table = search_on(plain((64, 16, 64)), stairs(16))
        for share in (0.35, 0.75):
            budget = share * search.whole(table.full)
            found = search.run(budget, how)
            assert found.measured <= 1.02 * budget
            for at, kept in enumerate(found.widths):
                if kept < table.full[at]:
                    wider = (*found.widths[:at], min(table.full[at], kept + 16), *found.widths[at + 1 :])
                    assert search.whole(wider) > budget, (how, share, found.widths, wider)


def test_what_would_fit_by_the_table_and_does_not_is_not_taken() -> None:
    costs = stairs(16)
    jumpy = dataclasses.replace(
        costs, of_network=lambda m: costs.of_network(m) * (3.0 if 0.45 < macs_of(m) / full < 0.9 else 1.0)
    )
    full = macs_of(plain())
    search, table = search_on(plain(), jumpy)
    found = search.run(0.6 * search.whole(table.full), "stairs")
    assert found.measured <= 0.612 * search.whole(table.full)


def test_least_channels_stay_and_a_budget_below_that_is_refused_with_the_floor() -> None:
    search, _ = search_on(plain(), mac_costs(), least=8)
    floor = search.whole((8, 8, 8))
    with pytest.raises(OptionError, match="is not accepted") as caught:
        search.run(0.9 * floor, "rounded")
    assert f"at least {floor:.4g} MACs" in caught.value.message
    assert "8 channel(s)" in caught.value.message
    for how in ("rounded", "stairs", "fisher", "width"):
        assert search.run(floor, how).widths == (8, 8, 8)


# --- the method -----------------------------------------------------------------------------------------


def test_history_tells_channels_costs_teacher_and_every_option() -> None:
    student = compress_model(models.residual(), "student:threads=1,epochs=2,share=0.6,seed=3", rows())
    step = student.history[-1]
    assert step.options["seed"] == 3
    assert step.options["costs"] == "counted"
    assert step.options["teacher_hash"]
    assert step.options["attention_at"]
    assert len(step.options["epoch_losses"]) == 2
    kept = [c["kept"] for c in step.options["channels"]]
    assert channels_of(student)[: len(kept)] == kept
    assert step.options["cost_measured"] == macs_of(student) <= 0.612 * macs_of(models.residual())
    assert step.options["cost_before"] == macs_of(models.residual())


def test_the_plan_shows_channels_scores_and_costs() -> None:
    plan = methods.get("student")(share=0.5).plan(plain((16, 8)), _small())
    groups = [c for c in plan.changes if c.what.startswith("keep")]
    layers = [c for c in plan.changes if c.what == "weight"]
    assert len(groups) == 2
    assert all("% of the score lost" in c.what for c in groups)
    assert all("MACs" in c.before and "MACs" in c.after for c in layers)
    assert {"conv0", "conv1"} <= {c.layer for c in layers} <= {"conv0", "conv1", "logits"}
    assert plan.expected["macs"].value <= 0.51 * plan.expected["macs_before"].value


def test_measured_costs_come_in_as_functions() -> None:
    """And widths follow their stairs; the plan and the result agree."""
    method = methods.get("student")(latency_ms=8.0, threads=1, epochs=1, train_rows=16)
    model, costs, data = plain(), stairs(16), rows()
    small = Dataset("small", np.asarray(data.samples)[:, :, :8, :8].copy(), data.labels)
    plan = method.plan(model, small, costs=costs)  # type: ignore[call-arg]
    student = method.apply(model, small, costs=costs)  # type: ignore[call-arg]
    assert channels_of(student) == [c["kept"] for c in student.history[-1].options["channels"]]
    assert all(n % 16 == 0 for n in channels_of(student))
    assert plan.expected["latency_ms"].value == student.history[-1].options["cost_measured"] <= 8.16
    assert any("the layers alone add up to" in n for n in plan.notes)
    assert student.history[-1].options["costs"] == "made up"


def test_scratch_and_pruned_start_from_other_weights() -> None:
    data, model = rows(), models.residual()
    pruned = compress_model(model, "student:threads=1,init=pruned,epochs=0", data)
    before = np.abs(model.initializers["fc_w"]).ravel()
    assert set(np.abs(pruned.initializers["fc_w"]).ravel()) <= set(before)
    scratch = compress_model(model, "student:threads=1,epochs=1,lr=1e-9,attention=0", data)
    assert not set(np.abs(scratch.initializers["fc_w"]).ravel()) & set(before)
    assert pruned.history[-1].options["channels"] == scratch.history[-1].options["channels"]


def test_fresh_weights_are_those_of_the_seed_and_of_their_fan_in() -> None:
    model = plain((64, 64), 8)
    first, second, other = fresh(model, 1), fresh(model, 1), fresh(model, 2)
    assert first.to_bytes() == second.to_bytes() != other.to_bytes()
    assert first.initializers["w1"].std() == pytest.approx(math.sqrt(2 / (64 * 9)), rel=0.05)
    assert first.initializers["fc"].std() == pytest.approx(math.sqrt(2 / 64), rel=0.15)
    norm = fresh(tidied(), 0).initializers
    assert (norm["gamma1"] == 1).all()
    assert (norm["var2"] == 1).all()
    assert not norm["beta1"].any()
    assert not norm["mean2"].any()
    assert not norm["b3"].any()


def test_a_student_learns() -> None:
    """On bright and dark rows, a student of half the products tells them apart."""
    rng = np.random.default_rng(0)
    labels = rng.integers(0, 2, 128)
    x = models.images(128, seed=1)[:, :, :8, :8] * 0.3
    x[:, 0] += (2 * labels - 1)[:, None, None]
    data = Dataset("bright", np.ascontiguousarray(x), labels.astype(np.int64))
    choice = "student:epochs=5,batch_size=16,augment=none,threads=1"
    student = compress_model(plain((16, 16)), choice, data)
    assert (predict(student, np.asarray(data.samples)).argmax(1) == labels).mean() > 0.95
    losses = student.history[-1].options["epoch_losses"]
    assert losses[-1] < 0.5 * losses[0]


def test_a_budget_above_the_network_returns_it_with_a_note() -> None:
    model = models.residual()
    same = compress_model(model, "student:share=1.5", rows())
    assert same.hash == model.hash
    assert "it is left as it is" in same.history[-1].notes[0]
    plan = methods.get("student")(latency_ms=1e4).plan(plain(), _small(), costs=stairs())  # type: ignore[call-arg]
    assert "it is left as it is" in plan.notes[0]


def _small() -> Dataset:
    data = rows()
    return Dataset("small", np.asarray(data.samples)[:, :, :8, :8].copy(), data.labels)


def test_bad_budgets_and_options_are_refused() -> None:
    data = rows()
    with pytest.raises(OptionError, match=r"at least .* MACs"):
        compress_model(models.residual(), "student:share=0.001", data)
    with pytest.raises(OptionError, match="nothing here measures times"):
        compress_model(models.residual(), "student:latency_ms=3", data)
    with pytest.raises(OptionError, match="at least 1 with init=scratch"):
        compress_model(models.residual(), "student:epochs=0", data)
    with pytest.raises(DataError, match="no labels"):
        compress_model(models.residual(), "student", Dataset("bare", models.images(4)))


def test_channels_that_must_stay_and_networks_without_maps_are_refused() -> None:
    with pytest.raises(UnsupportedError, match="no channels that may be removed"):
        compress_model(models.residual(), "student:include_residual=false", rows())
    flat = plain((8,), size=1)
    point = Dataset("point", np.asarray(rows().samples)[:, :, :1, :1].copy(), rows().labels)
    with pytest.raises(UnsupportedError, match="no feature maps"):
        compress_model(flat, "student", point)
    assert compress_model(
        flat, "student:threads=1,attention=0,alpha=0.9,epochs=1,search=rounded", point
    ).history


def test_another_teacher_is_read_from_its_file(tmp_path: Path) -> None:
    teacher = models.residual(seed=5)
    save_model(teacher, tmp_path / "teacher.onnx")
    choice = f"student:threads=1,epochs=1,teacher={tmp_path / 'teacher.onnx'}"
    taught = compress_model(models.residual(), choice, rows())
    own = compress_model(models.residual(), "student:threads=1,epochs=1", rows())
    assert taught.history[-1].options["teacher_hash"] != own.history[-1].options["teacher_hash"]
    assert taught.history[-1].options["channels"] == own.history[-1].options["channels"]
    assert not np.array_equal(taught.initializers["w1"], own.initializers["w1"])
    member = methods.get("student")(teacher=str(tmp_path / "teacher.onnx"))
    before = member.depends_on()
    save_model(models.residual(seed=6), tmp_path / "teacher.onnx")
    assert before != member.depends_on()
    assert methods.get("student")().depends_on() == []


def test_a_teacher_that_does_not_fit_is_refused(tmp_path: Path) -> None:
    def taught(teacher: Model) -> None:
        save_model(teacher, tmp_path / "t.onnx")
        compress_model(plain((8, 8)), f"student:threads=1,epochs=1,teacher={tmp_path / 't.onnx'}", _small())

    with pytest.raises(DataError, match=r"takes inputs \[3, 12, 12\]"):
        taught(models.residual())
    other = plain((8, 8)).editable()
    weight = other.graph.initializers["fc"]
    weight.const_value = ir.tensor(np.ones((7, 8), np.float32), name="fc")
    weight.shape = ir.Shape([7, 8])
    other.graph.outputs[0].shape = ir.Shape(["N", 7])
    with pytest.raises(DataError, match="tells 7 classes apart, tidied 10"):
        taught(Model(other, "seven"))
    with pytest.raises(DataError, match="not found"):
        compress_model(plain((8, 8)), "student:teacher=nowhere.onnx", _small())


def test_a_killed_run_goes_on_with_the_same_widths_and_ends_with_the_same_weights(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", "0")
    method = methods.get("student")(latency_ms=8.0, threads=1, epochs=3, batch_size=8)
    model, data, drift = plain(), _small(), stairs(16)
    whole = method.apply(model, data, costs=drift)  # type: ignore[call-arg]
    told: list[str] = []

    def stop(fraction: float, text: str) -> None:
        told.append(text)
        if text == "epoch 2 of 3":
            raise KeyboardInterrupt

    with checkpoints_in(tmp_path), pytest.raises(KeyboardInterrupt):
        method.apply(model, data, stop, costs=drift)  # type: ignore[call-arg]
    # Times are never the same twice: measured again, other widths would come out.
    later = dataclasses.replace(drift, of_network=lambda m: 3 * drift.of_network(m))
    told.clear()
    with checkpoints_in(tmp_path):
        resumed = method.apply(model, data, lambda f, t: told.append(t), costs=later)  # type: ignore[call-arg]
    assert told[0] == "resumed with the widths found before"
    assert any(t.startswith("resumed at step") for t in told)
    for name, array in whole.initializers.items():
        assert np.array_equal(array, resumed.initializers[name]), name
    assert resumed.history[-1].options == whole.history[-1].options
