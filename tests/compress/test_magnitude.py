"""Unstructured pruning: exact counts, the smallest go first, nothing else moves."""

from __future__ import annotations

import itertools
from dataclasses import replace
from pathlib import Path
from typing import Any

import numpy as np
import onnx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model, methods
from dlas.compress.prune.magnitude import csr_bytes
from dlas.core.errors import DataError, ModelError, OptionError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.format import load_model, save_model
from dlas.graph.model import Model
from dlas.graph.reference import predict
from dlas.kernels.formats.csr import to_csr
from dlas.testing.methods import MethodSuite
from dlas.testing.models import images, residual, residual_half, residual_quantized

WEIGHTS = ("w1", "w2", "w3", "fc_w")


class TestMagnitudePerLayer(MethodSuite):
    method = "magnitude:sparsity=0.8,scope=layer,keep_first=false"


def prune(model: Model, sparsity: float, **options: Any) -> Model:
    return methods.get("magnitude")(sparsity=sparsity, **options).apply(model)


def mlp(weights: dict[str, np.ndarray], nodes: list[onnx.NodeProto], width: int) -> Model:
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", width])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, None)],
        [numpy_helper.from_array(array, name) for name, array in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto))


def two_layers(a: np.ndarray, b: np.ndarray) -> Model:
    nodes = [
        helper.make_node("MatMul", ["x", "a"], ["h"], name="first"),
        helper.make_node("Gemm", ["h", "b"], ["y"], name="second"),
    ]
    return mlp({"a": a, "b": b}, nodes, len(a))


@settings(max_examples=40, deadline=None)
@given(
    sparsity=st.floats(0, 0.999),
    seed=st.integers(0, 1000),
    scope=st.sampled_from(["global", "layer"]),
    levels=st.integers(2, 50),
)
def test_sparsity_is_exact_to_one_weight(sparsity: float, seed: int, scope: str, levels: int) -> None:
    rng = np.random.default_rng(seed)
    # few levels: many weights of one size, but none zero
    a, b = (rng.integers(1, levels, s).astype(np.float32) for s in ((7, 11), (11, 5)))
    after = prune(two_layers(a, b), sparsity, scope=scope).initializers
    zeros = sum(int((after[n] == 0).sum()) for n in "ab")
    assert zeros == round(sparsity * (a.size + b.size))
    if scope == "layer":
        for name, size in (("a", a.size), ("b", b.size)):
            assert abs(int((after[name] == 0).sum()) - sparsity * size) <= 1
    groups = [("ab", [a, b])] if scope == "global" else [("a", [a]), ("b", [b])]
    for names, arrays in groups:
        old = np.concatenate([x.ravel() for x in arrays])
        new = np.concatenate([after[n].ravel() for n in names])
        kept = new != 0
        np.testing.assert_array_equal(new[kept], old[kept])
        if kept.any() and not kept.all():
            assert np.abs(old[~kept]).max() <= np.abs(old[kept]).min()


@pytest.mark.parametrize("keep_first", [True, False])
def test_only_kernels_and_matrices_change(keep_first: bool) -> None:
    model = residual()
    after = prune(model, 0.8, keep_first=keep_first)
    changed = {n for n, a in after.initializers.items() if not np.array_equal(a, model.initializers[n])}
    assert changed == set(WEIGHTS) - ({"w1"} if keep_first else set())
    prunable = [after.initializers[n] for n in changed]
    assert sum(int((a == 0).sum()) for a in prunable) == round(0.8 * sum(a.size for a in prunable))


def test_the_original_is_left_alone() -> None:
    model = residual()
    before = model.hash
    methods.get("magnitude")(sparsity=0.9).plan(model)
    prune(model, 0.9)
    assert model.hash == before


def test_no_sparsity_changes_nothing() -> None:
    model = residual()
    after = prune(model, 0.0)
    assert after.hash == model.hash
    assert after.history[-1].action == "magnitude"


def test_a_pruned_network_runs() -> None:
    model, x = residual(), images(4)
    after = prune(model, 0.3)
    assert np.isfinite(predict(after, x)).all()
    assert np.abs(predict(after, x) - predict(model, x)).max() > 0


def test_zeros_that_are_there_count() -> None:
    a = np.ones((4, 4), np.float32)
    a.reshape(-1)[:10] = 0
    model = two_layers(a, np.ones((4, 4), np.float32))
    after = prune(model, 0.25)
    assert sum(int((after.initializers[n] == 0).sum()) for n in "ab") == 10
    assert "10 weights were zero before, more than the 8 asked for" in " ".join(after.history[-1].notes)
    assert sum(int((a == 0).sum()) for a in prune(model, 0.5).initializers.values()) == 16


def test_an_emptied_layer_is_named() -> None:
    model = two_layers(np.full((4, 4), 0.01, np.float32), np.ones((4, 4), np.float32))
    notes = " ".join(prune(model, 0.5).history[-1].notes)
    assert "all weights are zero in first" in notes
    assert "all weights" not in " ".join(prune(model, 0.5, scope="layer").history[-1].notes)


def test_tied_weights_stay_tied_and_count_once() -> None:
    w = np.arange(1, 17, dtype=np.float32).reshape(4, 4)
    nodes = [
        helper.make_node("MatMul", ["x", "w"], ["h"], name="a"),
        helper.make_node("Transpose", ["w"], ["t"], perm=[1, 0]),
        helper.make_node("MatMul", ["h", "t"], ["y"], name="b"),
    ]
    model = mlp({"w": w}, nodes, 4)
    plan = methods.get("magnitude")(sparsity=0.5).plan(model)
    assert [c.layer for c in plan.changes] == ["a = b"]
    after = prune(model, 0.5)
    expected = np.where(w <= 8, 0, w)
    np.testing.assert_array_equal(after.initializers["w"], expected)
    x = np.ones((1, 4), np.float32)
    np.testing.assert_allclose(predict(after, x), x @ expected @ expected.T)


def test_half_precision_weights_are_pruned() -> None:
    after = prune(residual_half(), 0.5)
    assert after.initializers["w2"].dtype == np.float16
    assert sum(int((after.initializers[n] == 0).sum()) for n in WEIGHTS[1:]) == 364


def test_it_composes_with_float16() -> None:
    model = prune(residual(), 0.5)
    half = compress_model(model, "float16")
    assert [s.action for s in half.history] == ["magnitude", "float16"]
    np.testing.assert_array_equal(half.initializers["fc_w"] == 0, model.initializers["fc_w"] == 0)
    again = prune(compress_model(residual(), "float16:arithmetic=float32"), 0.5)
    assert sum(int((again.initializers[n] == 0).sum()) for n in WEIGHTS[1:]) == 364


def test_plan_says_what_apply_does() -> None:
    member = methods.get("magnitude")(sparsity=0.5)
    plan = member.plan(residual())
    after = member.apply(residual())
    rows = {c.layer: c.after for c in plan.changes}
    zeros = int((after.initializers["w2"] == 0).sum())
    assert rows["conv2_Conv"] == f"sparsity {zeros / 576:.3f} ({zeros} of 576)"
    assert "conv1_Conv" not in rows
    assert plan.expected["sparsity"].value == 0.5
    notes = " ".join(plan.notes)
    assert "run no faster" in notes
    assert "above 50 % sparsity" in notes
    # CSR: 6 bytes per weight that is left, 4 per row and one more
    assert plan.expected["csr_bytes"].value == 364 * 6 + 4 * (9 + 9 + 11)
    assert plan.expected["dense_bytes"].value == 728 * 4


def test_the_torch_module_is_dropped() -> None:
    assert prune(replace(residual(), torch_module=object()), 0.5).torch_module is None


def test_what_is_refused() -> None:
    with pytest.raises(UnsupportedError, match="is quantised"):
        prune(residual_quantized(), 0.5)
    with pytest.raises(ModelError, match="'fc_w' has 1 values"):
        prune(residual(nan=True), 0.5, keep_first=False)
    only = mlp({}, [helper.make_node("Relu", ["x"], ["y"])], 4)
    with pytest.raises(UnsupportedError, match="no weights to prune"):
        prune(only, 0.5)
    for bad in (1.0, -0.1, float("nan")):
        with pytest.raises(OptionError, match="sparsity"):
            prune(residual(), bad)


def test_a_network_of_one_convolution_needs_keep_first_off() -> None:
    graph = helper.make_graph(
        [helper.make_node("Conv", ["x", "w"], ["y"], name="c")],
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 1, 4, 4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 2, 2, 2])],
        [numpy_helper.from_array(np.arange(1, 19, dtype=np.float32).reshape(2, 1, 3, 3), "w")],
    )
    model = Model.from_proto(
        helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    )
    with pytest.raises(UnsupportedError, match="keep_first=false"):
        prune(model, 0.5)
    assert int((prune(model, 0.5, keep_first=False).initializers["w"] == 0).sum()) == 9


def noisy_rows(count: int = 64) -> Dataset:
    labels = np.random.default_rng(3).integers(0, 10, count).astype(np.int64)
    return Dataset("noise", images(count, seed=4), labels)


def zeros_of(model: Model) -> dict[str, np.ndarray]:
    return {n: model.initializers[n] == 0 for n in WEIGHTS}


def test_a_threshold_is_in_standard_deviations_of_each_layer() -> None:
    model = residual()
    after = prune(model, 0.5, threshold=0.7, keep_first=False).initializers
    for name in WEIGHTS:
        old = model.initializers[name]
        np.testing.assert_array_equal(after[name] == 0, np.abs(old) < 0.7 * old.std())
    plan = methods.get("magnitude")(threshold=0.7, keep_first=False).plan(model)
    size = sum(a.size for a in zeros_of(model).values())
    assert plan.expected["sparsity"].value == sum(int((after[n] == 0).sum()) for n in WEIGHTS) / size


def test_the_schedule_rises_along_a_cubic_curve_and_no_zero_comes_back(
    monkeypatch: pytest.MonkeyPatch,
) -> None:
    from dlas.compress import training

    seen: list[dict[str, np.ndarray]] = []
    fine_tune = training.fine_tune

    def spy(model: Model, data: Dataset, **options: Any) -> Model:
        seen.append(zeros_of(model))
        trained = fine_tune(model, data, **options)
        seen.append(zeros_of(trained))
        return trained

    monkeypatch.setattr(training, "fine_tune", spy)
    member = methods.get("magnitude")(
        sparsity=0.8, steps=4, finetune_epochs=1, keep_first=False, threads=1, batch_size=32
    )
    told: list[tuple[float, str]] = []
    after = member.apply(residual(), noisy_rows(), lambda f, t: told.append((f, t)))
    size = sum(z.size for z in seen[0].values())
    shares = [sum(int(z.sum()) for z in zeros.values()) / size for zeros in seen]
    expected = [0.8 * (1 - (1 - k / 4) ** 3) for k in (1, 2, 3, 4)]
    np.testing.assert_allclose(shares[::2], expected, atol=1 / size)
    assert shares[1::2] == shares[::2]
    for earlier, later in itertools.pairwise(seen):
        assert all((later[n] | ~earlier[n]).all() for n in WEIGHTS)
    moved = residual().initializers["w2"] != after.initializers["w2"]
    assert moved[~zeros_of(after)["w2"]].any()
    assert "loss" in told[-1][1]
    assert len(after.history) == 1
    assert "mean loss after each step" in " ".join(after.history[0].notes)


def test_training_needs_rows() -> None:
    with pytest.raises(DataError, match="finetune_epochs"):
        methods.get("magnitude")(finetune_epochs=1).apply(residual())


@pytest.mark.parametrize("ending", [".onnx", ".tflite"])
def test_masks_survive_export(ending: str, tmp_path: Path) -> None:
    member = methods.get("magnitude")(sparsity=0.7, steps=2, finetune_epochs=1, threads=1)
    after = member.apply(residual(), noisy_rows())
    save_model(after, tmp_path / f"sparse{ending}")
    again = load_model(tmp_path / f"sparse{ending}")
    count = lambda m: sum(int((a == 0).sum()) for a in m.initializers.values() if a.ndim == 4)  # noqa: E731
    assert count(again) == count(after) > 400
    x = images(4)
    given = x if again.inputs[0].shape[1] == 3 else x.transpose(0, 2, 3, 1)
    np.testing.assert_allclose(predict(again, given), predict(after, x), atol=1e-4)


@pytest.mark.parametrize(("columns", "width"), [(65_536, 2), (65_537, 4)])
def test_bytes_of_sparse_rows_count_their_indices(columns: int, width: int) -> None:
    random = np.random.default_rng(0)
    weight = np.where(random.random((3, columns)) < 0.1, random.normal(size=(3, columns)), 0).astype(
        np.float32
    )
    stored = to_csr(weight)
    assert csr_bytes([weight]) == stored.nbytes - (4 - width) * len(stored.colidx)
    halves = np.where(np.arange(3000).reshape(30, 100) % 3 == 2, 0, 1.0).astype(np.float32)
    assert csr_bytes([halves]) - 4 * 31 == halves.nbytes  # two thirds left: neither gains
