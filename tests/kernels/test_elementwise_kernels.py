"""Functions of one and of two elements against ONNX Runtime and NumPy."""

from __future__ import annotations

import numpy as np
import pytest
from layer_cases import check, contexts, needs_native, node_of
from onnx_oracle import run_node

from dlas.core.errors import UnsupportedError
from dlas.kernels.kernel import ACTIVATIONS, Context
from dlas.kernels.layers.elementwise.binary import Binary
from dlas.kernels.layers.elementwise.unary import Unary
from dlas.kernels.layout import Layout, storage, to_layout
from dlas.kernels.reference.elementwise import activate
from dlas.kernels.single import Bench

pytestmark = needs_native


@pytest.fixture(scope="module")
def pairs():
    return contexts()


@pytest.fixture
def rng():
    return np.random.default_rng(7)


PARAMETERS = {
    "Elu": {"alpha": 1.5},
    "Gelu": {"approximate": "tanh"},
    "HardSigmoid": {"alpha": 0.3, "beta": 0.4},
    "LeakyRelu": {"alpha": 0.2},
    "Selu": {"alpha": 1.2, "gamma": 1.1},
}


def oracle(op, x, **attributes):
    if op == "Silu":
        return activate("silu", x)
    return run_node(op, {"x": x}, opset=22, **attributes)[0]


@pytest.mark.parametrize("op", sorted(set(Unary.ops) - {"Clip"}))
def test_unary(pairs, rng, op):
    for case in range(24):
        shape = rng.integers(1, [3, 20, 6, 8]) if case % 2 else rng.integers(1, 40, int(rng.integers(0, 4)))
        x = rng.normal(size=tuple(shape)) * [0.05, 2, 20][case % 3]
        x = np.asarray(x, np.float32)
        if op in ("Log", "Sqrt"):
            x = np.asarray(np.abs(x) + np.float32(1e-6))
        attributes = PARAMETERS.get(op, {}) if case % 4 > 1 else {}
        check(Unary(), pairs, op, [x], [oracle(op, x, **attributes)], tolerance=3e-6, **attributes)


@pytest.mark.parametrize("op", ["Exp", "Sigmoid", "Tanh", "Erf", "Softplus", "Elu", "Gelu"])
def test_unary_is_exact_to_some_ulp_where_it_is_small(pairs, rng, op):
    x = np.concatenate([-np.logspace(-6, 1, 200), np.logspace(-6, 1.9, 200)]).astype(np.float32)
    found = {
        "Exp": np.exp, "Sigmoid": lambda v: activate("sigmoid", v), "Tanh": np.tanh,
        "Erf": lambda v: activate("erf", v), "Softplus": lambda v: np.logaddexp(0, v.astype(np.float64)),
        "Elu": lambda v: activate("elu", v), "Gelu": lambda v: activate("gelu", v),
    }[op](x)  # fmt: skip
    for one, _ in pairs:
        node = node_of(op, [x], outputs=[(x.shape, "float32")])
        (y,) = Bench(Unary(), node, [x], one).run()
        np.testing.assert_allclose(y, found, rtol=2e-6, atol=4e-7 if op in ("Gelu", "Erf") else 1e-30)


def test_clip_with_constant_bounds(pairs, rng):
    x = rng.normal(size=(2, 5, 3, 3)).astype(np.float32) * 5
    low, high = np.float32(-1), np.float32(2.5)
    check(
        Unary(), pairs, "Clip", [x, np.array(low), np.array(high)], [x.clip(low, high)], (1, 2), tolerance=0
    )
    check(Unary(), pairs, "Clip", [x, None, np.array(high)], [np.minimum(x, high)], (2,), tolerance=0)
    check(Unary(), pairs, "Clip", [x, np.array(low)], [np.maximum(x, low)], (1,), tolerance=0)
    check(Unary(), pairs, "Clip", [x], [x], tolerance=0)
    check(Unary(), pairs, "Clip", [x], [x.clip(0, 6)], tolerance=0, min=0.0, max=6.0)
    node = node_of("Clip", [x, np.array(low)], outputs=[(x.shape, "float32")])
    assert "computed by the network" in Unary().refuses(node, Context.here())


SPECIAL = np.array([np.nan, np.inf, -np.inf, 0.0, -0.0, 1.0, -1.0, 100.0, -100.0] * 3, np.float32)


@pytest.mark.parametrize("op", sorted(set(Unary.ops) - {"Clip", "Relu", "HardSwish", "HardSigmoid"}))
def test_nan_and_infinities_go_through(pairs, op):
    special = SPECIAL
    if op in ("Gelu", "Mish", "Silu"):  # the product of 0 and -infinity, or its limit: both are in use
        special = np.where(np.isneginf(SPECIAL), 1, SPECIAL).astype(np.float32)
    with np.errstate(all="ignore"):
        expected = oracle(op, special)
    check(Unary(), pairs, op, [special], [expected])


def test_exp_up_to_the_largest_float(pairs):
    x = np.linspace(-87, 88.72, 500, dtype=np.float32)
    for one, _ in pairs:
        (y,) = Bench(Unary(), node_of("Exp", [x], outputs=[(x.shape, "float32")]), [x], one).run()
        np.testing.assert_allclose(y, np.exp(x.astype(np.float64)), rtol=1e-5)


BINARY = {
    "Add": np.add, "Sub": np.subtract, "Mul": np.multiply, "Div": np.divide, "Min": np.minimum, "Max": np.maximum,
    "PRelu": lambda a, b: np.where(a > 0, a, a * b),
}  # fmt: skip


def broadcast_pair(rng, case):
    rank = 4 if case % 3 else int(rng.integers(0, 5))
    shape = tuple(int(s) for s in rng.integers(1, [3, 36, 6, 8][:rank]))
    other = tuple(s if rng.integers(3) else 1 for s in shape)[int(rng.integers(0, rank + 1)) :]
    if case % 4 == 0:
        other = shape
    a, b = (np.asarray(rng.normal(size=s), np.float32) for s in (shape, other))
    return (b, a) if case % 5 == 0 else (a, b)


@pytest.mark.parametrize("op", sorted(BINARY))
def test_binary_broadcasts(pairs, rng, op):
    for case in range(70):
        a, b = broadcast_pair(rng, case)
        if op == "PRelu" and np.broadcast_shapes(a.shape, b.shape) != a.shape:
            a, b = b, a
        if op == "Div":
            b = np.where(np.abs(b) < 0.1, np.float32(0.5), b)
        y = np.asarray(BINARY[op](a, b), np.float32)
        for constants in ((), (1,), (0,))[: 1 if case % 2 else 3]:
            check(Binary(), pairs, op, [a, b], [y], constants)


def test_both_operands_may_grow(pairs, rng):
    for left, right in (
        ((2, 5, 1, 1), (1, 1, 3, 4)),
        ((4, 1), (1, 7)),
        ((1, 1, 1, 6), (2, 3, 4, 1)),
        ((3, 1, 1), (2, 1, 5, 4)),
    ):
        a, b = (rng.normal(size=s).astype(np.float32) for s in (left, right))
        for constants in ((), (0,), (1,)):
            check(Binary(), pairs, "Sub", [a, b], [a - b], constants)


def test_maps_stay_in_blocks(pairs, rng):
    x = rng.normal(size=(2, 19, 3, 5)).astype(np.float32)
    for other, constants in (
        ((2, 19, 1, 1), ()),
        ((1, 19, 1, 1), (1,)),
        ((19, 1, 1), (1,)),
        ((1,), (1,)),
        ((), ()),
        ((2, 1, 3, 5), ()),
    ):
        b = np.asarray(rng.normal(size=other), np.float32)
        assert check(Binary(), pairs, "Mul", [x, b], [x * b], constants) == 2 * len(pairs)


def test_powers(pairs, rng):
    x = np.abs(rng.normal(size=(2, 7, 3, 4))).astype(np.float32) + np.float32(0.1)
    for exponent in (2.0, 0.5, -1.0, 3.0, 1.0, 1.7, 0.0):
        power = np.array(exponent, np.float32)
        check(Binary(), pairs, "Pow", [x, power], [x**power], (1,))
        check(Binary(), pairs, "Pow", [x, power], [x**power])


@pytest.mark.parametrize("act", [a for a in ACTIVATIONS if a])
def test_binary_fuses_an_activation(pairs, rng, act):
    low, high = {"Clip": (-0.5, 0.7), "LeakyRelu": (0.3, 0), "HardSigmoid": (0.2, 0.5)}.get(act, (0, 0))
    names = {"Clip": ("low", "high"), "LeakyRelu": ("alpha",), "HardSigmoid": ("alpha", "beta")}.get(act, ())
    name = {"HardSwish": "hard-swish", "LeakyRelu": "leaky-relu", "HardSigmoid": "hard-sigmoid"}.get(
        act, act.lower()
    )
    a, b = (rng.normal(size=(2, 21, 5, 3)).astype(np.float32) for _ in range(2))
    y = activate(name, a + b, **dict(zip(names, (low, high), strict=False)))
    check(Binary(), pairs, "Add", [a, b], [y], act=ACTIVATIONS[act], act_low=low, act_high=high)


def test_spare_lanes_stay_finite(pairs, rng):
    for one, _ in pairs:
        x = np.abs(rng.normal(size=(1, one.block + 1, 2, 3))).astype(np.float32) + 1
        place = storage(x.shape, "float32", Layout.BLOCKED, block=one.block)
        for kernel, op, arrays in (
            (Binary(), "Div", [x, x]),
            (Unary(), "Reciprocal", [x]),
            (Unary(), "Log", [x]),
        ):
            node = node_of(op, arrays, outputs=[(x.shape, "float32")])
            y = to_layout(x, place)
            kernel.prepare(node, [place] * len(arrays), [place], one).run(
                [to_layout(a, place) for a in arrays], [y]
            )
            assert np.isfinite(y).all()


def test_in_place(pairs, rng):
    for one, _ in pairs:
        x, b = (rng.normal(size=(3, 50)).astype(np.float32) for _ in range(2))
        place = storage(x.shape, "float32")
        y = x.copy()
        node = node_of("Sub", [x, b], outputs=[(x.shape, "float32")])
        Binary().prepare(node, [place, place], [place], one).run([y, b], [y])
        np.testing.assert_array_equal(y, x - b)
        node = node_of("Relu", [x], outputs=[(x.shape, "float32")])
        Unary().prepare(node, [place], [place], one).run([y], [y])
        np.testing.assert_array_equal(y, np.maximum(x - b, 0))


def test_other_dtypes_are_refused():
    x = np.zeros((2, 3), np.int64)
    for kernel, node in (
        (Unary(), node_of("Relu", [x], outputs=[(x.shape, "int64")])),
        (Binary(), node_of("Add", [x, x], outputs=[(x.shape, "int64")])),
    ):
        with pytest.raises(UnsupportedError, match="takes float32, not int64"):
            Bench(kernel, node, [x, x][: len(node.inputs)], Context.here())
