"""Networks with concatenation, groups, depthwise layers and shared weights are pruned right, or refused by name."""

from __future__ import annotations

from pathlib import Path

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from prune_nets import rows, unusual

from dlas.compress.method import compress_model
from dlas.compress.prune._taps import pooled_activations
from dlas.compress.prune._targets import remaining, weights
from dlas.core.errors import UnsupportedError
from dlas.graph import channels
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.testing import models

CHOICES = (
    "channel:ratio=0.4",
    "ice:ratio=0.4,include_residual=true,threads=1,batch_size=64,validation=0.2,distill=false",
    "fisher:ratio=0.4,include_residual=true,threads=1,batch_size=64,validation=0.2,steps=1,channels=5",
)


def test_removing_is_masking_in_every_group() -> None:
    graph = unusual().editable()
    x = models.images(3)
    found = channels.groups(graph)
    assert {p for g in found.prunable for p in g.producers} >= {"stem", "left", "mixed", "into"}
    for group in found.prunable:
        ids = group.ids[: max(1, group.size // 2)]
        removed, masked = graph.clone(), graph.clone()
        channels.remove(removed, ids)
        channels.mask(masked, ids)
        np.testing.assert_allclose(predict(Model(removed), x), predict(Model(masked), x), atol=1e-4)


def test_what_is_left_is_counted_before_it_is_done() -> None:
    graph = unusual().editable()
    random = np.random.default_rng(0)
    for _ in range(10):
        found = channels.groups(graph).prunable
        counts = [int(random.integers(0, g.size)) for g in found]
        smaller = graph.clone()
        channels.remove(smaller, np.concatenate([g.ids[:n] for g, n in zip(found, counts, strict=True)]))
        assert remaining(graph, found, counts) == weights(smaller)


@pytest.mark.parametrize("choice", CHOICES, ids=lambda c: c.partition(":")[0])
def test_methods_leave_a_smaller_dense_network_that_other_formats_take(choice: str, tmp_path: Path) -> None:
    model = unusual()
    x = models.images(40, seed=7)
    data = rows()
    small = compress_model(model, choice, data)
    onnx.checker.check_model(small.to_proto(), full_check=True)
    assert weights(small.ir) < 0.75 * weights(model.ir)
    answers = predict(small, x)
    assert np.isfinite(answers).all()
    save_model(small, tmp_path / "small.tflite")
    again = load_model(tmp_path / "small.tflite")
    given = x if again.inputs[0].shape[1] == 3 else x.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(predict(again, given), answers, atol=1e-3)


def test_shared_weights_stay_shared() -> None:
    small = compress_model(unusual(), CHOICES[0])
    users = [
        n.name for n in small.ir.graph if any(v is not None and v.name == "shared.weight" for v in n.inputs)
    ]
    assert users == ["once", "twice"]
    shape = small.initializers["shared.weight"].shape
    assert shape[0] == shape[1]


def test_activations_are_told_apart_by_channel() -> None:
    model = unusual()
    x = models.images(6)
    for group in channels.groups(model.ir).prunable:
        seen = pooled_activations(model, group, x)
        assert seen.shape == (6, group.size)
        dead = model.editable()
        channels.mask(dead, group.ids[:1])
        now = pooled_activations(Model(dead), group, x)
        assert np.abs(now[:, 0]).max() == 0
        if len(group.producers) == 1:
            np.testing.assert_allclose(now[:, 1:], seen[:, 1:], atol=1e-5)


def test_a_network_that_cannot_lose_channels_is_refused_by_name() -> None:
    graph = unusual().editable()
    for node in graph.graph:
        if node.op_type == "Relu":
            node.op_type = "Softmax"
            node.attributes["axis"] = ir.AttrInt64("axis", 1)
    stuck = Model(graph, "stuck")
    for choice in CHOICES:
        with pytest.raises(UnsupportedError, match=r"stuck has no channels that may be removed.*Softmax"):
            compress_model(stuck, choice, rows())
