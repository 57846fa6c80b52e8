"""What is said to have changed between two networks."""

from __future__ import annotations

import onnx_ir as ir

from dlas.graph.changes import diff
from dlas.graph.model import Model
from dlas.graph.passes import simplified
from dlas.testing.models import residual, residual_quantized


def test_diff_says_nothing_about_equal_networks() -> None:
    assert diff(residual(), residual()) == []


def test_diff_after_quantisation() -> None:
    rows = {row["layer"]: row for row in diff(residual(), residual_quantized())}
    assert rows["conv2_Conv"]["before"] == "8x8x3x3 float32, 576 params"
    assert rows["conv2_Conv"]["after"].startswith("8x8x3x3 int8, 584 params")
    assert rows["bn1_BatchNormalization"]["after"] == "not there"
    # the node has another name there: matched by operator and order
    assert rows["logits_Gemm"]["after"].startswith("10x8 int8")


def test_diff_after_folding_and_pruning() -> None:
    model = residual()
    graph = model.editable()
    value = graph.graph.initializers["w2"]
    array = model.initializers["w2"].copy()
    array.reshape(-1)[:288] = 0
    value.const_value = ir.tensor(array)
    rows = diff(model, Model(graph))
    assert [(r["layer"], r["after"]) for r in rows] == [
        ("conv2_Conv", "8x8x3x3 float32, 576 params, 50.0% zeros")
    ]
    folded = {r["layer"]: r["after"] for r in diff(model, simplified(model))}
    assert folded["bn1_BatchNormalization"] == "not there"
    assert folded["conv1_Conv"] == "8x3x3x3 float32, 224 params"
