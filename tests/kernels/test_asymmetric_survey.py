"""Overflow of 16-bit accumulators over a network: layers found, operands on their grids, distances chosen."""

from __future__ import annotations

import numpy as np
import onnx.helper as oh
import onnx.numpy_helper as onh
import pytest

from dlas.core.errors import OptionError, UnsupportedError
from dlas.graph.model import Model
from dlas.kernels.asymmetric.emulate import emulate
from dlas.kernels.asymmetric.survey import SurveyOptions, survey
from dlas.kernels.reference.conv import conv2d
from dlas.testing.models import images, residual


def network(weights: dict[str, np.ndarray], nodes: list, shape: tuple[int, ...], last: str) -> Model:
    graph = oh.make_graph(
        nodes,
        "net",
        [oh.make_tensor_value_info("x", 1, shape)],
        [oh.make_tensor_value_info(last, 1, None)],
        [onh.from_array(v, n) for n, v in weights.items()],
    )
    return Model.from_proto(
        oh.make_model(graph, opset_imports=[oh.make_opsetid("", 17)], ir_version=10), "net"
    )


def heavy() -> tuple[Model, np.ndarray]:
    """Positive activations and weights of a deep convolution, whose sums leave 16 bits; then two matrices."""
    rng = np.random.default_rng(0)
    weights = {
        "w": rng.uniform(0.3, 1, (6, 64, 3, 3)).astype(np.float32),
        "g": rng.standard_normal((5, 6)).astype(np.float32),
        "m": rng.standard_normal((5, 4)).astype(np.float32),
        "grouped": rng.standard_normal((64, 1, 1, 1)).astype(np.float32),
    }
    nodes = [
        oh.make_node("Conv", ["x", "grouped"], ["d"], "depthwise", group=64),
        oh.make_node("Relu", ["x"], ["r"]),
        oh.make_node("Conv", ["r", "w"], ["c"], "conv", pads=[0, 1, 2, 0], strides=[2, 1], dilations=[1, 2]),
        oh.make_node("GlobalAveragePool", ["c"], ["p"]),
        oh.make_node("Flatten", ["p"], ["f"]),
        oh.make_node("Gemm", ["f", "g"], ["h"], "gemm", transB=1),
        oh.make_node("MatMul", ["h", "m"], ["y"], "matmul"),
        oh.make_node("ReduceSum", ["d"], ["unused"], keepdims=0),
    ]
    return network(weights, nodes, (2, 64, 7, 8), "y"), rng.uniform(-0.1, 1, (2, 64, 7, 8)).astype(np.float32)


def test_layers_and_distances():
    model, x = heavy()
    layers = survey(model, {"x": x}, SurveyOptions(percentile=100))
    assert [(layer.name, layer.depth, layer.signed) for layer in layers] == [
        ("conv", 576, False), ("gemm", 6, False), ("matmul", 5, True)
    ]  # fmt: skip
    conv = layers[0]
    assert conv.stats[None].any_rate > 0.9
    assert conv.stats[16].overflows == 0
    assert conv.spill in (16, 32)
    rates = [conv.stats[s].any_rate for s in (16, 32, 64, 128, 256, None)]
    assert rates == sorted(rates)
    assert layers[1].spill is None


def test_operands_are_the_layer_on_its_grids():
    model, x = heavy()
    (conv, *_), w = survey(model, {"x": x}, SurveyOptions(percentile=100, spills=(None,))), heavy_weights()
    relu = np.maximum(x, 0)
    a = np.rint(relu * (255 / relu.max()))
    codes = np.rint(w / (np.abs(w).max(axis=(1, 2, 3), keepdims=True) / 7))
    given = {"pads": (0, 1, 2, 0), "strides": (2, 1), "dilations": (1, 2)}
    exact = conv2d(a.astype(np.float32), codes.astype(np.float32), **given)
    assert conv.stats[None].outputs == exact.size
    final = (np.abs(exact + 0.5) > 32768).sum()
    assert conv.stats[None].final_overflow == final > 0


def heavy_weights() -> np.ndarray:
    return heavy()[0].initializers["w"]


def test_few_rows_are_drawn_and_the_draw_repeats():
    model, x = heavy()
    options = SurveyOptions(rows=10, spills=(None, 32))
    first, second = (survey(model, {"x": x}, options) for _ in range(2))
    assert first == second
    assert first[0].stats[None].outputs == 10 * 6


def test_a_small_network_never_overflows():
    layers = survey(residual(), {residual().inputs[0].name: images(4)}, SurveyOptions(rows=200))
    assert layers
    assert all(layer.spill is None and layer.stats[None].wrong == 0 for layer in layers)


def test_a_distance_that_never_suffices_falls_back_to_the_exact_one():
    model, x = heavy()
    conv = survey(model, {"x": x}, SurveyOptions(percentile=100, spills=(None, 512)))[0]
    assert conv.spill == 16
    with_more = survey(model, {"x": x}, SurveyOptions(percentile=100, spills=(None,), tolerance=0.99))[0]
    assert with_more.spill is None


def test_survey_refuses():
    model, x = heavy()
    for given in ({"accumulator": "int32"}, {"spills": ()}, {"spills": (12,)}, {"percentile": 0}, {"rows": 0},
                  {"tolerance": 1.0}):  # fmt: skip
        with pytest.raises(OptionError, match=next(iter(given))):
            SurveyOptions(**given)
    with pytest.raises(OptionError, match="activations of conv"):
        survey(model, {"x": np.full_like(x, np.inf)})
    bare = network({}, [oh.make_node("Relu", ["x"], ["y"])], (2, 3), "y")
    with pytest.raises(UnsupportedError, match="no dense layer"):
        survey(bare, {"x": np.zeros((2, 3), np.float32)})
    w = np.full((2, 3, 1, 1), np.nan, np.float32)
    broken = network({"w": w}, [oh.make_node("Conv", ["x", "w"], ["y"], "conv")], (1, 3, 4, 4), "y")
    with pytest.raises(OptionError, match="weights of conv"):
        survey(broken, {"x": np.zeros((1, 3, 4, 4), np.float32)})


def test_emulator_agrees_on_a_layer_of_zeros():
    _, stats = emulate(np.zeros((3, 8), np.uint8), np.zeros((8, 2), np.int8), "sat")
    assert (stats.largest, stats.overflow_rate) == (0, 0)
