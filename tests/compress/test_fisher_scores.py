from __future__ import annotations

import dataclasses

import numpy as np
import onnx_ir as ir
import pytest
import torch

from dlas.compress._fisher import FisherMeter, fisher_scores
from dlas.compress.losses import cross_entropy
from dlas.core.errors import DataError, DlasError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.model import Model
from dlas.graph.passes import simplify, tidy
from dlas.graph.torch_module import to_torch
from dlas.testing import models


def tidied() -> Model:
    graph = models.residual().editable()
    tidy(graph)
    return Model(graph, "tidied")


def rows(count: int = 24) -> Dataset:
    labels = np.random.default_rng(4).integers(0, models.CLASSES, count)
    return Dataset("rows", models.images(count, seed=5), labels.astype(np.int64))


def by_masks(model: Model, data: Dataset, group: channels.ChannelGroup) -> np.ndarray:
    """Half the mean square of the derivative of each sample's loss by a factor on each channel's maps."""
    module = to_torch(model)
    meter = FisherMeter(module, model.ir, [group])
    factor = torch.ones(group.size, requires_grad=True)

    def masked(axis: int, at: np.ndarray) -> object:
        def change(x: torch.Tensor) -> torch.Tensor:
            shape = [1] * x.dim()
            shape[axis] = -1
            whole = torch.ones(x.shape[axis])
            for column in at.T:
                whole = whole.index_put((torch.from_numpy(column),), factor)
            return x * whole.reshape(shape)

        return change

    for name, axis, at in meter.places[group]:
        module.on_value(name, masked(axis, at))  # type: ignore[operator]
    squares = np.zeros(group.size)
    for x, y in zip(np.asarray(data.samples), np.asarray(data.labels), strict=True):
        factor.grad = None
        cross_entropy(module(torch.from_numpy(x[None])), torch.tensor([int(y)])).backward()
        assert factor.grad is not None
        squares += 0.5 * factor.grad.double().numpy() ** 2
    return squares / len(data)


def test_scores_are_half_the_mean_square_of_the_derivative_by_a_mask() -> None:
    model, data = tidied(), rows()
    groups = channels.groups(model.ir).prunable
    assert any(g.coupled for g in groups)
    found = fisher_scores(model, data, groups)
    for group in groups:
        assert found[group].shape == (group.size,)
        np.testing.assert_allclose(found[group], by_masks(model, data, group), rtol=1e-4, atol=1e-12)


def test_scores_depend_neither_on_the_batch_size_nor_on_training_mode() -> None:
    model, data = tidied(), rows()
    groups = channels.groups(model.ir).prunable
    small, large = (fisher_scores(model, data, groups, batch_size=b) for b in (5, 24))
    for group in groups:
        np.testing.assert_allclose(small[group], large[group], rtol=1e-4)


def test_a_channel_that_does_nothing_is_worth_nothing() -> None:
    graph = models.residual().editable()
    simplify(graph)
    groups = channels.groups(graph).prunable
    for group in groups:
        channels.mask(graph, group.ids[[1, 6]])
    model = Model(graph, "faint")
    for group, score in fisher_scores(model, rows(), channels.groups(graph).prunable).items():
        assert np.flatnonzero(score == 0).tolist() == [1, 6], group.name


def test_a_meter_counts_steps_of_a_training_and_starts_anew() -> None:
    model, data = tidied(), rows(16)
    groups = channels.groups(model.ir).prunable
    module = to_torch(model)
    meter = FisherMeter(module, model.ir, groups)
    with pytest.raises(DlasError, match="no sample was added"):
        meter.scores()
    x, y = torch.from_numpy(np.asarray(data.samples)), torch.from_numpy(np.asarray(data.labels))
    for _ in range(2):
        with meter.watching():
            cross_entropy(module(x), y).backward()
            meter.add(len(x), scale=len(x))
    want = fisher_scores(model, data, groups)
    for group, score in meter.scores().items():
        np.testing.assert_allclose(score, want[group], rtol=1e-5)
    meter.clear()
    with pytest.raises(DlasError, match="no sample was added"):
        meter.scores()


def test_what_cannot_be_ranked_is_refused() -> None:
    model = tidied()
    groups = channels.groups(model.ir).prunable
    with pytest.raises(DataError, match="no labels"):
        fisher_scores(model, Dataset("bare", models.images(4)), groups)
    wrong = Dataset("wrong", models.images(4), np.full(4, 10, np.int64))
    with pytest.raises(DataError, match="does not belong"):
        fisher_scores(model, wrong, groups)
    with pytest.raises(UnsupportedError, match="no layer was found"):
        FisherMeter(to_torch(model), model.ir, [dataclasses.replace(groups[0], entries=())])
    bad = models.residual(nan=True)
    with pytest.raises(DlasError, match="not finite"):
        fisher_scores(bad, rows(4), channels.groups(bad.ir).prunable)


def test_a_map_behind_a_depthwise_layer_counts_once() -> None:
    rng = np.random.default_rng(0)
    w = {
        "a": rng.standard_normal((6, 3, 1, 1)),
        "d": rng.standard_normal((6, 1, 3, 3)),
        "b": rng.standard_normal((4, 6, 1, 1)),
    }
    values = [
        ir.Value(name=n, const_value=ir.tensor(x.astype(np.float32), name=n), shape=ir.Shape(x.shape))
        for n, x in w.items()
    ]
    image = ir.Value(name="image", shape=ir.Shape(["N", 3, 5, 5]), type=ir.TensorType(ir.DataType.FLOAT))
    first = ir.node("Conv", [image, values[0]], {"kernel_shape": [1, 1]})
    depthwise = ir.node("Conv", [first.outputs[0], values[1]], {"kernel_shape": [3, 3], "group": 6})
    last = ir.node("Conv", [depthwise.outputs[0], values[2]], {"kernel_shape": [1, 1]})
    pool = ir.node("GlobalAveragePool", [last.outputs[0]])
    flat = ir.node("Flatten", [pool.outputs[0]])
    for at, node in enumerate((first, depthwise, last, pool, flat)):
        node.name, node.outputs[0].name = f"n{at}", f"v{at}"
    graph = ir.Graph(
        [image], [flat.outputs[0]], nodes=[first, depthwise, last, pool, flat], initializers=values,
        opset_imports={"": 18}, name="g",
    )  # fmt: skip
    model = Model(ir.Model(graph, ir_version=10), "depthwise")
    from dlas.graph.passes import infer_shapes

    infer_shapes(model.ir)
    groups = channels.groups(model.ir).prunable
    (group,) = (g for g in groups if g.size == 6)
    meter = FisherMeter(to_torch(model), model.ir, [group])
    assert [name for name, _, _ in meter.places[group]] == ["v1"]
