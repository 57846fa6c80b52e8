"""LSTM and GRU on random shapes against the reference, dense and sparse, on every machine."""

from __future__ import annotations

from typing import Any

import numpy as np
import pytest
from conv_cases import same_for_all_machines
from onnx_oracle import near, run_node

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.recurrent import gru, lstm
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")


def _case(
    rng: np.random.Generator, op: str, sparsity: float = 0.0, hidden: int = 0
) -> tuple[Node, list[np.ndarray | None], list[np.ndarray | None]]:
    """A node, its inputs, and its outputs by the reference."""
    gates = 4 if op == "LSTM" else 3
    t, n, i = int(rng.integers(1, 7)), int(rng.integers(1, 7)), int(rng.integers(1, 12))
    h = hidden or int(rng.choice([1, 3, 4, 7, 8, 15, 16, 17, 20, 33]))
    direction = str(rng.choice(["forward", "reverse", "bidirectional"]))
    d = 1 + (direction == "bidirectional")

    def some(*shape: int) -> np.ndarray | None:
        return _normal(rng, *shape) if rng.random() < 0.5 else None

    r = _normal(rng, d, gates * h, h)
    r[rng.random(r.shape) < sparsity] = 0
    attributes: dict[str, Any] = {"hidden_size": h, "direction": direction}
    given = {
        "x": _normal(rng, t, n, i),
        "w": _normal(rng, d, gates * h, i),
        "r": r,
        "b": some(d, 2 * gates * h),
        "sequence_lens": rng.integers(0, t + 1, n).astype(np.int32) if rng.random() < 0.3 else None,
        "initial_h": some(d, n, h),
    }
    if op == "LSTM":
        given |= {"initial_c": some(d, n, h), "peepholes": some(d, 3 * h)}
        y, y_h, y_c = lstm(direction=direction, **given)
        made: list[np.ndarray | None] = [y, y_h, y_c]
    else:
        before = bool(rng.integers(2))
        attributes["linear_before_reset"] = int(before)
        y, y_h, _ = gru(direction=direction, linear_before_reset=before, **given)
        made = [y, y_h]
    constants = {"w", "r", "b", "peepholes"}
    inputs = tuple(
        None if v is None else Operand.of(v) if k in constants else Operand(v.shape, v.dtype.name)
        for k, v in given.items()
    )
    outputs = tuple(Operand(m.shape) for m in made if m is not None)
    return Node(op, "n", attributes, inputs, outputs), list(given.values()), made


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize(
    ("op", "name", "sparsity"),
    [("LSTM", "lstm", 0), ("GRU", "gru", 0), ("LSTM", "lstm-csr", 0.8), ("GRU", "gru-csr", 0.8)],
)
def test_equals_the_reference_on_random_shapes(op: str, name: str, sparsity: float) -> None:
    rng = np.random.default_rng(0)
    tried = 0
    while tried < 200:
        node, arrays, made = _case(rng, op, sparsity)
        if not kernels.get(name)().refuses(node, Context(1)):
            tried += 1
            same_for_all_machines(name, node, arrays, made)


@pytest.mark.parametrize(("op", "name"), [("LSTM", "lstm"), ("GRU", "gru"), ("GRU", "gru-csr")])
def test_large_layers_are_shared_by_threads_bit_by_bit(op: str, name: str) -> None:
    rng = np.random.default_rng(1)
    for _ in range(3):
        node, arrays, made = _case(rng, op, 0.9, hidden=200)
        same_for_all_machines(name, node, arrays, made, 1e-4)


def test_long_sequences_come_in_chunks() -> None:
    rng = np.random.default_rng(2)
    t, h = 500, 24
    x, w = _normal(rng, t, 3, 5), _normal(rng, 2, 4 * h, 5)
    r = 0.2 * _normal(rng, 2, 4 * h, h)
    attributes = {"hidden_size": h, "direction": "bidirectional"}
    y, y_h, y_c = lstm(x, w, r, direction="bidirectional")
    node = Node(
        "LSTM",
        "n",
        attributes,
        (Operand(x.shape), Operand.of(w), Operand.of(r)),
        tuple(Operand(o.shape) for o in (y, y_h, y_c)),
    )
    bench = Bench(kernels.get("lstm")(), node, [x, None, None], Context.here())
    assert bench.workspace < t * 3 * 4 * h * 4
    for found, expected in zip(bench.run(), (y, y_h, y_c), strict=True):
        near(found, expected, 1e-4)


def test_equals_onnxruntime() -> None:
    rng = np.random.default_rng(3)
    x, w, r, b = (_normal(rng, *s) for s in ((6, 2, 9), (1, 4 * 20, 9), (1, 4 * 20, 20), (1, 8 * 20)))
    expected = run_node("LSTM", {"x": x, "w": w, "r": r, "b": b}, 3, hidden_size=20)
    node = Node(
        "LSTM",
        "n",
        {"hidden_size": 20},
        (Operand(x.shape), Operand.of(w), Operand.of(r), Operand.of(b)),
        tuple(Operand(e.shape) for e in expected),
    )
    same_for_all_machines("lstm", node, [x, None, None, None], expected, 1e-5)


@pytest.mark.parametrize("omitted", [None, [0], [0, 1], [1]])
def test_outputs_that_are_left_out(omitted: list[int] | None) -> None:
    rng = np.random.default_rng(4)
    node, arrays, made = _case(rng, "LSTM", hidden=9)
    kept = [m for i, m in enumerate(made) if i not in (omitted or [0])]
    outputs = tuple(Operand(m.shape) for m in kept if m is not None)
    attributes = dict(node.attributes) if omitted is None else {**node.attributes, "omitted": tuple(omitted)}
    less = Node("LSTM", "n", attributes, node.inputs, outputs)
    same_for_all_machines("lstm", less, arrays, kept)


@pytest.mark.parametrize(
    ("more", "word"),
    [
        ({"activations": ("Relu", "Tanh", "Tanh")}, "relu"),
        ({"clip": 3.0}, "clip"),
        ({"input_forget": 1}, "coupled"),
        ({"layout": 1}, "time first"),
        ({"direction": "bidirectional"}, "directions"),
    ],
)
def test_what_it_does_not_compute_is_refused_with_the_reason(more: dict[str, Any], word: str) -> None:
    x, w, r = Operand((2, 1, 3)), np.zeros((1, 8, 3), np.float32), np.zeros((1, 8, 2), np.float32)
    y = (Operand((2, 1, 1, 2)),)
    node = Node("LSTM", "n", {"hidden_size": 2, **more}, (x, Operand.of(w), Operand.of(r)), y)
    assert word in kernels.get("lstm")().refuses(node, Context(1))
    names = {"activations": ("Sigmoid", "Tanh", "Tanh"), "clip": 0.0}
    fine = Node("LSTM", "n", {"hidden_size": 2, **names}, (x, Operand.of(w), Operand.of(r)), y)
    assert not kernels.get("lstm")().refuses(fine, Context(1))


def test_computed_or_misshapen_weights_are_refused() -> None:
    x, w = Operand((2, 1, 3)), Operand.of(np.zeros((1, 6, 3), np.float32))
    y = (Operand((2, 1, 1, 2)),)
    computed = Node("GRU", "n", {}, (x, w, Operand((1, 6, 2))), y)
    assert "computed" in kernels.get("gru")().refuses(computed, Context(1))
    wrong = Node("GRU", "n", {}, (x, w, Operand.of(np.zeros((1, 8, 2), np.float32))), y)
    assert "[1, 6, 2]" in kernels.get("gru")().refuses(wrong, Context(1))
    dense = Node("GRU", "n", {}, (x, w, Operand.of(np.ones((1, 6, 2), np.float32))), y)
    assert "0% of its recurrent weights" in kernels.get("gru-csr")().refuses(dense, Context(1))


@pytest.mark.parametrize(("sparsity", "sparse"), [(0.55, False), (0.9, True)])
def test_the_estimate_takes_sparse_where_it_is_faster(sparsity: float, sparse: bool) -> None:
    rng = np.random.default_rng(5)
    r = _normal(rng, 1, 1024, 256)
    r[rng.random(r.shape) < sparsity] = 0
    w = Operand.of(_normal(rng, 1, 1024, 64))
    node = Node("LSTM", "n", {}, (Operand((32, 1, 64)), w, Operand.of(r)), (Operand((32, 1, 1, 256)),))
    here = Context(1, "x86-64-v4")
    made = [kernels.get(name)() for name in ("lstm", "lstm-csr")]
    dense, zeros_out = (k.cost(node, k.forms(node, here)[0], here) for k in made)
    assert (zeros_out < dense) == sparse
