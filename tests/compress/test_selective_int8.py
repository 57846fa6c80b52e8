"""selective-int8: which layers it leaves float, what it records, and what it does with little room to choose."""

from __future__ import annotations

import dataclasses
import json
import logging
import re
from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.calibration import calibration_batches
from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.method import methods
from dlas.compress.quantize._int8 import selection
from dlas.compress.quantize._int8.front import Point, pareto, ranked
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.testing import models

WIDTH, DEPTH, CLASSES = 64, 6, 8


def chain(spoiled: int | None = 3, seed: int = 0, outlier: float = 3000.0) -> Model:
    """Fully connected layers; one of them has an input channel that is far out but carries hardly anything.

    The layer before it puts a large constant into that channel, which the next layer multiplies by almost nothing:
    rounded to 8 bits over the whole range, the other channels are lost.
    """
    rng = np.random.default_rng(seed)
    nodes, constants, x = [], {}, "x"
    for i in range(DEPTH):
        out = CLASSES if i == DEPTH - 1 else WIDTH
        w = (rng.standard_normal((out, WIDTH)) * np.sqrt(2 / WIDTH)).astype(np.float32)
        b = (rng.standard_normal(out) * 0.1).astype(np.float32)
        if i == spoiled:
            b[0] = outlier
        if spoiled is not None and i == spoiled + 1:
            w[:, 0] = 1e-6
        constants |= {f"w{i}": w, f"b{i}": b}
        nodes.append(helper.make_node("Gemm", [x, f"w{i}", f"b{i}"], [f"g{i}"], name=f"fc{i}", transB=1))
        x = f"g{i}"
        if i < DEPTH - 1:
            nodes.append(helper.make_node("Relu", [x], [f"r{i}"], name=f"relu{i}"))
            x = f"r{i}"
    graph = helper.make_graph(
        nodes,
        "chain",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", WIDTH])],
        [helper.make_tensor_value_info(x, TensorProto.FLOAT, ["N", CLASSES])],
        [numpy_helper.from_array(a, n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "chain")


def rows(count: int = 192, width: int = WIDTH, seed: int = 1) -> Dataset:
    x = np.random.default_rng(seed).standard_normal((count, width)).astype(np.float32)
    return Dataset("rows", x)


def select(model: Model, data: Dataset | None = None, **options: object) -> Model:
    given = {"rows": 64, "images": 64, "held_out": 64, **options}
    return methods.get("selective-int8")(**given).apply(model, data or rows())


def front_of(model: Model) -> list[dict]:
    return model.history[-1].options["front"]


def chosen(model: Model) -> tuple[dict, list[str]]:
    point = next(p for p in front_of(model) if p["chosen"])
    ranking = model.history[-1].options["ranking"]
    return point, [ranking[i] for i in point["float_layers"]]


def float_layers(model: Model) -> set[str]:
    """Layers of the file whose weights are not behind a DequantizeLinear."""
    return {
        str(n.name)
        for n in model.ir.graph
        if n.op_type in ("Gemm", "Conv") and n.inputs[1].producer() is None  # type: ignore[union-attr]
    }


@pytest.mark.parametrize("choose", ["knee", "smallest"])
@pytest.mark.parametrize("spoiled", [1, 3])
def test_the_one_layer_that_quantises_badly_is_found(choose: str, spoiled: int) -> None:
    found = select(chain(spoiled), choose=choose, max_label_diff=0.1)
    point, names = chosen(found)
    ends = {len(p["float_layers"]): p for p in front_of(found)}
    assert ends[0]["label_diff"] >= 0.25
    assert point["label_diff"] <= 0.1
    assert point["held_out_label_diff"] <= 0.15
    # Its output must not be rounded: the layer that writes it and the one that reads it stay float, the rest not.
    assert set(names) == {f"fc{spoiled}", f"fc{spoiled + 1}"}
    assert float_layers(found) == set(names)
    assert f"2 of {DEPTH} layers stay float: " in found.history[-1].notes[0]


def test_a_network_that_int8_keeps_right_stays_int8() -> None:
    found = select(chain(None), max_label_diff=0.2, choose="smallest")
    assert chosen(found)[1] == []
    assert float_layers(found) == set()


def test_the_int8_end_is_what_int8_makes_of_the_calibration_rows() -> None:
    model, data = chain(None), rows(64)
    batches, count = calibration_batches(model, data, 64)
    recipe = selection.Recipe(True, "mse", 99.99, True, True, "")
    mixture = selection.Mixture(model, recipe)
    mixture.calibrate(batches, count)
    graph, _ = mixture.made()
    whole = methods.get("int8")().apply(model, data)
    assert ir.to_proto(graph).SerializeToString() == ir.to_proto(whole.ir).SerializeToString()


@pytest.mark.parametrize("search", ["bisect", "sweep"])
def test_the_front_goes_from_int8_to_float_and_bytes_buy_faithfulness(search: str) -> None:
    front = front_of(select(chain(), search=search, calibration="min-max"))
    counts = [len(p["float_layers"]) for p in front]
    assert (counts[0], counts[-1]) == (0, DEPTH)
    assert front[-1]["label_diff"] == 0
    assert "sqnr_db" not in front[-1]  # identical answers
    sizes = [p["size_bytes"] for p in front]
    assert sizes == sorted(set(sizes))
    loss = [(p["label_diff"], -p.get("sqnr_db", np.inf)) for p in front]
    assert loss == sorted(set(loss), reverse=True)
    assert sorted(p["rank"] for p in front if p["rank"]) == list(range(1, min(3, len(front)) + 1))
    json.dumps(front)


def test_a_sweep_leaves_one_more_layer_float_at_a_time_and_grows_with_each() -> None:
    told: list[str] = []
    method = methods.get("selective-int8")(search="sweep", rows=64, images=64, held_out=64)
    method.apply(chain(), rows(), lambda done, what: told.append(what))
    tried = [t.split(": ")[1] for t in told if t.startswith("network")]
    assert tried[:3] == [f"{n} of 6 layers float" for n in (6, 0, 1)]
    assert tried[1:] == [f"{n} of 6 layers float" for n in range(len(tried) - 1)]


def test_the_same_seed_gives_the_same_front_and_another_one_other_rows() -> None:
    first, second = (select(chain(), data=rows(400), seed=4) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    other = select(chain(), data=rows(400), seed=5)
    assert front_of(other) != front_of(first)


def test_bisection_tries_fewer_networks_than_a_sweep_and_its_answer_is_no_larger() -> None:
    model = chain(0)
    found = {s: select(model, search=s, choose="smallest", max_label_diff=0.1) for s in ("bisect", "sweep")}
    size = {s: chosen(m)[0]["size_bytes"] for s, m in found.items()}
    assert size["bisect"] <= size["sweep"]


def test_at_most_so_many_layers_stay_float() -> None:
    found = select(chain(), max_float_layers=1, choose="smallest")
    assert len(chosen(found)[1]) <= 1
    assert any("no network within the limits is right" in n for n in found.history[-1].notes)
    assert len(front_of(found)[-1]["float_layers"]) == DEPTH  # the float end is on record all the same


def test_a_choice_that_other_rows_do_not_confirm_says_so() -> None:
    found = select(chain(), choose="smallest", images=2, max_label_diff=0.01)
    point, _ = chosen(found)
    unconfirmed = point["held_out_label_diff"] > 0.01
    assert unconfirmed, "two rows can hardly tell; take another seed"
    assert any("do not confirm" in n for n in found.history[-1].notes)


def test_the_search_ends_where_it_must() -> None:
    found = select(chain(seed=3), max_networks=4, search="sweep")
    assert any("the search ended at 4 networks" in n for n in found.history[-1].notes)


def test_the_first_right_one_is_what_the_published_procedure_stops_at() -> None:
    found = select(chain(), search="sweep", choose="first-right", max_label_diff=0.1)
    point, _ = chosen(found)
    assert point["label_diff"] <= 0.1
    assert point["float_layers"] == list(range(len(point["float_layers"])))  # a prefix of the ranking


def test_layers_kept_float_by_name_are_not_chosen_from() -> None:
    found = select(chain(None), keep_float="fc2|fc3", max_label_diff=1.0)
    assert not {"fc2", "fc3"} & set(found.history[-1].options["ranking"])
    assert float_layers(found) == {"fc2", "fc3"}


def test_time_is_an_objective_where_someone_can_tell_it() -> None:
    asked: list[Model] = []

    def latency_ms(network: Model) -> float:
        asked.append(network)
        return 10.0 - len(float_layers(network))  # here float is fast

    method = methods.get("selective-int8")(rows=64, images=64, held_out=64)
    found = method.apply(chain(), rows(), latency_ms=latency_ms)  # type: ignore[call-arg]
    assert asked
    assert all(p["latency_ms"] == 10.0 - len(p["float_layers"]) for p in front_of(found))


def test_answers_that_are_no_labels_are_judged_by_their_error() -> None:
    model = models.residual()
    graph = model.editable()
    mean = next(n for n in graph.graph if n.op_type == "GlobalAveragePool")
    graph.graph.outputs[0] = mean.inputs[0]  # a map of features
    from onnx_ir.passes.common import RemoveUnusedNodesPass

    RemoveUnusedNodesPass()(graph)
    features = Model(graph, "features")
    data = Dataset("images", models.images(48))
    found = select(features, data, rows=16, images=16, held_out=16, max_label_diff=0.05, choose="smallest")
    point, _ = chosen(found)
    assert "label_diff" not in point
    assert point.get("sqnr_db", np.inf) >= 20 * np.log10(1 / 0.05)


def test_a_fixed_batch_is_filled_up() -> None:
    free = select(chain(), rows(60), rows=20, images=20, held_out=20)
    model = chain()
    graph = model.editable()
    graph.graph.inputs[0].shape = ir.Shape([7, WIDTH])
    for node in graph.graph:
        node.outputs[0].shape = ir.Shape([7, *list(node.outputs[0].shape or [])[1:]])
    fixed = select(dataclasses.replace(model, ir=graph), rows(60), rows=20, images=20, held_out=20)
    assert front_of(fixed)[0]["label_diff"] == pytest.approx(front_of(free)[0]["label_diff"], abs=0.1)


def test_a_killed_search_goes_on_where_it_was(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, caplog: pytest.LogCaptureFixture
) -> None:
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", "0")
    wanted = select(chain()).to_bytes()
    tries: list[int] = []
    real = selection.difference

    def killed(a: np.ndarray, b: np.ndarray) -> tuple[float | None, float]:
        tries.append(1)
        if len(tries) == 4:
            raise KeyboardInterrupt
        return real(a, b)

    monkeypatch.setattr("dlas.compress.quantize.selective_int8.difference", killed)
    with checkpoints_in(tmp_path), pytest.raises(KeyboardInterrupt):
        select(chain())
    told: list[str] = []
    method = methods.get("selective-int8")(rows=64, images=64, held_out=64)
    with checkpoints_in(tmp_path):
        found = method.apply(chain(), rows(), lambda done, what: told.append(what))
    assert any(re.fullmatch(r"resumed with [123] networks already tried", t) for t in told)
    assert found.to_bytes() == wanted
    with checkpoints_in(tmp_path), caplog.at_level(logging.WARNING, "dlas"):
        select(chain(), seed=1)  # other rows: what is saved is of no use
    assert "belongs to another training" in caplog.text


@pytest.mark.parametrize("count", [24, 29, 60])
def test_few_rows_are_shared_out(count: int) -> None:
    found = select(chain(None), rows(count))
    assert f"on the {8 + (count - 24) // 3} rows" in found.history[-1].notes[1]


def test_bad_input_is_told() -> None:
    with pytest.raises(DataError, match=r"rows has 23"):
        select(chain(), rows(23))
    with pytest.raises(DataError):
        select(chain(), rows(30, width=WIDTH + 1))
    with pytest.raises(UnsupportedError, match="already quantised"):
        select(select(chain(None)))
    with pytest.raises(OptionError, match="choose"):
        select(chain(), choose="best")
    with pytest.raises(OptionError, match="max_label_diff"):
        select(chain(), max_label_diff=1.5)


def test_a_network_of_numbers_that_are_none_counts_as_different() -> None:
    a = np.eye(4, dtype=np.float32)
    bad = a.copy()
    bad[0, 0] = np.nan
    assert selection.difference(a, bad) == (1.0, 1.0)
    assert selection.difference(a, a) == (0.0, 0.0)
    assert selection.difference(a, a[::-1])[0] == 1.0
    assert selection.difference(a[:, :1], bad[:, :1]) == (None, 1.0)


def test_the_plan_lists_the_layers_to_choose_from_and_needs_no_rows() -> None:
    plan = methods.get("selective-int8")().plan(models.residual())
    assert [c.what.split(":")[0] for c in plan.changes] == ["Conv", "Conv", "Add", "Conv", "Gemm"]
    before, least = plan.expected["weight_bytes_before"].value, plan.expected["weight_bytes_least"].value
    assert before / 4 < least < before / 3


def test_the_front_keeps_what_nothing_beats() -> None:
    def point(n: int, diff: float, error: float, size: int, ms: float | None = None) -> Point:
        return Point(tuple(range(n)), diff, error, size, ms)

    int8, flt = point(0, 0.5, 0.5, 100), point(9, 0.0, 0.0, 400)
    good, beaten, tie = point(1, 0.01, 0.1, 120), point(2, 0.2, 0.2, 130), point(3, 0.01, 0.2, 120)
    front = pareto([beaten, flt, tie, good, int8])
    assert front == [int8, good, flt]
    assert [p.rank for p in ranked(front)] == [2, 1, 3]
    slow = [dataclasses.replace(p, latency_ms=float(i)) for i, p in enumerate((good, beaten))]
    assert len(pareto(slow)) == 1
    assert len(pareto([slow[0], dataclasses.replace(slow[1], latency_ms=-1.0)])) == 2
    # One row of a hundred is no reason for a larger network.
    near = [point(0, 0.01, 0.1, 100), point(9, 0.0, 0.0, 400)]
    assert [p.rank for p in ranked(near)] in ([1, 2], [2, 1])
    assert [p.rank for p in ranked(near, 0.03)] == [1, 2]


def test_onnx_runtime_leaves_the_float_layers_float(tmp_path: Path) -> None:
    """It rounds the weights of a float layer between two quantised tensors, unless it is kept from it."""
    made = methods.get("int8")(keep_float="conv3_Conv").apply(
        models.residual(), Dataset("images", models.images(32))
    )
    options = ort.SessionOptions()
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_BASIC
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(made.to_bytes(), options, providers=["CPUExecutionProvider"])
    optimised = onnx.load(tmp_path / "optimised.onnx").graph
    weights = {t.name: t.data_type for t in optimised.initializer}
    kinds = [weights.get(n.input[1]) for n in optimised.node if n.op_type == "Conv"]
    assert kinds.count(TensorProto.FLOAT) == 1  # the others read from a DequantizeLinear
    x = models.images(50, seed=8)
    np.testing.assert_allclose(predict(made, x, level="basic"), predict(made, x, level="disable"), atol=1e-4)


def test_the_result_runs_on_integer_kernels_and_answers_as_recorded() -> None:
    model, data = chain(), rows(192)
    found = select(model, data, max_label_diff=0.1, choose="smallest")
    x = rows(200, seed=9).samples
    assert isinstance(x, np.ndarray)
    differ = np.mean(predict(model, x).argmax(1) != predict(found, x).argmax(1))
    assert differ <= 0.15
