"""Layer tables, and totals against counts done by hand."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dlas.core.figure import Source
from dlas.graph.analysis import figures, layers, summary
from dlas.graph.model import Model
from dlas.graph.passes import bind_batch
from dlas.testing.models import residual, residual_half, residual_nhwc, residual_quantized


def model_of(
    nodes: list[onnx.NodeProto],
    weights: dict[str, np.ndarray],
    input_shape: list[Any],
    rank: int,
    kind: int = TensorProto.FLOAT,
) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", kind, input_shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, [None] * rank)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    return Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )


def ones(*shape: int) -> np.ndarray:
    return np.ones(shape, np.float32)


def test_conv_macs_are_the_products_of_a_direct_loop() -> None:
    group, stride, k = 2, 2, 3
    w, x = ones(4, 2, k, k), ones(4, 7, 9)
    model = model_of(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c", group=group, strides=[stride, stride])],
        {"w": w},
        ["N", *x.shape],
        4,
    )
    products = 0
    for out in range(w.shape[0]):
        first = out // (w.shape[0] // group) * w.shape[1]
        for i in range(0, x.shape[1] - k + 1, stride):
            for j in range(0, x.shape[2] - k + 1, stride):
                products += (x[first : first + w.shape[1], i : i + k, j : j + k] * w[out]).size
    (layer,) = layers(model)
    assert layer.macs == products
    assert (layer.params, layer.weight_bytes, layer.weight_bits) == (w.size, 4 * w.size, 32)
    assert layer.output_shape == (1, 4, 3, 4)


CASES: list[tuple[str, list[str], dict[str, np.ndarray], list[Any], int, dict[str, Any], int, int]] = [
    # op, inputs, weights, input shape, output rank, attributes, params, MACs per sample
    ("Gemm", ["x", "w", "b"], {"w": ones(6, 5), "b": ones(5)}, ["N", 6], 2, {}, 35, 30),
    ("Gemm", ["x", "w"], {"w": ones(5, 6)}, ["N", 6], 2, {"transB": 1}, 30, 30),
    ("MatMul", ["x", "w"], {"w": ones(6, 5)}, ["N", 7, 6], 3, {}, 30, 7 * 6 * 5),
    ("MatMul", ["x", "x"], {}, ["N", 7, 7], 3, {}, 0, 7**3),
    ("ConvTranspose", ["x", "w"], {"w": ones(4, 3, 2, 2)}, ["N", 4, 5, 5], 4, {"strides": [2, 2]}, 48, 25 * 48),
    ("Add", ["x", "w"], {"w": ones(4)}, ["N", 4], 2, {}, 4, 0),
]  # fmt: skip


@pytest.mark.parametrize(("op", "inputs", "weights", "shape", "rank", "attributes", "params", "macs"), CASES)
def test_params_and_macs_by_hand(
    op: str,
    inputs: list[str],
    weights: dict[str, np.ndarray],
    shape: list[Any],
    rank: int,
    attributes: dict[str, Any],
    params: int,
    macs: int,
) -> None:
    model = model_of([helper.make_node(op, inputs, ["y"], name="l", **attributes)], weights, shape, rank)
    (layer,) = layers(model)
    assert (layer.params, layer.macs) == (params, macs)
    # A network exported for a fixed batch costs the same per sample.
    assert summary(bind_batch(model, 3))["macs"] == macs


@pytest.mark.parametrize(("op", "gates"), [("LSTM", 4), ("GRU", 3), ("RNN", 1)])
def test_recurrent_macs(op: str, gates: int) -> None:
    steps, size, hidden = 6, 5, 3
    weights = {"w": ones(1, gates * hidden, size), "r": ones(1, gates * hidden, hidden)}
    node = helper.make_node(op, ["x", "w", "r"], ["y"], name="cell", hidden_size=hidden)
    for batch in (1, 2):  # the time axis leads, so the batch is the second one
        (layer,) = layers(model_of([node], weights, [steps, batch, size], 4))
        assert layer.params == gates * hidden * (size + hidden)
        assert layer.macs == steps * gates * hidden * (size + hidden)


def test_unknown_shapes_give_no_macs() -> None:
    node = helper.make_node("Conv", ["x", "w"], ["y"], name="c")
    model = model_of([node], {"w": ones(4, 3, 3, 3)}, ["N", 3, "H", "W"], 4)
    assert layers(model)[0].macs is None
    assert "macs" not in figures(model)
    assert figures(model)["params"].value == 108


def test_settings_are_no_parameters() -> None:
    weights = {
        "low": np.array(0, np.float32),
        "high": np.array(6, np.float32),
        "shape": np.array([-1, 2], np.int64),
    }
    nodes = [
        helper.make_node("Clip", ["x", "low", "high"], ["c"]),
        helper.make_node("Reshape", ["c", "shape"], ["y"]),
    ]
    assert summary(model_of(nodes, weights, ["N", 4], 2))["params"] == 0


def test_a_shared_weight_counts_once_in_total() -> None:
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("MatMul", ["h", "w"], ["y"], name="b"),
    ]
    model = model_of(nodes, {"w": np.eye(4, dtype=np.float32)}, ["N", 4], 2)
    facts = summary(model)
    assert [layer.params for layer in layers(model)] == [16, 16]
    assert (facts["params"], facts["weight_bytes"], facts["macs"]) == (16, 64, 32)
    assert facts["sparsity"] == 0.75


@settings(max_examples=30, deadline=None)
@given(zeros=st.integers(0, 108), seed=st.integers(0, 1000))
def test_sparsity_is_exact(zeros: int, seed: int) -> None:
    w = np.random.default_rng(seed).uniform(0.1, 1, 108).astype(np.float32)
    w[np.random.default_rng(seed).permutation(108)[:zeros]] = 0
    nodes = [helper.make_node("Conv", ["x", "w", "b"], ["y"], name="c")]
    weights = {"w": w.reshape(4, 3, 3, 3), "b": np.zeros(4, np.float32)}
    model = model_of(nodes, weights, ["N", 3, 5, 5], 4)
    assert layers(model)[0].sparsity == zeros / 108
    assert figures(model)["sparsity"].value == zeros / 108


def test_zeros_of_a_grid_with_a_zero_point() -> None:
    weights = {
        "w": np.array([[5, 5, 7], [0, 5, 1]], np.int8),
        "s": np.array(0.1, np.float32),
        "z": np.array(5, np.int8),
    }
    nodes = [
        helper.make_node("DequantizeLinear", ["w", "s", "z"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"], name="m"),
    ]
    (layer,) = layers(model_of(nodes, weights, ["N", 2], 2))
    assert layer.sparsity == 0.5
    assert (layer.weight_bits, layer.weight_dtype, layer.weight_bytes) == (8, "int8", 6 + 4 + 1)


@pytest.mark.parametrize(
    ("make", "kind"),
    [
        (residual, "float32"),
        (residual_nhwc, "float32"),
        (residual_half, "float16"),
        (residual_quantized, "int8 per-channel"),
    ],
)
def test_kind(make: Any, kind: str) -> None:
    assert summary(make())["kind"] == kind


def test_other_kinds() -> None:
    decode = [
        helper.make_node("Cast", ["w"], ["d"], to=TensorProto.FLOAT),
        helper.make_node("MatMul", ["x", "d"], ["h"], name="a"),
    ]
    half = np.ones((4, 4), np.float16)
    last = helper.make_node("Relu", ["h"], ["y"])
    assert summary(model_of([*decode, last], {"w": half}, ["N", 4], 2))["kind"] == "float16 weights"
    mixed = [*decode, helper.make_node("MatMul", ["h", "v"], ["y"], name="b")]
    assert summary(model_of(mixed, {"w": half, "v": ones(4, 4)}, ["N", 4], 2))["kind"] == "mixed"
    quantised = [
        helper.make_node("DequantizeLinear", ["w", "s"], ["d"]),
        helper.make_node("MatMul", ["x", "d"], ["y"]),
    ]
    weights = {"w": np.ones((4, 4), np.int8), "s": np.array(1, np.float32)}
    assert summary(model_of(quantised, weights, ["N", 4], 2))["kind"] == "dynamic-range int8"
    assert summary(model_of([helper.make_node("Relu", ["x"], ["y"])], {}, ["N", 4], 2))["kind"] == "float32"


def test_totals_of_the_residual_network() -> None:
    model = residual()
    facts = summary(model)
    conv = [(8, 3 * 9, 144), (8, 8 * 9, 144), (8, 9, 9)]
    assert facts["macs"] == sum(math.prod(c) for c in conv) + 80
    assert facts["params"] == 216 + 32 + 576 + 32 + 80 + 90
    assert facts["model_bytes"] == len(model.to_bytes())
    assert 0 < facts["model_zstd_bytes"] < facts["model_bytes"]
    assert facts["ops"]["Conv"] == 3
    assert summary(residual_nhwc())["macs"] == facts["macs"] == summary(residual_quantized())["macs"]


def test_figures_carry_their_source() -> None:
    found = figures(residual())
    assert found["macs"].source is found["nonzero_macs"].source is Source.ESTIMATED
    assert {n: (f.unit, f.source) for n, f in found.items() if not n.endswith("macs")} == {
        "params": ("count", Source.MEASURED),
        "model_bytes": ("bytes", Source.MEASURED),
        "model_zstd_bytes": ("bytes", Source.MEASURED),
        "sparsity": ("fraction", Source.MEASURED),
    }


def test_weight_decoding_is_no_layer() -> None:
    ops = [layer.op for layer in layers(residual_quantized())]
    assert "DequantizeLinear" not in ops
    assert ops.count("Conv") == 3


def test_macs_by_zeros_are_told_apart() -> None:
    model = residual()
    graph = model.editable()
    name, kernel = next((n, w) for n, w in model.initializers.items() if w.ndim == 4)
    half = kernel.copy()
    half[: len(half) // 2] = 0
    graph.graph.initializers[name].const_value = ir.tensor(half, name=name)
    dense, sparse = summary(model), summary(Model(graph, "half"))
    layer = next(found for found in layers(Model(graph, "half")) if found.sparsity == 0.5)
    assert layer.macs is not None
    assert dense["nonzero_macs"] == dense["macs"] == sparse["macs"]
    assert sparse["nonzero_macs"] == sparse["macs"] - layer.macs // 2
