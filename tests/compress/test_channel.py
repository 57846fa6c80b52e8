from __future__ import annotations

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime
import pytest

from dlas.compress.method import compress_model, methods
from dlas.compress.prune._criteria import CRITERIA, l1, l2
from dlas.core.errors import DataError, ModelError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.model import Model
from dlas.graph.passes import simplify
from dlas.testing import models


def run(model: Model, x: np.ndarray) -> np.ndarray:
    proto = model.to_proto()
    onnx.checker.check_model(proto, full_check=True)
    session = onnxruntime.InferenceSession(proto.SerializeToString(), providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {model.inputs[0].name: x})[0])


def rows(count: int = 64) -> Dataset:
    """Inputs in the network's own layout, labelled by the network itself, so that training has something to keep."""
    x = models.images(count, seed=7)
    return Dataset("rows", x, run(models.residual(), x).argmax(1).astype(np.int64))


def sizes(model: Model) -> list[int]:
    graph = model.editable()
    simplify(graph)
    return [g.size for g in channels.groups(graph).prunable]


@pytest.mark.parametrize(("ratio", "left"), [(0.0, [8, 8]), (0.25, [6, 6]), (0.5, [4, 4]), (0.99, [1, 1])])
def test_ratio_holds_in_every_group_and_one_channel_stays(ratio: float, left: list[int]) -> None:
    model = models.residual()
    small = compress_model(model, f"channel:ratio={ratio}")
    assert sizes(small) == left[: len(sizes(model))]
    assert run(small, models.images(3)).shape == (3, 10)
    assert sizes(model)[0] == 8  # the original is untouched


def test_history_and_plan_tell_what_happened() -> None:
    model = models.residual()
    method = methods.get("channel")(ratio=0.5, criterion="l2")
    plan, small = method.plan(model), method.apply(model)
    step = small.history[-1]
    assert step.action == "channel"
    assert step.options["ratio"] == 0.5
    assert step.options["criterion"] == "l2"
    assert "channels removed" in step.notes[0]
    assert any("is an output of the network" in note for note in plan.notes)
    assert [(c.before, c.after) for c in plan.changes] == [("8 channels", "4 channels")] * len(plan.changes)
    graph = small.editable()
    simplify(graph)
    assert plan.expected["macs"].value == channels.groups(graph).macs < plan.expected["macs_before"].value
    stored = sum(a.size for a in small.initializers.values() if a.dtype == np.float32)
    assert plan.expected["parameters"].value == stored
    again = Model.from_proto(onnx.load_from_string(small.to_bytes()))
    assert again.history[-1] == step
    assert np.array_equal(run(again, models.images(2)), run(small, models.images(2)))


def test_the_least_important_channels_leave() -> None:
    """Where two channels of each group are zero, a quarter of the channels are exactly those: no answer changes."""
    graph = models.residual().editable()
    simplify(graph)
    for group in channels.groups(graph).prunable:
        channels.mask(graph, group.ids[[2, 5]])
    faint = Model(graph, "faint")
    for criterion in CRITERIA:
        small = compress_model(faint, f"channel:ratio=0.25,criterion={criterion}")
        assert sizes(small)[0] == 6
        assert np.abs(run(small, models.images(4)) - run(faint, models.images(4))).max() <= 1e-5


def test_criteria() -> None:
    filters = np.array([[3.0, -4.0], [5.0, 0.0], [-6.0, 0.0]])
    assert l1(filters).tolist() == [7, 5, 6]
    assert l2(filters).tolist() == [5, 5, 6]


def test_round_to_keeps_multiples() -> None:
    assert sizes(compress_model(models.residual(), "channel:ratio=0.6,round_to=4"))[0] == 4
    assert sizes(compress_model(models.residual(), "channel:ratio=0.4,round_to=8"))[0] == 8


def test_global_scope_removes_the_share_over_all_groups() -> None:
    model = models.residual()
    small = compress_model(model, "channel:ratio=0.5,scope=global")
    assert abs(sum(sizes(small)) - sum(sizes(model)) / 2) <= 1
    assert min(sizes(small)) >= 1


def test_residual_channels_can_be_left_out() -> None:
    model = models.residual()
    graph = model.editable()
    simplify(graph)
    coupled = [g for g in channels.groups(graph).prunable if g.coupled]
    assert coupled
    with pytest.raises(UnsupportedError, match="several layers share it"):
        compress_model(model, "channel:ratio=0.5,include_residual=false")


def test_compensation_brings_the_answers_back() -> None:
    x = models.images(128, seed=3)
    model, want = models.residual(), run(models.residual(), x)
    plain = compress_model(model, "channel:ratio=0.25")
    mended = compress_model(model, "channel:ratio=0.25,compensate,rows=256", rows(256))
    before, after = (np.square(run(m, x) - want).mean() for m in (plain, mended))
    assert after < 0.7 * before
    assert sizes(plain) == sizes(mended)


def test_compensation_of_a_network_of_fixed_batch() -> None:
    model = models.residual()
    graph = model.editable()
    graph.graph.inputs[0].shape = type(graph.graph.inputs[0].shape)([3, *graph.graph.inputs[0].shape[1:]])
    fixed = Model(graph, "fixed")
    small = compress_model(fixed, "channel:ratio=0.25,compensate,rows=32", rows(32))
    assert np.isfinite(run(small, models.images(3))).all()


def test_fine_tuning_goes_through_the_training_loop() -> None:
    calls: list[float] = []
    data = rows(96)
    small = compress_model(
        models.residual(),
        "channel:ratio=0.5,finetune_epochs=2,finetune_rows=64,batch_size=16",
        data,
        lambda fraction, what: calls.append(fraction),
    )
    assert [s.action for s in small.history[-2:]] == ["channel", "fine-tune"]
    assert calls == sorted(calls)
    assert calls[-1] == pytest.approx(1.0)


def test_data_are_asked_for_only_when_needed() -> None:
    plain, trained, mended = (
        methods.get("channel")(**o) for o in ({}, {"finetune_epochs": 1}, {"compensate": True})
    )
    assert (plain.wants_data, trained.wants_data, mended.wants_data) == (False, True, True)  # type: ignore[attr-defined]
    for method in (trained, mended):
        with pytest.raises(DataError, match="needs training rows"):
            method.apply(models.residual())


@pytest.mark.parametrize(
    "text",
    ["ratio=1.0", "ratio=-0.1", "ratio=nan", "criterion=l0", "scope=all", "round_to=0", "finetune_epochs=-1"],
)
def test_options_outside_their_range(text: str) -> None:
    with pytest.raises(OptionError):
        compress_model(models.residual(), f"channel:{text}")


def test_weights_that_are_not_finite() -> None:
    graph = models.residual().editable()
    value = graph.graph.initializers["w1"]
    assert value.const_value is not None
    array = value.const_value.numpy().copy()
    array[3, 0, 0, 0] = np.nan
    value.const_value = ir.tensor(array, name="w1")
    with pytest.raises(ModelError, match="NaN or infinite"):
        compress_model(Model(graph, "broken"), "channel:ratio=0.5")


def test_a_network_without_removable_channels() -> None:
    proto = onnx.parser.parse_model(
        '<ir_version: 9, opset_import: ["" : 18]> g (float[n, 4] x) => (float[n, 4] y) { y = Relu (x) }'
    )
    with pytest.raises(UnsupportedError, match="no channels that may be removed"):
        compress_model(Model.from_proto(proto), "channel:ratio=0.5")


def test_quantised_networks_can_lose_channels_too() -> None:
    small = compress_model(models.residual_quantized(), "channel:ratio=0.5")
    assert run(small, models.images(2)).shape == (2, 10)
    assert sizes(small)[0] == 4
