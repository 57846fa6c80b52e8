"""Observers and the stream of calibration rows."""

from __future__ import annotations

import numpy as np
import onnx_ir as ir
import pytest
from onnx import TensorProto, helper

from dlas.compress.calibration import (
    Histogram,
    Range,
    calibrate,
    calibration_batches,
    mse_range,
    percentile_range,
)
from dlas.compress.qdq import activation_grid, weight_grid
from dlas.core.errors import DataError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model


def histogram(values: np.ndarray) -> Histogram:
    found = Histogram.over(Range(float(values.min()), float(values.max())))
    for part in np.array_split(values.astype(np.float32), 3):
        found.add(part)
    return found


def relu_net(inputs: int = 1) -> Model:
    names = ["x", "z"][:inputs]
    nodes = [
        helper.make_node("Relu", ["x"], ["h"], name="act"),
        helper.make_node("Neg", ["h"], ["y"], name="neg"),
    ]
    graph = helper.make_graph(
        nodes, "g",
        [helper.make_tensor_value_info(n, TensorProto.FLOAT, ["N", 4]) for n in names],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
    )  # fmt: skip
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )


def observe(model: Model, data: Dataset, rows: int = 512, **options) -> dict[str, Range]:
    batches, count = calibration_batches(model, data, rows)
    return calibrate(model.ir, model.inputs[0], {"h": "act", "y": "neg"}, batches, rows=count, **options)


def test_histogram_counts_everything_once_and_zeros_apart() -> None:
    values = np.maximum(np.random.default_rng(0).normal(0, 1, 10_001), 0).astype(np.float32)
    found = histogram(values)
    assert found.zeros == int((values == 0).sum())
    assert found.counts.sum() == np.count_nonzero(values)
    assert found.counts.min() >= 0
    expected, _ = np.histogram(values[values > 0], bins=len(found.counts), range=(found.low, found.high))
    assert np.abs(found.counts - expected).sum() <= 4  # a value on an edge may round to either side


@pytest.mark.parametrize("percentile", [50.0, 90.0, 99.0, 99.99, 100.0])
def test_percentile_keeps_at_least_what_was_asked_and_is_tight(percentile: float) -> None:
    values = np.random.default_rng(1).standard_t(3, 50_000).astype(np.float32)
    found = percentile_range(histogram(values), percentile)
    inside = ((values >= found.low) & (values <= found.high)).mean() * 100
    assert inside >= percentile - 1e-3
    width = float(values.max() - values.min()) / 2048
    tail = (100 - percentile) / 2
    assert found.low == pytest.approx(np.percentile(values, tail, method="lower"), abs=2 * width)
    assert found.high == pytest.approx(np.percentile(values, 100 - tail, method="higher"), abs=2 * width)


def test_percentile_counts_the_zeros_of_a_relu() -> None:
    values = np.zeros(10_000, np.float32)
    values[:100] = np.linspace(1, 100, 100)
    found = percentile_range(histogram(values), 99.0)
    assert found.low == 0.0
    assert found.high == pytest.approx(50, abs=1)  # 0.5 percent of all values are the 50 largest


def test_mse_cuts_an_outlier_and_is_the_best_of_its_candidates() -> None:
    rng = np.random.default_rng(2)
    values = np.append(rng.normal(0, 1, 200_000), [60.0, -55.0]).astype(np.float32)
    found = mse_range(histogram(values), levels=16)

    def error(factor: float) -> float:
        low, high = float(values.min()) * factor, float(values.max()) * factor
        scale = (high - low) / 15
        bottom = round(low / scale)
        codes = np.clip(np.rint(values / scale), bottom, bottom + 15)
        return float(((codes * scale - values) ** 2).mean())

    chosen = found.high / values.max()
    errors = {f: error(f) for f in np.arange(0.11, 1.005, 0.01)}
    assert chosen < 0.3
    assert error(chosen) <= min(errors.values()) * 1.02


def test_mse_keeps_a_range_that_is_already_best() -> None:
    values = np.linspace(-1, 1, 100_001)
    found = mse_range(histogram(values))
    assert found.high == pytest.approx(1.0, abs=0.02)


@pytest.mark.parametrize("rule", [lambda h: percentile_range(h, 99.9), mse_range])
@pytest.mark.parametrize("level", [0.0, 3.0, -2.0])
def test_constant_tensor(rule, level: float) -> None:
    found = rule(histogram(np.full(100, level, np.float32)))
    assert min(found.low, 0) <= level <= max(found.high, 0)
    grid = activation_grid(found.low, found.high)
    assert grid.scale > 0
    value = np.array([level], np.float32)
    assert grid.dequantize(grid.quantize(value))[0] == pytest.approx(level, abs=float(grid.scale))


def test_min_max_sees_every_row() -> None:
    samples = np.zeros((300, 4), np.float32)
    samples[299, 0] = 9.0
    samples[0, 1] = 4.0
    found = observe(relu_net(), Dataset("d", samples), rows=300)
    assert found == {"h": Range(0.0, 9.0), "y": Range(-9.0, 0.0)}


def test_rows_are_spread_over_the_set() -> None:
    samples = np.repeat(np.arange(100, dtype=np.float32)[:, None], 4, axis=1)
    batches, count = calibration_batches(relu_net(), Dataset("sorted", samples), 10)
    seen = np.concatenate(list(batches()))[:, 0]
    assert count == 10
    np.testing.assert_array_equal(seen, np.arange(0, 100, 10))
    np.testing.assert_array_equal(np.concatenate(list(batches()))[:, 0], seen)  # a second pass sees the same


def test_batches_are_bounded_and_progress_reaches_the_end() -> None:
    samples = np.random.default_rng(0).normal(size=(200, 4)).astype(np.float32)
    batches, count = calibration_batches(relu_net(), Dataset("d", samples), 150)
    assert max(len(b) for b in batches()) <= 64
    told: list[float] = []
    calibrate(
        relu_net().ir, relu_net().inputs[0], {"h": "act"}, batches, method="mse", rows=count,
        progress=told.append,
    )  # fmt: skip
    assert told == sorted(told)
    assert told[-1] == pytest.approx(1.0)


@pytest.mark.parametrize("method", ["min-max", "percentile", "mse"])
def test_result_does_not_depend_on_the_run(method: str) -> None:
    data = Dataset("d", np.random.default_rng(5).normal(size=(130, 4)).astype(np.float32))
    assert observe(relu_net(), data, method=method) == observe(relu_net(), data, method=method)


def test_the_layer_that_yields_infinity_is_named() -> None:
    with pytest.raises(DataError, match="'act'"):
        observe(relu_net(), Dataset("d", np.full((8, 4), np.inf, np.float32)))


@pytest.mark.parametrize(("have", "wanted"), [(7, 100), (100, 7)])
def test_a_handful_of_rows_is_refused(have: int, wanted: int) -> None:
    rows = Dataset("d", np.zeros((have, 4), np.float32))
    with pytest.raises(DataError, match=r"7 rows say too little.*at least 8"):
        calibration_batches(relu_net(), rows, wanted)
    assert calibration_batches(relu_net(), Dataset("d", np.zeros((8, 4), np.float32)), 100)[1] == 8


def test_no_rows_and_several_inputs() -> None:
    with pytest.raises(DataError, match="none were given"):
        calibration_batches(relu_net(), None, 10)
    with pytest.raises(UnsupportedError, match="2: x, z"):
        calibration_batches(relu_net(2), Dataset("d", np.zeros((2, 4), np.float32)), 10)


@pytest.mark.parametrize(
    ("low", "high"),
    [(0.0, 6.0), (-1.0, 1.0), (2.0, 5.0), (-3.0, -1.0), (0, 0), (-1e-3, 7), (0, 3e38), (0, 1e-44)],
)
def test_activation_grid_holds_zero_exactly_and_the_range_to_half_a_step(low: float, high: float) -> None:
    grid = activation_grid(low, high)
    assert grid.zero_point.dtype == np.int8
    assert grid.scale >= np.finfo(np.float32).tiny
    ends = grid.dequantize(np.array([-128, int(grid.zero_point), 127], np.int8))
    assert ends[1] == 0.0
    half = float(grid.scale) * 0.501
    assert ends[0] <= min(low, 0) + half
    assert ends[2] >= max(high, 0) - half
    if low == 0:
        assert grid.zero_point == -128
        assert high < 1e-30 or ends[2] <= high  # nothing above a Clip's bound can be represented


def test_quantize_is_what_onnx_says() -> None:
    from onnx.reference import ReferenceEvaluator

    grid = activation_grid(-1.3, 2.9)
    x = np.random.default_rng(0).normal(0, 2, 500).astype(np.float32)
    x[:3] = [0.5 * grid.scale, 1.5 * grid.scale, -0.5 * grid.scale]  # ties go to the even code
    nodes = [
        helper.make_node("QuantizeLinear", ["x", "s", "z"], ["q"]),
        helper.make_node("DequantizeLinear", ["q", "s", "z"], ["y"]),
    ]
    graph = helper.make_graph(
        nodes, "g", [helper.make_tensor_value_info("x", TensorProto.FLOAT, [500])],
        [helper.make_tensor_value_info("q", TensorProto.INT8, [500]),
         helper.make_tensor_value_info("y", TensorProto.FLOAT, [500])],
        [ir.to_proto(ir.tensor(grid.scale, name="s")), ir.to_proto(ir.tensor(grid.zero_point, name="z"))],
    )  # fmt: skip
    model = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 19)], ir_version=9)
    codes, values = ReferenceEvaluator(model).run(None, {"x": x})
    np.testing.assert_array_equal(grid.quantize(x), codes)
    np.testing.assert_array_equal(grid.dequantize(codes), values)


def test_weight_grid_along_an_axis() -> None:
    weight = np.random.default_rng(0).normal(size=(3, 5, 2)).astype(np.float32)
    grid = weight_grid(weight, 1)
    np.testing.assert_allclose(grid.scale, np.abs(weight).max(axis=(0, 2)) / 127, rtol=1e-6)
    codes = grid.quantize(weight, -127)
    assert np.abs(codes).max() == 127
    half = grid.scale.reshape(1, -1, 1) / 2
    assert (np.abs(grid.dequantize(codes) - weight) <= half * 1.0001).all()
    assert weight_grid(weight, None).scale == np.float32(np.abs(weight).max() / 127)
