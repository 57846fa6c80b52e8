"""Matrix products, element-wise functions, normalisations and recurrent layers against ONNX Runtime."""

from __future__ import annotations

import numpy as np
import pytest
from onnx_oracle import near, run_node

from dlas.core.errors import OptionError, ShapeError, UnknownNameError
from dlas.kernels.reference import normalisation
from dlas.kernels.reference.dense import gemm, matmul
from dlas.kernels.reference.elementwise import ACTIVATIONS, BINARY, activate, combine
from dlas.kernels.reference.recurrent import DIRECTIONS, gru, lstm

ONNX_ACTIVATIONS = {
    "relu": ("Relu", {}),
    "sigmoid": ("Sigmoid", {}),
    "tanh": ("Tanh", {}),
    "hard-swish": ("HardSwish", {}),
    "hard-sigmoid": ("HardSigmoid", {"alpha": 0.3, "beta": 0.4}),
    "leaky-relu": ("LeakyRelu", {"alpha": 0.2}),
    "elu": ("Elu", {"alpha": 0.7}),
    "erf": ("Erf", {}),
    "gelu": ("Gelu", {}),
    "gelu-tanh": ("Gelu", {"approximate": "tanh"}),
}


def normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape).astype(np.float32)


def test_gemm_equals_onnxruntime():
    rng = np.random.default_rng(0)
    for _ in range(200):
        m, n, k = (int(v) for v in rng.integers(1, 20, 3))
        ta, tb = bool(rng.integers(2)), bool(rng.integers(2))
        a, b = normal(rng, *((k, m) if ta else (m, k))), normal(rng, *((n, k) if tb else (k, n)))
        shapes = [None, (m, n), (n,), (1, n), (m, 1), (1,), ()]
        shape = shapes[rng.integers(len(shapes))]
        c = None if shape is None else np.asarray(normal(rng, *shape))
        alpha, beta = (float(v) for v in rng.uniform(-2, 2, 2))
        found = gemm(a, b, c, alpha=alpha, beta=beta, trans_a=ta, trans_b=tb)
        asked = {"alpha": alpha, "beta": beta, "transA": int(ta), "transB": int(tb)}
        near(found, run_node("Gemm", {"a": a, "b": b, "c": c}, **asked)[0])


def test_matmul_equals_onnxruntime():
    rng = np.random.default_rng(1)
    for left, right in [
        ((3, 4), (4, 5)), ((4,), (4, 5)), ((3, 4), (4,)), ((4,), (4,)), ((2, 3, 4), (4, 5)),
        ((2, 1, 3, 4), (7, 4, 5)), ((4, 5), (2, 5, 3)), ((6, 2, 3), (3,)), ((3, 0), (0, 2)),
    ]:  # fmt: skip
        a, b = normal(rng, *left), normal(rng, *right)
        near(matmul(a, b), run_node("MatMul", {"a": a, "b": b})[0])


@pytest.mark.parametrize(("a", "b"), [((3, 4), (3, 4)), ((), (3,)), ((2, 3, 4), (5, 4, 3)), ((4,), (3,))])
def test_matmul_refuses_what_does_not_fit(a, b):
    with pytest.raises(ShapeError):
        matmul(np.zeros(a, np.float32), np.zeros(b, np.float32))


def test_gemm_refuses_what_does_not_fit():
    a, b = np.zeros((3, 4), np.float32), np.zeros((4, 5), np.float32)
    with pytest.raises(ShapeError, match="a has 3 columns, b has 4 rows"):
        gemm(a, b, trans_a=True)
    with pytest.raises(ShapeError, match="c has the shape"):
        gemm(a, b, np.zeros((5, 3), np.float32))
    with pytest.raises(ShapeError, match="c has the shape"):
        gemm(a, b, np.zeros((1, 3, 5), np.float32))


@pytest.mark.parametrize("name", sorted(ONNX_ACTIVATIONS))
def test_activations_equal_onnxruntime(name):
    op, parameters = ONNX_ACTIVATIONS[name]
    rng = np.random.default_rng(2)
    x = np.concatenate([3 * normal(rng, 4, 50), [[-90.0, 90.0, 0.0, -0.0] * 12 + [3.0, -3.0]]]).astype(
        np.float32
    )
    given = {k: v for k, v in parameters.items() if k != "approximate"}
    # The polynomials of ONNX Runtime are good to about a millionth.
    near(activate(name, x, **given), run_node(op, {"x": x}, **parameters)[0], 3e-6)


def test_clip_and_silu():
    x = np.array([-200.0, -1.0, 0.25, 7.0], np.float32)
    np.testing.assert_array_equal(activate("clip", x, low=0, high=6), np.float32([0, 0, 0.25, 6]))
    np.testing.assert_array_equal(activate("clip", x), x)
    expected = x * run_node("Sigmoid", {"x": x})[0]
    near(activate("silu", x), expected)


def test_every_activation_is_compared():
    assert set(ONNX_ACTIVATIONS) | {"clip", "silu"} == set(ACTIVATIONS)


def test_activation_refuses():
    with pytest.raises(UnknownNameError, match="relu"):
        activate("rellu", np.zeros(1, np.float32))
    with pytest.raises(OptionError, match="alpha"):
        activate("relu", np.zeros(1, np.float32), alpha=1)
    with pytest.raises(ShapeError, match="int32"):
        activate("relu", np.zeros(1, np.int32))


@pytest.mark.parametrize("name", sorted(BINARY))
def test_binary_operations_broadcast_as_onnxruntime(name):
    op = {"min": "Min", "max": "Max"}.get(name, name.capitalize())
    rng = np.random.default_rng(3)
    for left, right in [((2, 3, 4), (3, 1)), ((5,), (1,)), ((1, 4), (3, 1)), ((2, 2), ())]:
        a, b = normal(rng, *left), np.asarray(normal(rng, *right))
        near(combine(name, a, b), run_node(op, {"a": a, "b": b})[0])


def test_binary_refuses():
    with pytest.raises(ShapeError, match="broadcast"):
        combine("add", np.zeros((2, 3), np.float32), np.zeros((2,), np.float32))
    with pytest.raises(UnknownNameError):
        combine("pow", np.zeros(1, np.float32), np.zeros(1, np.float32))


@pytest.mark.parametrize(("ours", "op"), [("softmax", "Softmax"), ("log_softmax", "LogSoftmax")])
def test_softmax_equals_onnxruntime(ours, op):
    rng = np.random.default_rng(4)
    x = 10 * normal(rng, 2, 5, 3, 7)
    for axis in (-1, 0, 1, 2):
        near(getattr(normalisation, ours)(x, axis), run_node(op, {"x": x}, axis=axis)[0])
    assert np.isfinite(getattr(normalisation, ours)(np.float32([[1000, -1000]]))).all()
    with pytest.raises(ShapeError, match="axis = 4"):
        getattr(normalisation, ours)(x, 4)
    with pytest.raises(ShapeError, match="size 0"):
        getattr(normalisation, ours)(np.zeros((2, 0), np.float32))


def test_layer_norm_equals_onnxruntime():
    rng = np.random.default_rng(5)
    x = normal(rng, 2, 5, 7)
    for axis, shape in ((-1, (7,)), (1, (5, 7)), (-2, (5, 7))):
        scale, bias = normal(rng, *shape), normal(rng, *shape)
        given = {"x": x, "scale": scale, "bias": bias}
        expected = run_node("LayerNormalization", given, axis=axis, epsilon=1e-3)[0]
        near(normalisation.layer_norm(**given, axis=axis, epsilon=1e-3), expected)
        near(
            normalisation.layer_norm(x, scale, axis=axis),
            run_node("LayerNormalization", {"x": x, "scale": scale}, axis=axis)[0],
        )
    with pytest.raises(ShapeError, match="scale has the shape"):
        normalisation.layer_norm(x, np.zeros(5, np.float32))


def test_instance_and_batch_norm_equal_onnxruntime():
    rng = np.random.default_rng(6)
    x, scale, bias, mean = normal(rng, 3, 4, 5, 6), normal(rng, 4), normal(rng, 4), normal(rng, 4)
    variance = np.abs(normal(rng, 4))
    found = normalisation.instance_norm(x, scale, bias, epsilon=1e-2)
    expected = run_node("InstanceNormalization", {"x": x, "s": scale, "b": bias}, epsilon=1e-2)[0]
    near(found, expected)
    statistics = {"x": x, "scale": scale, "bias": bias, "mean": mean, "variance": variance}
    near(
        normalisation.batch_norm(**statistics, epsilon=1e-2),
        run_node("BatchNormalization", statistics, epsilon=1e-2)[0],
    )
    with pytest.raises(OptionError, match="variance"):
        normalisation.batch_norm(x, scale, bias, mean, variance - 10)
    with pytest.raises(ShapeError, match="3 values"):
        normalisation.instance_norm(x, scale[:3], bias)
    with pytest.raises(ShapeError, match="average"):
        normalisation.instance_norm(x[:, :, 0, 0], scale, bias)


@pytest.mark.parametrize("size", [1, 3, 5, 9, 15])
def test_local_response_norm_equals_onnxruntime(size):
    x = 3 * normal(np.random.default_rng(7), 2, 6, 3, 4)
    given = {"size": size, "alpha": 0.2, "beta": 0.6, "bias": 1.5}
    near(normalisation.local_response_norm(x, **given), run_node("LRN", {"x": x}, **given)[0])
    with pytest.raises(OptionError, match="size"):
        normalisation.local_response_norm(x, size=0)


@pytest.mark.parametrize("direction", DIRECTIONS)
def test_lstm_equals_onnxruntime(direction):
    rng = np.random.default_rng(8)
    for trial in range(12):
        t, n, i, h = (int(v) for v in rng.integers(1, 6, 4))
        d = 1 + (direction == "bidirectional")
        given = {
            "x": normal(rng, t, n, i),
            "w": normal(rng, d, 4 * h, i),
            "r": normal(rng, d, 4 * h, h),
            "b": normal(rng, d, 8 * h) if trial % 2 else None,
            "sequence_lens": rng.integers(1, t + 1, n).astype(np.int32) if trial % 3 == 0 else None,
            "initial_h": normal(rng, d, n, h) if trial % 4 > 1 else None,
            "initial_c": normal(rng, d, n, h) if trial % 4 > 1 else None,
            "peepholes": normal(rng, d, 3 * h) if trial > 7 else None,
        }
        kept = {k: None if v is None else v.copy() for k, v in given.items()}
        expected = run_node("LSTM", given, 3, hidden_size=h, direction=direction)
        for one, other in zip(lstm(**given, direction=direction), expected, strict=True):
            near(one, other, 1e-5)
        for name, value in kept.items():
            np.testing.assert_array_equal(value, given[name])


@pytest.mark.parametrize("linear", [False, True])
@pytest.mark.parametrize("direction", DIRECTIONS)
def test_gru_equals_onnxruntime(direction, linear):
    rng = np.random.default_rng(9)
    for trial in range(12):
        t, n, i, h = (int(v) for v in rng.integers(1, 6, 4))
        d = 1 + (direction == "bidirectional")
        given = {
            "x": normal(rng, t, n, i),
            "w": normal(rng, d, 3 * h, i),
            "r": normal(rng, d, 3 * h, h),
            "b": normal(rng, d, 6 * h) if trial % 2 else None,
            "sequence_lens": rng.integers(1, t + 1, n).astype(np.int32) if trial % 3 == 0 else None,
            "initial_h": normal(rng, d, n, h) if trial % 4 > 1 else None,
        }
        asked = {"hidden_size": h, "direction": direction, "linear_before_reset": int(linear)}
        expected = run_node("GRU", given, 2, **asked)
        found = gru(**given, direction=direction, linear_before_reset=linear)
        near(found.y, expected[0], 1e-5)
        near(found.y_h, expected[1], 1e-5)


@pytest.mark.parametrize(
    ("change", "named"),
    [
        ({"direction": "sideways"}, "direction"),
        ({"w": np.zeros((1, 8, 4), np.float32)}, "w has the shape"),
        ({"r": np.zeros((2, 8, 2), np.float32)}, "has the shape"),
        ({"b": np.zeros((1, 8), np.float32)}, "b has the shape"),
        ({"initial_h": np.zeros((1, 2, 3), np.float32)}, "initial_h"),
        ({"sequence_lens": np.int32([1])}, "sequence_lens"),
        ({"sequence_lens": np.int32([1, 9])}, "sequence_lens"),
        ({"peepholes": np.zeros((1, 5), np.float32)}, "peepholes"),
    ],
)
def test_recurrent_layers_name_what_does_not_fit(change, named):
    given = {
        "x": np.zeros((5, 2, 3), np.float32),
        "w": np.zeros((1, 8, 3), np.float32),
        "r": np.zeros((1, 8, 2), np.float32),
    }
    with pytest.raises((ShapeError, OptionError), match=named):
        lstm(**{**given, **change})


@pytest.mark.parametrize(
    "call",
    [
        lambda: combine("add", [1.0], np.zeros(1, np.float32)),
        lambda: activate("relu", [1.0]),
        lambda: gemm([[1.0]], np.zeros((1, 1), np.float32)),
        lambda: matmul(np.zeros((1, 1), np.float32), [[1.0]]),
        lambda: normalisation.softmax([1.0]),
        lambda: normalisation.softmax(np.zeros((1, 2), np.float32), 1.0),
        lambda: lstm(np.zeros((1, 1, 1), np.float32), [[[1.0]]], np.zeros((1, 4, 1), np.float32)),
    ],
)
def test_what_is_no_array_is_refused(call):
    with pytest.raises(ShapeError):
        call()
