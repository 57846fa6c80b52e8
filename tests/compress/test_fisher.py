"""Fisher pruning as a method: what leaves, what stays, targets, cost, resuming."""

from __future__ import annotations

from pathlib import Path
from typing import Any

import numpy as np
import onnx_ir as ir
import pytest
from prune_nets import blocks, rows

from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.method import methods
from dlas.compress.training import DivergedError
from dlas.core.errors import DataError, OptionError, UnknownNameError, UnsupportedError
from dlas.graph import channels
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.testing import models
from dlas.testing.methods import MethodSuite

QUICK: dict[str, Any] = {
    "batch_size": 32,
    "steps": 2,
    "channels": 4,
    "threads": 1,
    "validation": 0.2,
    "finetune_epochs": 0,
}


def fisher(model: Model | None = None, progress: Any = None, **options: Any) -> Model:
    return methods.get("fisher")(**{**QUICK, **options}).apply(model or blocks(), rows(), progress)


def weights(model: Model) -> int:
    return sum(a.size for a in model.initializers.values() if a.ndim >= 2)


def widths(model: Model) -> list[int]:
    return [model.initializers[f"b{i}.conv1.weight"].shape[0] for i in range(3)]


class TestFisher(MethodSuite):
    method = "fisher:batch_size=32,steps=1,channels=4,threads=1,validation=0.2"

    def network(self) -> Model:
        return blocks(count=1)

    def training(self) -> Any:
        return rows()

    def test_the_same_seed_gives_the_same_network(self, member: Any) -> None:
        """To the bit, but for the seconds in its history."""
        first, second = (member.apply(self.network(), self.training()) for _ in range(2))
        assert first.hash == second.hash


def test_just_as_many_channels_leave_as_asked_and_one_stays_everywhere() -> None:
    assert sum(widths(fisher(ratio=0.4))) == 24 - 9
    assert widths(fisher(ratio=0.95)) == [1, 1, 1]


def test_a_channel_that_does_nothing_leaves_first() -> None:
    model = blocks()
    graph = model.editable()
    dead = {0: [1, 5], 1: [2], 2: [7]}
    for block, places in dead.items():
        name = f"b{block}.conv2.weight"
        array = model.initializers[name].copy()
        array[:, places] = 0  # nothing reads them
        graph.graph.initializers[name].const_value = ir.tensor(array, name=name)
    spoilt = Model(graph, "spoilt")
    pruned = fisher(spoilt, ratio=4 / 24 + 1e-6, lr=1e-9)
    assert widths(pruned) == [6, 7, 7]
    for block, places in dead.items():
        left = np.delete(model.initializers[f"b{block}.conv1.weight"], places, axis=0)
        np.testing.assert_allclose(pruned.initializers[f"b{block}.conv1.weight"], left, atol=1e-5)


def test_a_target_is_reached_to_a_channel() -> None:
    model = blocks()
    pruned = fisher(target_sparsity=0.3)
    gone = 1 - weights(pruned) / weights(model)
    channel = 2 * 9 * 8 / weights(model)
    assert 0.3 <= gone < 0.3 + channel
    with pytest.raises(UnsupportedError, match="cannot be reached"):
        fisher(target_sparsity=0.95)


def test_cost_decides_between_channels_that_matter_alike() -> None:
    found = channels.groups(blocks().ir).prunable
    single = [g for g in found if not g.coupled]
    assert len({g.macs_per_channel for g in single}) == 1
    dear = fisher(include_residual=True, ratio=0.2, beta=1e9)
    assert dear.initializers["stem.weight"].shape[0] < 8
    assert widths(dear) == [8, 8, 8]  # a channel of the sum costs more


def test_the_report_tells_loss_accuracy_and_what_is_left() -> None:
    told: list[str] = []
    pruned = fisher(progress=lambda _, text: told.append(text))
    assert any("loss" in t and "accuracy" in t for t in told)
    step = pruned.history[-1]
    assert (
        dict(zip(["b0.conv1", "b1.conv1", "b2.conv1"], widths(pruned), strict=True))
        == step.options["channels_left"]
    )
    assert {"training", "pruning", "judging"} <= set(step.options["seconds"])


def test_paper_is_one_channel_after_a_hundred_steps() -> None:
    inside = methods.get("fisher")(paper=True).options.in_force
    assert (inside.steps, inside.channels, inside.lr) == (100, 1, 8e-4)


def test_a_killed_run_goes_on(tmp_path: Path) -> None:
    whole = fisher()

    def stop(_: float, text: str) -> None:
        if text.startswith("4 channels"):
            raise KeyboardInterrupt

    with checkpoints_in(tmp_path), pytest.raises(KeyboardInterrupt):
        fisher(progress=stop)
    told: list[str] = []
    with checkpoints_in(tmp_path):
        resumed = fisher(progress=lambda _, text: told.append(text))
    assert told[0] == "resumed after round 1"
    assert resumed.hash == whole.hash


def test_divergence_and_rows_that_will_not_do() -> None:
    with pytest.raises(DivergedError, match="channels") as caught:
        fisher(lr=1e30)
    assert np.isfinite(predict(caught.value.last_good, models.images(2))).all()
    for rates in ({"lr": 0.0}, {"finetune_lr": 0.0, "finetune_epochs": 1}):
        with pytest.raises(OptionError, match="lr"):
            methods.get("fisher")(**rates)
    with pytest.raises(DataError, match="batch of 4096"):
        fisher(batch_size=4096)
    with pytest.raises(UnknownNameError, match=r"b0\.conv1"):
        fisher(layers="b0.conv11")
