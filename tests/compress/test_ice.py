"""ICE-Pruning: its rules as numbers, what each component does, resuming, and what is refused."""

from __future__ import annotations

import functools
import json
import math
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from prune_nets import blocks, rows

from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.method import methods
from dlas.compress.prune import _ice_rules as rules
from dlas.compress.prune import _rounds
from dlas.compress.training import DivergedError
from dlas.core.errors import DataError, OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.testing import models
from dlas.testing.methods import MethodSuite

QUICK: dict[str, Any] = {"batch_size": 64, "threads": 1, "distill": False, "validation": 0.2}


def ice(
    model: Model | None = None, data: Dataset | None = None, progress: Any = None, **options: Any
) -> Model:
    if model is None and data is None and progress is None:
        return plain(tuple(options.items()))
    member = methods.get("ice")(**{**QUICK, **options})
    return member.apply(model or blocks(), data or rows(), progress)


@functools.cache
def plain(options: tuple[tuple[str, Any], ...]) -> Model:
    """What no test changes is made once."""
    return ice(blocks(), rows(), **dict(options))


def recipe(model: Model) -> dict[str, Any]:
    return dict(model.history[-1].options)


class TestIce(MethodSuite):
    method = "ice:batch_size=64,threads=1,validation=0.2,distill=false,epochs=1"

    def network(self) -> Model:
        return blocks(count=1)

    def training(self) -> Dataset:
        return rows()

    def test_the_same_seed_gives_the_same_network(self, member: Any) -> None:
        """To the bit, but for the seconds in its history."""
        first, second = (member.apply(self.network(), self.training()) for _ in range(2))
        assert first.hash == second.hash


@settings(max_examples=60, deadline=None)
@given(
    base=st.floats(1e-5, 1.0),
    share=st.floats(0.01, 0.99),
    pivot=st.floats(0.01, 0.49),
    steepness=st.floats(1.0, 100.0),
    left=st.lists(st.floats(0.0, 1.0), min_size=2, max_size=6),
)
def test_the_learning_rate_falls_by_half_its_fall_at_the_pivot_and_never_rises(
    base: float, share: float, pivot: float, steepness: float, left: list[float]
) -> None:
    drop = share * base

    def rate(x: float) -> float:
        return rules.learning_rate(x, base=base, drop=drop, pivot=pivot, steepness=steepness)

    assert rate(1 - pivot) == base - drop / 2
    rates = [rate(x) for x in sorted(left)]
    assert rates == sorted(rates)
    assert all(base - drop <= r <= base for r in rates)


def test_the_learning_rate_of_the_published_settings() -> None:
    published = {"base": 1e-3, "drop": 7.5e-4, "pivot": 0.12, "steepness": 50.0}
    assert rules.learning_rate(1.0, **published) == pytest.approx(1e-3, rel=1e-4)
    assert rules.learning_rate(0.8, **published) == pytest.approx(2.5e-4, rel=0.01)
    x = 0.87
    by_hand = 1e-3 - 7.5e-4 / (1 + (x / (2 * 0.88 - x)) ** 50)
    assert rules.learning_rate(x, **published) == pytest.approx(by_hand, rel=1e-9)


@pytest.mark.parametrize("wrong", [{"lr_pivot": 0.0}, {"lr_drop": 0.005}, {"lr_drop": 0.0}, {"lr": 0.0005}])
def test_learning_rates_that_make_no_sense(wrong: dict[str, float]) -> None:
    with pytest.raises(OptionError, match="lr_"):
        methods.get("ice")(**wrong)
    methods.get("ice")(adapt_lr=False, **wrong)


def test_the_layers_that_moved_least_are_frozen() -> None:
    rng = np.random.default_rng(0)
    before = {name: np.abs(rng.standard_normal((4, 4))) + 1 for name in "abcde"}
    steps = {"a": 0.3, "b": 0.0, "c": 0.1, "d": 0.2, "e": 0.4}
    after = {name: before[name] + steps[name] for name in before}
    original = {name: np.ones((4, 4)) for name in before}
    assert rules.least_moved(original, before, after, 0.5) == ["b", "c", "d"]
    assert rules.least_moved(original, before, after, 0.0) == []
    heavy = {**original, "e": np.full((4, 4), 1000.0)}
    assert rules.least_moved(heavy, before, after, 0.4) == ["b", "e"]
    turned = {name: -array for name, array in before.items()}  # norms alone count
    assert rules.least_moved(original, before, {**before, "a": turned["a"]}, 1.0)[:1] == ["a"]


def test_a_frozen_prefix_saves_more_than_the_same_layers_scattered() -> None:
    assert rules.cost_of_epoch([True] * 6) == 1.0
    prefix = rules.cost_of_epoch([False] * 3 + [True] * 3)
    scattered = rules.cost_of_epoch([True, False, True, False, True, False])
    assert prefix < scattered < 1
    assert rules.cost_of_epoch([False] * 6) == pytest.approx(6 / 17)


def test_entropy_of_a_histogram() -> None:
    even = np.tile(np.arange(20.0), 5)
    halves = np.repeat([0.0, 1.0], 50)
    found = rules.entropy(np.stack([even, halves, np.ones(100)], axis=1))
    np.testing.assert_allclose(found, [math.log2(20), 1.0, 0.0], atol=1e-12)


def test_objectives() -> None:
    assert rules.published_objective(10.0, 2.0) == pytest.approx(1.2)
    assert rules.published_objective(2.0, 10.0) == pytest.approx(1.2)
    assert rules.published_objective(0.0, -3.0) == 0.0
    assert rules.objective(50, 0.5, reference=100, accuracy_budget=1.0) == pytest.approx(1.0)
    assert rules.objective(50, -9.0, reference=100, accuracy_budget=1.0) == pytest.approx(0.5)


def test_threshold_zero_trains_after_every_step_and_101_after_none() -> None:
    for decision in ("original", "running"):
        made = recipe(ice(threshold=0, decision=decision))
        assert made["fine_tunes"] == len(made["steps"]) > 1
        assert recipe(ice(threshold=101, decision=decision, final_epochs=0))["fine_tunes"] == 0


def test_the_plain_loop_is_the_same_code_with_all_components_off() -> None:
    made = recipe(ice(decide=False, freeze="none", adapt_lr=False, final_epochs=0))
    assert made["fine_tunes"] == len(made["steps"])
    assert made["epochs_worth"] == len(made["steps"])
    assert {s["lr"] for s in made["steps"]} == {0.005}
    assert {s["frozen"] for s in made["steps"]} == {0}


def test_what_is_frozen_stays_to_the_bit() -> None:
    model = blocks()
    made = ice(model, threshold=0, freeze="least-moved", freeze_ratio=0.5, final_epochs=0)
    assert "probe" in recipe(made)["seconds"]
    before, after = model.initializers, made.initializers
    frozen = recipe(made)["frozen_by_probe"]
    assert sum(n.endswith("weight") for n in frozen) == 4  # of 8
    assert sum(".bn." in n for n in frozen) >= 6
    for name in frozen:  # what channels left of it
        assert np.isin(after[name].reshape(-1), before[name].reshape(-1)).all(), name
    trained = ice(model, threshold=0, freeze="none", final_epochs=0).initializers
    assert not any(np.isin(trained[n].reshape(-1), before[n].reshape(-1)).all() for n in frozen)


def test_the_prefix_before_the_pruned_layer_stands_still() -> None:
    made = recipe(ice(threshold=0, freeze="prefix", final_epochs=1))
    frozen = [s["frozen"] for s in made["steps"]]
    assert frozen[0] < frozen[-1]
    assert frozen == sorted(frozen)
    assert made["epochs_worth"] < len(made["steps"]) + 1


def test_a_running_reference_is_what_the_last_training_reached() -> None:
    options = {"ratio": 0.9, "threshold": 5.0, "lr": 1e-4, "lr_drop": 1e-5, "final_epochs": 0}
    published = recipe(ice(decision="original", **options))
    ours = recipe(ice(decision="running", **options))
    assert published["fine_tunes"] > ours["fine_tunes"] > 0


@pytest.mark.parametrize("criterion", ["l1", "random", "entropy", "mean-activation"])
def test_criteria_choose_different_channels_of_the_same_number(criterion: str) -> None:
    made = ice(criterion=criterion, threshold=101, final_epochs=0)
    plain = ice(threshold=101, final_epochs=0)
    shapes = {n: a.shape for n, a in made.initializers.items()}
    assert shapes == {n: a.shape for n, a in plain.initializers.items()}
    if criterion != "l1":
        assert made.hash != plain.hash


def test_a_target_is_reached_and_not_overshot_by_more_than_a_channel_each() -> None:
    for target in (0.2, 0.45):
        made = ice(target_sparsity=target, threshold=101, final_epochs=0)
        model = blocks()
        size = lambda m: sum(a.size for a in m.initializers.values() if a.ndim >= 2)  # noqa: E731
        assert target <= 1 - size(made) / size(model) <= target + 0.12
    plan = methods.get("ice")(target_sparsity=0.45).plan(model)
    assert plan.expected["weights"].value == size(made)


def test_a_target_out_of_reach_says_what_is_in_reach() -> None:
    with pytest.raises(UnsupportedError, match=r"0\.\d+ of the weights are gone"):
        ice(target_sparsity=0.999)


def test_layers_are_chosen_by_name() -> None:
    model = blocks()
    steps = recipe(ice(threshold=101, final_epochs=0))["steps"]
    names = [s["layer"] for s in steps]
    one = recipe(ice(layers=names[-1], threshold=101, final_epochs=0))
    assert [s["layer"] for s in one["steps"]] == names[-1:]
    with pytest.raises(UnknownNameError, match=names[0]):
        ice(model, layers=names[0] + "x")


def test_rows_that_will_not_do() -> None:
    few = rows(30)
    with pytest.raises(DataError, match="30 rows"):
        ice(data=few)
    with pytest.raises(DataError, match="no labels"):
        ice(data=Dataset("bare", few.samples))
    with pytest.raises(DataError, match="10 outputs"):
        ice(data=Dataset("wide", rows().samples, rows().labels + 9))


@pytest.mark.parametrize("budget", ["30", "-3m", "m", "nan s", "1d", "0s"])
def test_budgets_that_are_no_time(budget: str) -> None:
    with pytest.raises(OptionError, match="30m"):
        methods.get("ice")(budget=budget)


def test_a_budget_that_is_spent_leaves_the_training_out() -> None:
    made = ice(budget="0.001s", threshold=0)
    assert recipe(made)["fine_tunes"] == 0
    assert "left no time" in " ".join(made.history[-1].notes)
    assert recipe(ice(budget="1h", threshold=0))["fine_tunes"] > 0


def test_tuning_takes_the_best_draw_and_says_so() -> None:
    told: list[str] = []
    made = ice(tune=True, tune_draws=2, progress=lambda _, text: told.append(text))
    draws = [t for t in told if t.startswith("tuning")]
    assert len(draws) == 2
    assert any("tuned on 2%" in note for note in made.history[-1].notes)
    best = min(draws, key=lambda t: float(t.split(": ")[1].split()[0]))
    assert f"threshold={recipe(made)['in_force']['threshold']:g}" in best
    assert recipe(made)["seconds"]["tuning"] > 0


def test_paper_follows_the_published_rules() -> None:
    made = recipe(ice(paper=True))["in_force"]
    assert (made["decision"], made["freeze"], made["final_epochs"]) == ("original", "least-moved", 0)
    thresholds = [
        methods.get("ice")(**o).options.in_force.threshold for o in ({"paper": True}, {}, {"threshold": 2})
    ]
    assert thresholds == [1.5, 6.0, 2.0]


def test_validation_rows_are_not_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    data = rows(160)
    doubled = data.take(np.concatenate([np.arange(160), np.arange(80)]))
    seen: dict[str, set[bytes]] = {"train": set(), "judge": set()}
    train, judge = _rounds.train, _rounds.accuracy

    def spy_train(module: Any, inputs: np.ndarray, *rest: Any, **named: Any) -> Any:
        seen["train"].update(x.tobytes() for x in inputs)
        return train(module, inputs, *rest, **named)

    def spy_judge(model: Model, given: Any, threads: int) -> float:
        seen["judge"].update(x.tobytes() for x in given.inputs)
        return judge(model, given, threads)

    monkeypatch.setattr(_rounds, "train", spy_train)
    monkeypatch.setattr("dlas.compress.prune._ice_run.accuracy", spy_judge)
    ice(data=doubled, threshold=0)
    assert len(seen["judge"]) >= 20
    assert not seen["train"] & seen["judge"]
    assert len(seen["train"] | seen["judge"]) == 160


def test_a_killed_run_goes_on_after_its_last_step(tmp_path: Path) -> None:
    whole = ice(threshold=0)

    def stop(_: float, text: str) -> None:
        if text.startswith("step 1"):
            raise KeyboardInterrupt

    with checkpoints_in(tmp_path), pytest.raises(KeyboardInterrupt):
        ice(threshold=0, progress=stop)
    told: list[str] = []
    with checkpoints_in(tmp_path):
        resumed = ice(threshold=0, progress=lambda _, text: told.append(text))
    assert told[0].startswith("resumed after step 1")
    assert not any(t.startswith("step 1") for t in told)
    assert resumed.hash == whole.hash
    assert len(recipe(resumed)["steps"]) == len(recipe(whole)["steps"])
    told.clear()
    with checkpoints_in(tmp_path):
        ice(threshold=0, seed=1, progress=lambda _, text: told.append(text))
    assert not told[0].startswith("resumed")


def test_a_loss_that_diverges_leaves_the_last_good_network(tmp_path: Path) -> None:
    options = {"threshold": 0, "lr": 1e30, "adapt_lr": False}
    with checkpoints_in(tmp_path), pytest.raises(DivergedError, match="step 1 of") as caught:
        ice(data=rows(), **options)
    kept = tmp_path / "training-001-last-good.onnx"
    assert str(kept) in caught.value.hint
    assert "smaller learning rate" in caught.value.hint
    found = Model.from_proto(onnx.load(kept))
    assert np.isfinite(predict(found, models.images(3))).all()
    with pytest.raises(DivergedError, match="step 1 of") as caught:
        ice(**options)
    assert caught.value.last_good.hash == found.hash


def test_where_the_last_good_network_cannot_be_kept_the_loss_is_still_what_is_told(tmp_path: Path) -> None:
    blocked = tmp_path / "file"
    blocked.write_text("no folder")
    with checkpoints_in(blocked), pytest.raises(DivergedError, match="step 1 of") as caught:
        ice(lr=1e30, adapt_lr=False, decide=False)
    assert "could not be kept" in str(caught.value.hint)


def test_the_report_holds_every_step_and_fits_json() -> None:
    told: list[str] = []
    made = ice(threshold=0, progress=lambda _, text: told.append(text))
    text = json.dumps(made.history[-1].to_dict(), allow_nan=False)
    assert all(word in text for word in ("pruned_accuracy", "fine_tunes", "seconds", "epochs_worth"))
    steps = [t for t in told if t.startswith("step ")]
    assert len(steps) == len(recipe(made)["steps"])
    assert all("accuracy" in t and "loss" in t for t in steps)
    assert "validation rows" in " ".join(made.history[-1].notes)


def test_nothing_is_computed_backwards_through_a_frozen_prefix() -> None:
    from dlas.compress.prune._ice_run import _before
    from dlas.compress.training import Schedule

    model = blocks()
    seen: dict[str, bool] = {}
    values = [f"b{i}.end" for i in range(3)]

    def watch(module: Any) -> Any:
        for name in values:
            module.on_value(name, lambda x, name=name: (seen.__setitem__(name, x.requires_grad), x)[1])
        return lambda: None

    data = rows(64)
    part = _rounds.Rows(data.samples, data.labels)
    frozen = _before(model.ir, {"b2.conv1"})
    trained, _ = _rounds.trained(model, part, Schedule(1, 0.1, threads=1), frozen=frozen, watch=watch)
    assert seen == {"b0.end": False, "b1.end": False, "b2.end": True}
    for name, before in model.initializers.items():
        learned = name.endswith(("weight", "scale", "bias")) and name not in frozen
        changed = not np.array_equal(before, trained.initializers[name])
        assert changed == (learned or name.endswith((".mean", ".var"))), name


def test_zeros_of_an_earlier_pruning_stay() -> None:
    sparse = methods.get("magnitude")(sparsity=0.6).apply(blocks())
    made = ice(sparse, threshold=0)
    array = made.initializers["b1.conv2.weight"]
    was = sparse.initializers["b1.conv2.weight"]
    channels_left = array.shape[1]
    assert channels_left < was.shape[1]
    sparsity = lambda a: float((a == 0).mean())  # noqa: E731
    assert sparsity(array) == pytest.approx(sparsity(was), abs=0.15)
    assert sparsity(ice(blocks(), threshold=0).initializers["b1.conv2.weight"]) < 0.01


def test_a_ratio_of_nothing_removes_nothing() -> None:
    made = ice(ratio=0.0)
    assert made.initializers["b0.conv1.weight"].shape == blocks().initializers["b0.conv1.weight"].shape
    assert recipe(made)["steps"] == []


def test_only_whole_batches_are_trained_on(monkeypatch: pytest.MonkeyPatch) -> None:
    """A last batch of a few rows moves the weights as far as a whole one, and at random."""
    lengths: list[int] = []
    first: set[bytes] = set()
    train = _rounds.train

    def spy(module: Any, inputs: np.ndarray, *rest: Any, **named: Any) -> Any:
        lengths.append(len(inputs))
        first.add(inputs[0].tobytes())
        return train(module, inputs, *rest, **named)

    monkeypatch.setattr(_rounds, "train", spy)
    ice(data=rows(), threshold=0, batch_size=64, final_epochs=0)
    assert set(lengths) == {128}
    assert len(first) == len(lengths)  # not the same rows each time
