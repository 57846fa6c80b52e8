from __future__ import annotations

import numpy as np
import pytest

from dlas.compress.costs import LayerShape
from dlas.compress.distill._table import Table
from dlas.compress.method import methods
from dlas.data.dataset import Dataset
from dlas.graph import channels
from dlas.graph.model import Model
from dlas.graph.passes import tidy
from dlas.kernels.extension import missing_native
from dlas.runtime.costs import engine_costs
from dlas.testing import models

pytestmark = pytest.mark.skipif(bool(missing_native()), reason=missing_native())


def conv(channels_out: int, size: int = 12) -> LayerShape:
    attributes = (("group", 1), ("kernel_shape", (3, 3)), ("pads", (1, 1, 1, 1)))
    return LayerShape(
        "conv",
        "Conv",
        attributes,
        (1, 16, size, size),
        (channels_out, 16, 3, 3),
        (1, channels_out, size, size),
    )


def test_layers_take_time_that_grows_with_their_work_and_is_remembered() -> None:
    costs = engine_costs()
    assert costs.measured
    assert costs.unit == "ms"
    assert "1 thread" in costs.where
    small, large = costs.of_layer(conv(16)), costs.of_layer(conv(128, size=24))
    assert 0 < small < 0.5 * large
    assert engine_costs().of_layer(conv(16)) == small  # from the table of timings


def test_the_layers_of_a_network_take_about_as_long_as_the_network() -> None:
    graph = models.residual().editable()
    tidy(graph)
    model = Model(graph, "tidied")
    costs = engine_costs()
    table = Table(graph, channels.groups(graph).prunable, costs)
    whole = costs.of_network(model)
    assert set(table.layers(table.full)) == {"conv1_Conv", "conv2_Conv", "conv3_Conv", "logits_Gemm"}
    assert 0 < whole < 5
    # The rest of this tiny network (sum, pools, calls) weighs about as much as its layers.
    assert 0.1 * whole < table.total(table.full) < 1.5 * whole


def test_a_student_is_shaped_by_times_of_the_engine() -> None:
    labels = np.random.default_rng(2).integers(0, models.CLASSES, 16)
    data = Dataset("rows", models.images(16, seed=2), labels.astype(np.int64))
    method = methods.get("student")(init="pruned", epochs=0, threads=1, share=0.9, slack=0.1)
    student = method.apply(models.residual(), data, costs=engine_costs())  # type: ignore[call-arg]
    step = student.history[-1]
    assert step.options["cost_unit"] == "ms"
    assert step.options["cost_measured"] <= 1.0 * step.options["cost_before"]
    assert "engine" in step.options["costs"]
