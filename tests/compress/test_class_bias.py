"""Offsets per class: what is fitted, where it goes in float and integer networks, what is refused."""

from __future__ import annotations

import dataclasses
from typing import Any

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model, methods
from dlas.compress.quantize.class_bias import cross_entropy, fit_offsets
from dlas.core.errors import DataError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.model import Model
from dlas.graph.reference import Reference, answers
from dlas.graph.signature import to_real
from dlas.testing.methods import MethodSuite
from dlas.testing.models import images, residual, residual_half, residual_nhwc, residual_quantized

CLASSES, FEATURES = 4, 6


class TestClassBias(MethodSuite):
    method = "class-bias"


class TestClassBiasOfIntegers(MethodSuite):
    method = "class-bias:rows=20,l2=0.1"

    def network(self) -> Model:
        return residual_quantized()


class TestClassBiasOfHalves(MethodSuite):
    method = "class-bias:l2=0.1"

    def network(self) -> Model:
        return residual_half()


# -- networks ---------------------------------------------------------------------------------------------------------

Step = tuple[str, list[str], dict[str, Any]]
HEAD: Step = ("Gemm", ["x", "w", "b"], {})
ENDS: dict[str, list[Step]] = {
    "gemm": [HEAD],
    "gemm without bias": [("Gemm", ["x", "w"], {})],
    "gemm with beta": [("Gemm", ["x", "w", "b"], {"beta": 0.5})],
    "softmax": [HEAD, ("Softmax", ["0"], {})],
    "log softmax behind a layout": [HEAD, ("Reshape", ["0", "to4d"], {}), ("LogSoftmax", ["1"], {"axis": 1})],
    "softmax over positions": [HEAD, ("Reshape", ["0", "to4d"], {}), ("Softmax", ["1"], {"axis": 2})],
    "matmul": [("MatMul", ["x", "w"], {})],
    "matmul and add": [("MatMul", ["x", "w"], {}), ("Add", ["b", "0"], {}), ("Softmax", ["1"], {})],
    "temperature": [HEAD, ("Mul", ["0", "half"], {}), ("Softmax", ["1"], {})],
    "relu": [HEAD, ("Relu", ["0"], {})],
    "convolution": [("Unsqueeze", ["x", "ends"], {}), ("Conv", ["0", "kernel"], {}), ("Squeeze", ["1", "ends"], {})],
    "scores used twice": [HEAD, ("Neg", ["0"], {}), ("Max", ["1", "w_like"], {}), ("Add", ["0", "2"], {})],
}  # fmt: skip
QDQ: list[Step] = [
    ("QuantizeLinear", ["x", "s_in", "z"], {}), ("DequantizeLinear", ["0", "s_in", "z"], {}),
    ("DequantizeLinear", ["w_q", "s_w", "z"], {}), ("DequantizeLinear", ["b_q", "s_b"], {}),
    ("Gemm", ["1", "2", "3"], {}),
]  # fmt: skip
OUT: list[Step] = [("QuantizeLinear", ["4", "s_out", "z"], {}), ("DequantizeLinear", ["5", "s_out", "z"], {})]
INTEGERS: dict[str, list[Step]] = {
    "float answers": [*QDQ, *OUT],
    "integer answers": [*QDQ, OUT[0]],
    "softmax": [
        *QDQ, *OUT, ("Softmax", ["6"], {}), ("QuantizeLinear", ["7", "s_p", "z_p"], {}),
        ("DequantizeLinear", ["8", "s_p", "z_p"], {}),
    ],
    "no bias": [*QDQ[:4], ("Gemm", ["1", "2"], {}), *OUT],
    "no bias, integer answers": [*QDQ[:4], ("Gemm", ["1", "2"], {}), OUT[0]],
    "no bias, softmax": [*QDQ[:4], ("Gemm", ["1", "2"], {}), *OUT, ("Softmax", ["6"], {})],
    "unsigned, no bias": [
        *QDQ[:4], ("Gemm", ["1", "2"], {}), ("QuantizeLinear", ["4", "s_out", "z_u"], {}),
        ("DequantizeLinear", ["5", "s_out", "z_u"], {}),
    ],
}  # fmt: skip


def build(steps: list[Step], batch: int | str = "N", opset: int = 18) -> Model:
    """A network of ``steps``; inputs are constants by name, or the number of the step that makes them."""
    rng = np.random.default_rng(3)
    w = rng.standard_normal((FEATURES, CLASSES)).astype(np.float32)
    b = rng.standard_normal(CLASSES).astype(np.float32)
    s_in, s_w = 8 / 255, float(np.abs(w).max()) / 127
    constants = {
        "w": w, "b": b, "half": np.float32(0.5), "ends": np.array([2, 3]), "to4d": np.array([0, CLASSES, 1, 1]),
        "kernel": w.T.reshape(CLASSES, FEATURES, 1, 1).copy(), "w_like": np.zeros(CLASSES, np.float32),
        "s_in": np.float32(s_in), "z": np.int8(0), "w_q": np.rint(w / s_w).astype(np.int8), "s_w": np.float32(s_w),
        "b_q": np.rint(b / (s_in * s_w)).astype(np.int32), "s_b": np.float32(s_in * s_w), "z_u": np.uint8(128),
        "s_out": np.float32(32 / 255), "s_p": np.float32(1 / 256), "z_p": np.int8(-128),
    }  # fmt: skip
    used = {name for _, inputs, _ in steps for name in inputs}
    nodes = [
        helper.make_node(op, [f"t{i}" if i.isdigit() else i for i in inputs], [f"t{at}"], f"n{at}", **attributes)
        for at, (op, inputs, attributes) in enumerate(steps)
    ]  # fmt: skip
    last = steps[-1]
    kind = TensorProto.INT8 if last[0] == "QuantizeLinear" else TensorProto.FLOAT
    shape = [batch, CLASSES, 1, 1] if "to4d" in used else [batch, CLASSES]
    graph = helper.make_graph(
        nodes,
        "head",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, [batch, FEATURES])],
        [helper.make_tensor_value_info(f"t{len(steps) - 1}", kind, shape)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items() if k in used],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", opset)], ir_version=9)
    return Model.from_proto(proto, "head")


def features(count: int = 400, seed: int = 5) -> np.ndarray:
    return np.random.default_rng(seed).standard_normal((count, FEATURES)).astype(np.float32)


def shifted_rows(model: Model, shift: np.ndarray, count: int = 400, seed: int = 5) -> Dataset:
    """Rows with the labels that the network would give if its scores were ``shift`` higher, drawn by softmax."""
    x = features(count, seed)
    scores = real(model, x)
    if {"Softmax", "LogSoftmax"} & {n.op_type for n in model.ir.graph}:
        scores = scores if scores.min() < 0 else np.log(np.clip(scores, 1e-3, 1))
    noise = np.random.default_rng(seed + 1).gumbel(size=scores.shape)
    return Dataset("shifted", x, (scores + shift + noise).argmax(1).astype(np.int64))


def real(model: Model, x: np.ndarray) -> np.ndarray:
    found = answers(model, {model.inputs[0].name: x}, level="disable")[model.outputs[0].name]
    return to_real(found, model).reshape(len(x), -1)


SHIFT = np.array([1.5, -1.0, 0.0, -0.5])


# -- the fit ----------------------------------------------------------------------------------------------------------


def test_a_shift_of_the_labels_is_recovered() -> None:
    rng = np.random.default_rng(0)
    z = rng.standard_normal((20_000, CLASSES)) * 2
    labels = (z + SHIFT + rng.gumbel(size=z.shape)).argmax(1)
    found = fit_offsets(z, labels, 1e-6)
    np.testing.assert_allclose(found, SHIFT - SHIFT.mean(), atol=0.08)


def test_it_is_the_minimum_of_a_convex_loss() -> None:
    rng = np.random.default_rng(1)
    z, labels = rng.standard_normal((60, 5)) * 4, rng.integers(0, 5, 60)
    for l2 in (1e-6, 0.01, 1.0):
        best = fit_offsets(z, labels, l2)

        def loss(w: np.ndarray, l2: float = l2) -> float:
            return cross_entropy(z + w, labels) + l2 / 2 * float(w @ w)

        assert best.sum() == pytest.approx(0, abs=1e-4)
        for _ in range(20):
            assert loss(best) <= loss(best + rng.standard_normal(5) * 0.05) + 1e-9


def test_the_cross_entropy_never_rises_and_falls_the_more_the_smaller_the_penalty() -> None:
    rng = np.random.default_rng(2)
    z, labels = rng.standard_normal((50, 6)) * 3, rng.integers(0, 6, 50)
    found = [cross_entropy(z + fit_offsets(z, labels, l2), labels) for l2 in (100, 1, 0.1, 0.01, 1e-4)]
    assert found == sorted(found, reverse=True)
    assert found[0] <= cross_entropy(z, labels)
    assert found[-1] < found[0] - 0.01


def test_classes_without_a_row_keep_their_score() -> None:
    rng = np.random.default_rng(2)
    z, labels = rng.standard_normal((50, 6)), rng.choice([1, 4], 50, p=[0.8, 0.2])
    found = fit_offsets(z, labels, 0.01)
    assert found[[0, 2, 3, 5]].tolist() == [0, 0, 0, 0]
    assert found[1] > 0 > found[4]
    # Scores too large for exp, and rows that the network is sure of.
    assert np.isfinite(fit_offsets(z * 1e4, labels, 0.01)).all()


# -- where it goes ----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("end", ENDS)
@pytest.mark.parametrize("batch", ["N", 1, 3])
def test_every_row_moves_by_the_offsets(end: str, batch: int | str) -> None:
    model = build(ENDS[end], batch)
    rows = shifted_rows(model, SHIFT, 100)
    made = compress_model(model, "class-bias", rows)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    offsets = np.array(made.history[-1].options["offsets"])
    assert offsets.any()
    before, after = real(model, rows.samples), real(made, rows.samples)  # type: ignore[arg-type]
    ends_in = model.ir.graph.outputs[0].producer().op_type  # type: ignore[union-attr]
    if ends_in == "Softmax" and end != "softmax over positions":
        before, after = np.log(before), np.log(after)
    if "oftmax" in ends_in and end != "softmax over positions":
        before, after = (a - a.mean(1, keepdims=True) for a in (before, after))
    np.testing.assert_allclose(after - before, np.broadcast_to(offsets, before.shape), atol=2e-5)
    added = made.ir.graph.num_nodes() - model.ir.graph.num_nodes()
    insert = end in ("matmul", "temperature", "relu", "softmax over positions", "scores used twice")
    assert added == int(insert)


@pytest.mark.parametrize("end", INTEGERS)
def test_integer_networks_stay_integer_and_nothing_saturates(end: str) -> None:
    model = build(INTEGERS[end])
    rows = shifted_rows(model, SHIFT * 3)
    made = compress_model(model, "class-bias:l2=0.001", rows)
    onnx.checker.check_model(made.to_proto(), full_check=True)
    offsets = np.array(made.history[-1].options["offsets"])
    assert np.abs(offsets).max() > 2  # far beyond a step of the grid
    assert made.outputs == model.outputs
    before, after = real(model, rows.samples), real(made, rows.samples)  # type: ignore[arg-type]
    if "softmax" in end:
        bare = build(INTEGERS["no bias" if "no bias" in end else "float answers"])
        scores = real(bare, rows.samples) + offsets  # type: ignore[arg-type]
        sure = np.sort(scores, 1)[:, -1] - np.sort(scores, 1)[:, -2] > 0.5
        assert sure.sum() > 100
        assert (after.argmax(1) == scores.argmax(1))[sure].all()
        assert (before.argmax(1) != after.argmax(1)).mean() > 0.1
    else:
        np.testing.assert_allclose(after, before + offsets, atol=0.25)
    # Between the first layer and the answer there is no float arithmetic: what is not coded is coded behind.
    for node in made.ir.graph:
        if node.op_type in ("Add", "Gemm"):
            assert {u.node.op_type for u in node.outputs[0].uses()} == {"QuantizeLinear"}
            given = [v.producer().op_type for v in node.inputs if v is not None and v.producer() is not None]  # type: ignore[union-attr]
            assert given == ["DequantizeLinear"] * len(node.inputs)
    with Reference(made) as fused:  # the kinds of both sides of a sum agree, else this would not be integer
        assert fused.run({"x": features(3)})


def test_a_bias_that_another_layer_reads_stays_for_that_layer() -> None:

    model = build([HEAD])
    proto = model.to_proto()

    proto.graph.node[0].output[0] = "hidden"
    proto.graph.node.append(helper.make_node("Gemm", ["hidden", "square", "b"], ["t0"], "second"))
    proto.graph.initializer.append(numpy_helper.from_array(np.eye(CLASSES, dtype=np.float32), "square"))
    model = Model.from_proto(proto)
    made = compress_model(model, "class-bias", shifted_rows(model, SHIFT))
    np.testing.assert_array_equal(made.initializers["b"], model.initializers["b"])
    offsets = np.array(made.history[-1].options["offsets"])
    x = features(9)
    np.testing.assert_allclose(real(made, x) - real(model, x), np.tile(offsets, (9, 1)), atol=1e-5)


def test_the_old_softmax_flattens() -> None:
    model = build([HEAD, ("Softmax", ["0"], {})], opset=11)
    made = compress_model(model, "class-bias", shifted_rows(model, SHIFT))
    assert "in its bias" in made.history[-1].notes[0]


@pytest.mark.parametrize("make", [residual, residual_nhwc, residual_half, residual_quantized])
def test_labels_that_shift_are_followed(make) -> None:
    model = make()
    x = images(300, nhwc="nhwc" in model.name)
    scores = real(model, x)
    shift = np.zeros(10)
    shift[scores.argmax(1)[0]] = -2
    made = compress_model(model, "class-bias", Dataset("d", x, (scores + shift).argmax(1)))
    wanted = (scores + shift).argmax(1)
    assert (real(made, x).argmax(1) == wanted).mean() > (scores.argmax(1) == wanted).mean() + 0.02


# -- what is told -----------------------------------------------------------------------------------------------------


def test_notes_tell_the_honest_figure_and_the_flattering_one_apart() -> None:
    model = build(ENDS["softmax"])
    rows = dataclasses.replace(shifted_rows(model, SHIFT), classes=("cat", "dog", "frog", "ship"))
    made = compress_model(model, "class-bias", rows)
    place, offsets, held, balance, flattering = made.history[-1].notes
    assert place == "n0: Gemm: one offset per class in its bias"
    assert "cat +" in offsets
    assert "dog -" in offsets
    assert "each fifth of the 400 in turn" in held
    assert "McNemar" in held
    assert "class balance of these rows" in balance
    assert "flatters" in flattering
    plan = methods.get("class-bias")().plan(model, rows)
    assert plan.expected["top1_before"].value < plan.expected["top1"].value
    assert f"{plan.expected['top1'].value:.2%} after" in held
    assert held in plan.notes
    assert "n0" in plan.changes[0].layer
    assert methods.get("class-bias")().plan(model).changes[0].what == plan.changes[0].what


def test_what_does_not_help_is_said_to() -> None:
    model = build(ENDS["gemm"])
    x = features(60)
    made = compress_model(model, "class-bias", Dataset("d", x, real(model, x).argmax(1)))
    assert any("keep the network as it was" in n for n in made.history[-1].notes)
    few = Dataset("d", x, np.random.default_rng(0).integers(0, 3, 60))
    notes = compress_model(model, "class-bias:rows=30", few).history[-1].notes
    assert any("1 classes without any" in n for n in notes)
    assert any("30 rows are few for 3 classes" in n for n in notes)
    assert any("chance on these rows" in n for n in notes)


def test_refusals() -> None:
    model = build(ENDS["gemm"])
    rows = shifted_rows(model, SHIFT)

    def refuses(what: str, kind: type[Exception] = DataError, network: Model = model, **changes: Any) -> None:
        for call in (methods.get("class-bias")().apply, methods.get("class-bias")().plan):
            with pytest.raises(kind, match=what):
                call(network, dataclasses.replace(rows, **changes))

    labels = rows.labels
    assert labels is not None
    refuses("no labels", labels=None)
    refuses("at least two classes", labels=np.full(400, 2))
    refuses("go from 1 to 4, but head has 4 scores", labels=labels + 1)
    refuses("go from -1", labels=labels - 1)
    refuses("not finite", samples=np.full((400, FEATURES), np.nan, np.float32))
    sigmoid = build([HEAD, ("Sigmoid", ["0"], {})])
    refuses("do not exclude each other", UnsupportedError, sigmoid)
    own = build([HEAD, ("Exp", ["0"], {})]).to_proto()
    own.graph.node.append(helper.make_node("ReduceSum", ["t1", "last"], ["t2"]))
    own.graph.node.append(helper.make_node("Div", ["t1", "t2"], ["t3"]))
    own.graph.initializer.append(numpy_helper.from_array(np.array([1]), "last"))
    own.graph.output[0].name = "t3"

    refuses("no Softmax is there", UnsupportedError, Model.from_proto(own))
    label = build(ENDS["gemm"]).to_proto()
    label.graph.node.append(helper.make_node("ArgMax", ["t0"], ["best"], axis=1, keepdims=1))
    del label.graph.output[:]
    label.graph.output.append(helper.make_tensor_value_info("best", TensorProto.INT64, ["N", 1]))
    refuses("no class scores", UnsupportedError, Model.from_proto(label))
    two = build(ENDS["gemm"]).to_proto()
    two.graph.output.append(helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", FEATURES]))
    refuses("2 outputs: t0, x", UnsupportedError, Model.from_proto(two))


def test_labels_of_a_network_with_a_background_class_are_told() -> None:
    model = build(ENDS["gemm"])
    x = features(400)
    best = real(model, x).argmax(1)
    kept = best > 0
    # Classes 0..2 of the data are the network's 1..3.
    rows = Dataset("d", x[kept], best[kept] - 1)
    with pytest.raises(DataError, match="is class 0 the background"):
        compress_model(model, "class-bias", rows)


def test_options_are_checked() -> None:
    for wrong in ({"l2": 0.0}, {"l2": -1.0}, {"rows": 1}):
        with pytest.raises(OptionError):
            methods.get("class-bias")(**wrong)


@pytest.mark.parametrize("scale", [1e-12, 0.0])
def test_a_bias_that_cannot_hold_the_offsets_is_refused(scale: float) -> None:
    model = build(INTEGERS["float answers"])
    proto = model.to_proto()
    for tensor in proto.graph.initializer:
        if tensor.name == "s_b":
            tensor.CopyFrom(numpy_helper.from_array(np.float32(scale), "s_b"))
    broken = Model.from_proto(proto)
    with pytest.raises(UnsupportedError, match="int32 bias of 'n4'"):
        compress_model(broken, "class-bias", shifted_rows(broken, SHIFT))
