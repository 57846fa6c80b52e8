"""The asymmetric study of a network: gains at the distances that overflows allow, and networks of a fixed batch."""

from __future__ import annotations

from dataclasses import replace

import numpy as np
import pytest
from test_asymmetric_survey import heavy

from dlas.core.figure import Source
from dlas.graph.model import Model
from dlas.kernels.asymmetric import throughput
from dlas.kernels.asymmetric.study import study
from dlas.kernels.asymmetric.survey import SurveyOptions, survey
from dlas.kernels.asymmetric.throughput import IssueOptions
from dlas.testing.models import images, residual


def test_gains_are_those_at_the_distance_that_overflows_allow() -> None:
    model, x = heavy()
    found = study(model, {"x": x}, SurveyOptions(percentile=100))
    conv, gemm, _ = found.layers
    assert conv.found.spill in (16, 32)
    assert (conv.found.rows, conv.found.columns, conv.found.depth) == (4 * 5, 6, 576)
    assert (gemm.found.rows, gemm.found.columns, gemm.found.depth) == (1, 5, 6)
    size = (20, 6, 576)
    at = throughput.speedup(*size, IssueOptions(spill=conv.found.spill or 0))
    assert conv.speedup.value == pytest.approx(at.value)
    assert conv.speedup.source is Source.ESTIMATED
    assert gemm.speedup.value == throughput.speedup(1, 5, 6, IssueOptions(spill=8)).value
    slow = study(
        model, {"x": x}, SurveyOptions(percentile=100), IssueOptions(others_per_cycle=1, mmla_per_cycle=4)
    )
    assert slow.layers[0].speedup.value < conv.speedup.value  # spills cost


def test_totals_are_of_cycles_not_of_ratios() -> None:
    model, x = heavy()
    found = study(model, {"x": x})
    before, after = (
        sum(layer.cycles[name].value for layer in found.layers) for name in throughput.INSTRUCTIONS
    )
    assert found.speedup.value == before / after
    told = found.to_dict()
    assert told["speedup"]["value"] == before / after
    assert told["overflow"]["none"]["of_additions"]["n"] == found.overflow(None).updates
    assert found.overflow(16).overflows == 0


def test_a_network_of_a_fixed_batch_is_run_in_parts() -> None:
    free, x = residual(), images(5)
    proto = free.to_proto()
    for value in (proto.graph.input[0], proto.graph.output[0]):
        value.type.tensor_type.shape.dim[0].dim_value = 2
    fixed = Model.from_proto(proto, "fixed")
    assert fixed.inputs[0].shape[0] == 2
    options = SurveyOptions(rows=10_000)
    name = free.inputs[0].name
    whole = survey(free, {name: x[:4]}, options)
    assert [replace(layer, name="") for layer in survey(fixed, {name: x}, options)] == [
        replace(layer, name="") for layer in whole
    ]
    assert study(fixed, {name: x}, options).samples == 4
    assert whole[0].rows == np.prod(x.shape[2:])
