"""ternary-stq: chances of the codes, phases, what is written, what is refused."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
import torch
from onnx import helper, numpy_helper

from dlas.compress.checkpoint import checkpoints_in
from dlas.compress.quantize._ternary.training import Training
from dlas.compress.quantize._ternary.weights import (
    Normalised,
    Phase,
    Rounded,
    RoundedActivation,
    Ternary,
    chances,
    drawn,
    least_squares,
)
from dlas.compress.quantize.ternary_stq import TernaryStq
from dlas.core.errors import DataError, DlasError, ModelError, OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.data.find import load_dataset
from dlas.data.preprocess import prepare
from dlas.graph.model import Model
from dlas.graph.reference import Reference, predict
from dlas.graph.torch_module import to_torch
from dlas.kernels.formats.ternary import ternarize
from dlas.models.pretrained import load_pretrained
from dlas.testing import models
from dlas.testing.methods import MethodSuite

RNG = np.random.default_rng(0)
QUICK = {"epochs": 2, "batch_size": 16, "threads": 1, "lr": 0.02}


class TestSuite(MethodSuite):
    method = "ternary-stq:epochs=1,batch_size=16,threads=1,jacobian=0.01,jacobian_layers=0.01"


class TestSuiteWithActivations(MethodSuite):
    method = "ternary-stq:epochs=1,batch_size=16,threads=1,activation_bits=4,ends=ternary,depthwise=ternary"


def blobs(rows=64, classes=models.CLASSES):
    """Images whose mean colour tells the class."""
    rng = np.random.default_rng(3)
    labels = np.arange(rows) % classes
    shift = rng.standard_normal((classes, 3, 1, 1)).astype(np.float32) * 2
    images = rng.standard_normal((rows, 3, models.SIZE, models.SIZE)).astype(np.float32) + shift[labels]
    return Dataset("blobs", images, labels.astype(np.int64))


def trained(model=None, data=None, **options):
    return TernaryStq(**{**QUICK, **options}).apply(model or models.residual(), data or blobs())


# --- codes ---------------------------------------------------------------------------------------


def test_torch_and_numpy_find_the_same_codes():
    w = torch.randn(6, 4, 3, 3)
    scale, codes = least_squares(w, 0)
    expected, scales = ternarize(w.numpy(), axis=0)
    np.testing.assert_array_equal(codes.numpy(), expected)
    np.testing.assert_allclose(scale.reshape(-1).numpy(), scales, rtol=1e-5)


def test_drawn_codes_are_as_frequent_as_the_formula_says():
    """50,000 draws of each of 16 weights: the share of -1, 0 and 1 within three standard deviations."""
    torch.manual_seed(0)
    w = torch.linspace(-2, 2, 16)[None]
    scale, _ = least_squares(w, 0)
    p0, p1 = (p[0].double() for p in chances(w, scale, 0))
    expected = {1: p0 * p1, -1: (1 - p0) * (1 - p1), 0: p0 * (1 - p1) + p1 * (1 - p0)}
    draws = 50_000
    counts = {code: torch.zeros(16) for code in expected}
    for _ in range(10):
        codes = drawn(w.repeat(draws // 10, 1), scale, 0)  # every row is a slice of its own
        for code in counts:
            counts[code] += (codes == code).sum(0)
    for code, p in expected.items():
        deviation = torch.sqrt(p * (1 - p) / draws)
        assert ((counts[code] / draws - p).abs() <= 3 * deviation + 2e-5).all(), code


def test_the_mean_code_rises_with_the_weight_to_its_sign():
    w = torch.linspace(-3, 3, 41)[None]
    scale, _ = least_squares(w, 0)
    p0, p1 = chances(w, scale, 0)
    mean = (p0 + p1 - 1)[0]
    assert (mean.diff() > 0).all()
    assert mean[0] < -0.999
    assert mean[-1] > 0.999
    assert abs(float(mean[20])) < 1e-6


def test_each_phase_uses_its_weights_and_lets_the_gradient_through():
    phase = Phase()
    layer = Ternary(0, phase).train()
    w = torch.randn(4, 50, requires_grad=True)
    assert torch.equal(layer(w), w)
    scale, codes = least_squares(w.detach(), 0)
    phase.mode = "ternary"
    assert torch.equal(layer(w), scale * codes)
    phase.mode = "stochastic"
    first, second = layer(w), layer(w)
    assert not torch.equal(first, second)
    assert set((first / scale).detach().round(decimals=4).unique().tolist()) <= {-1.0, 0.0, 1.0}
    (first * 3).sum().backward()
    assert torch.equal(w.grad, torch.full_like(w, 3))
    assert torch.equal(layer.eval()(w), scale * codes)  # no lots are drawn where nothing is trained


def test_eight_bits_lose_at_most_half_a_step():
    phase = Phase("ternary")
    w = torch.randn(4, 50)
    found = Rounded(0, phase)(w)
    step = w.abs().amax(1, keepdim=True) / 127
    assert ((found - w).abs() <= step * 0.5001).all()
    assert torch.equal(found.abs().amax(1), w.abs().amax(1))


def test_activations_are_held_in_steps_of_a_power_of_two():
    phase = Phase()
    layer = RoundedActivation(4, 3.0, phase)
    assert layer.step == 4 / 16
    phase.mode = "ternary"
    x = torch.tensor([0.0, 0.12, 0.13, 2.0, 3.9, 77.0], requires_grad=True)
    y = layer(x)
    assert y.tolist() == [0, 0, 0.25, 2.0, 3.75, 3.75]
    y.sum().backward()
    assert x.grad.tolist() == [1, 1, 1, 1, 0, 0]
    phase.mode = "float"
    for _ in range(100):
        layer.train()(torch.tensor([20.0]))
    assert layer.step == 32 / 16


def test_normalisation_begins_as_nothing_and_can_be_folded():
    mean, variance = torch.randn(3), torch.rand(3) + 0.1
    norm = Normalised(mean, variance).eval()
    x = torch.randn(8, 3, 5, 5)
    torch.testing.assert_close(norm(x), x, atol=1e-5, rtol=1e-4)
    norm.count_anew()
    norm.train()
    batches = torch.randn(6, 8, 3, 5, 5) * 2 + 1
    for batch in batches:
        norm(batch)
    torch.testing.assert_close(norm.mean, batches.mean((0, 1, 3, 4)), atol=1e-5, rtol=1e-4)
    norm.eval()
    factor, shift = norm.factor_and_shift()
    torch.testing.assert_close(
        norm(x), x * factor[:, None, None] + shift[:, None, None], atol=1e-5, rtol=1e-4
    )
    norm.train()(torch.ones(1, 3))  # one value per channel has no variance


# --- what is written -----------------------------------------------------------------------------


@pytest.mark.parametrize("options", [{}, {"activation_bits": 8}, {"activation_bits": 3, "ends": "float32"}])
def test_the_file_answers_as_the_trained_network_does(options):
    """Folding, codes and scales change nothing: the module with its changes and the written graph agree."""
    data = blobs()
    method = TernaryStq(**QUICK, **options)
    work, layers, norms, _ = method._prepared(models.residual())
    assert len(norms) == 2
    training = Training(work, layers, norms, method.options, data)
    training.run(method._schedule(), None)
    with torch.no_grad():
        expected = training.module(torch.from_numpy(data.samples)).numpy()
    written = method.apply(models.residual(), data)
    found = predict(written, data.samples)
    scale = np.abs(expected).max()
    bound = 1e-4 if not options else 0.1  # a value between two levels may fall to either
    assert np.abs(found - expected).max() <= bound * scale
    assert (found.argmax(1) == expected.argmax(1)).mean() >= 0.95


def test_weights_are_codes_behind_one_scale_per_channel():
    model = trained(ends="int8", depthwise="int8")
    codes = [
        n.inputs[0].const_value.numpy()
        for n in model.ir.graph
        if n.op_type == "DequantizeLinear" and n.inputs[0].const_value is not None
    ]
    ternary = [c for c in codes if np.abs(c).max() <= 1]
    assert len(codes) == 4  # first, second, depthwise, last
    assert [c.shape for c in ternary] == [(8, 8, 3, 3)]
    assert set(np.unique(ternary[0])) == {-1, 0, 1}
    assert not any(n.op_type == "BatchNormalization" for n in model.ir.graph)
    note = model.history[-1].notes[0]
    expected = (216 + 32) + (144 + 32) + (72 + 32) + (80 + 40) + 3 * 32 + 40  # codes, scales; biases
    assert note.startswith(f"{expected} bytes")


def test_plan_counts_the_bytes_that_apply_writes():
    plan = TernaryStq(**QUICK).plan(models.residual())
    note = trained().history[-1].notes[0]
    assert note.startswith(f"{plan.expected['weight_bytes'].value:.0f} bytes")
    assert [c.what.split("weights ")[1][:7] for c in plan.changes] == [
        "int8, 8",
        "ternary",
        "int8, 8",
        "int8, 10"[:7],
    ]


def test_kept_layers_stay_float_and_are_named_by_pattern():
    names = [c.layer for c in TernaryStq(**QUICK).plan(models.residual()).changes]
    model = trained(keep_float=f"{names[0]}|{names[2]}")
    stored = {
        n.op_type
        for n in model.ir.graph
        if n.op_type in ("Conv", "Gemm") and n.inputs[1].const_value is not None
    }
    assert stored == {"Conv"}
    with pytest.raises(UnknownNameError, match="did you mean"):
        trained(keep_float=names[0] + "x")


def test_it_learns_from_random_weights():
    data = blobs(200)
    model = trained(models.residual(seed=7), data, epochs=8, lr=0.05, batch_size=20)
    assert (predict(model, data.samples).argmax(1) == data.labels).mean() > 0.5


def test_the_jacobian_is_smaller_with_a_weight_on_it():
    data = blobs(120)
    slopes = {}
    for weight in (0.0, 3.0):
        model = trained(data=data, epochs=4, batch_size=20, jacobian=weight, ramp_epochs=1)
        module = to_torch(model)
        x = torch.from_numpy(data.samples[:40]).requires_grad_()
        scores = module(x)
        slopes[weight] = sum(
            float(torch.autograd.grad(scores[:, k].sum(), x, retain_graph=True)[0].square().sum())
            for k in range(10)
        )
    assert slopes[3.0] < 0.5 * slopes[0.0]


def test_a_killed_run_ends_with_the_same_network(tmp_path, monkeypatch):
    monkeypatch.setenv("DLAS_CHECKPOINT_SECONDS", "0")
    options = {"jacobian": 0.05, "activation_bits": 4, "epochs": 3}
    whole = trained(**options)

    class KillError(Exception):
        pass

    def killer(done, what):
        if done > 0.5:
            raise KillError

    with checkpoints_in(tmp_path), pytest.raises(KillError):
        TernaryStq(**{**QUICK, **options}).apply(models.residual(), blobs(), killer)
    told = []
    with checkpoints_in(tmp_path):
        again = TernaryStq(**{**QUICK, **options}).apply(
            models.residual(), blobs(), lambda d, w: told.append(w)
        )
    assert told[0].startswith("resumed at step")
    assert again.to_bytes() == whole.to_bytes()
    told.clear()
    with checkpoints_in(tmp_path):  # other settings do not go on from it
        TernaryStq(**{**QUICK, **options, "jacobian": 0.06}).apply(
            models.residual(), blobs(), lambda d, w: told.append(w)
        )
    assert not told[0].startswith("resumed")


# --- bad input -----------------------------------------------------------------------------------


def lone(nodes, weights, shape=("N", 4), output=("N", 2)):
    graph = helper.make_graph(
        nodes,
        "g",
        [helper.make_tensor_value_info("x", 1, shape)],
        [helper.make_tensor_value_info("y", 1, output)],
        [numpy_helper.from_array(np.asarray(a, np.float32), n) for n, a in weights.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto), "lone")


ONE = lone([helper.make_node("MatMul", ["x", "w"], ["y"], "only")], {"w": RNG.normal(0, 1, (4, 2))})
TWO = lone(
    [
        helper.make_node("MatMul", ["x", "v"], ["h"], "inner"),
        helper.make_node("Tanh", ["h"], ["t"], "tanh"),
        helper.make_node("MatMul", ["t", "w"], ["y"], "outer"),
    ],
    {"v": RNG.normal(0, 1, (4, 4)), "w": RNG.normal(0, 1, (4, 2))},
)
VECTORS = Dataset("vectors", RNG.normal(0, 1, (20, 4)).astype(np.float32), np.arange(20) % 2)


@pytest.mark.parametrize(
    ("model", "data", "options", "kind", "text"),
    [
        (None, blobs(20), {"warmup": 0.6, "settle": 0.6}, OptionError, "warmup . settle = 1.2"),
        (None, blobs(20), {"activation_bits": 1}, OptionError, "activation_bits = 1"),
        (None, blobs(6), {}, DataError, "6 rows for 6 classes, too few"),
        (None, Dataset("bare", models.images(30)), {}, DataError, "no labels"),
        (
            None,
            Dataset("b", models.images(30), np.full(30, 10)),
            {},
            DataError,
            "from 10 to 10, the network has 10",
        ),
        (None, Dataset("b", models.images(30), np.full(30, -1)), {}, DataError, "from -1 to -1"),
        (ONE, VECTORS, {}, UnsupportedError, "no layer becomes ternary.*only"),
        (TWO, VECTORS, {"activation_bits": 4, "ends": "ternary"}, UnsupportedError, "no ReLU"),
        (models.residual(nan=True), blobs(), {}, ModelError, "NaN"),
        (models.residual_quantized(), blobs(), {}, UnsupportedError, "quantised already"),
        (None, blobs(40), {"lr": 1e30}, DlasError, "diverged"),
    ],
)
def test_bad_input_is_one_line(model, data, options, kind, text):
    with pytest.raises(kind, match=text) as caught:
        trained(model, data, **options)
    assert "\n" not in str(caught.value)


def test_a_network_of_matrix_products_is_trained():
    model = trained(TWO, VECTORS, ends="ternary", jacobian=0.01, jacobian_layers=0.01)
    with Reference(model) as reference:
        assert np.isfinite(reference.run({"x": VECTORS.samples})["y"]).all()


def test_a_shared_weight_stays_one_thing():
    shared = lone(
        [
            helper.make_node("Gemm", ["x", "v"], ["h"], "inner"),
            helper.make_node("Gemm", ["h", "v"], ["k"], "again"),
            helper.make_node("MatMul", ["k", "w"], ["y"], "outer"),
        ],
        {"v": RNG.normal(0, 1, (4, 4)), "w": RNG.normal(0, 1, (4, 2))},
    )
    with pytest.raises(UnsupportedError, match="inner and again share a weight"):
        trained(shared, VECTORS)
    model = trained(shared, VECTORS, ends="ternary")
    codes = {n.inputs[0].name for n in model.ir.graph if n.op_type == "DequantizeLinear"}
    assert len(codes) <= 3
    assert predict(model, VECTORS.samples).shape == (20, 2)


def test_probabilities_are_regularised_before_the_softmax():
    ending = lone(
        [
            helper.make_node("Gemm", ["x", "v"], ["h"], "inner"),
            helper.make_node("Relu", ["h"], ["r"], "relu"),
            helper.make_node("Gemm", ["r", "w"], ["z"], "outer"),
            helper.make_node("Softmax", ["z"], ["y"], "softmax"),
        ],
        {"v": RNG.normal(0, 1, (4, 8)), "w": RNG.normal(0, 1, (8, 2))},
    )
    method = TernaryStq(**QUICK, jacobian=0.1, jacobian_layers=0.1, ends="ternary")
    work, layers, norms, _ = method._prepared(ending)
    loss = Training(work, layers, norms, method.options, VECTORS)._loss()
    assert (loss.scores, loss.layers) == ("z", ("r",))
    assert np.allclose(predict(method.apply(ending, VECTORS), VECTORS.samples).sum(1), 1, atol=1e-5)


@pytest.mark.slow
def test_the_jacobian_makes_digits_harder_to_attack():
    """Three seeds: PGD with 7 steps at 16/255 leaves more digits right, clean ones stay within 3 points."""
    network = load_pretrained("digits-cnn")
    train, test = (
        load_dataset("digits", split="train").head(600),
        load_dataset("digits", split="test").head(200),
    )
    gaps, clean = [], []
    for seed in range(3):
        shares = []
        for weight in (0.0, 0.01):
            small = TernaryStq(
                epochs=6, batch_size=32, threads=1, seed=seed, jacobian=weight, ramp_epochs=2
            ).apply(network, train)
            shares.append(attacked(small, test, 16 / 255))
        clean.append(shares[1][0] - shares[0][0])
        gaps.append(shares[1][1] - shares[0][1])
    assert np.mean(gaps) > 0.02
    assert abs(np.mean(clean)) <= 0.03


def attacked(model, data, eps, steps=7):
    """Share of rows answered rightly: as they are, and after PGD."""
    module = to_torch(model)
    x, y = torch.from_numpy(prepare(data, model)), torch.from_numpy(data.labels)
    changed = x.clone()
    for _ in range(steps):
        changed.requires_grad_()
        loss = torch.nn.functional.cross_entropy(module(changed), y, reduction="sum")
        (slope,) = torch.autograd.grad(loss, changed)
        changed = (changed + eps / 4 * slope.sign()).clamp(x - eps, x + eps).clamp(0, 1).detach()
    with torch.no_grad():
        return [float((module(each).argmax(1) == y).float().mean()) for each in (x, changed)]
