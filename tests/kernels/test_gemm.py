"""Products of matrices on random shapes against the reference, on every instruction set and number of threads."""

from __future__ import annotations

import numpy as np
import pytest
from conv_cases import acted, same_for_all_machines

from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.reference.dense import gemm, matmul
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")

SIZES = (1, 1, 2, 3, 4, 5, 7, 8, 9, 15, 16, 17, 31, 33, 47, 48, 49, 65, 97)


def _normal(rng: np.random.Generator, *shape: int) -> np.ndarray:
    return rng.standard_normal(shape, dtype=np.float32)


@pytest.mark.parametrize("name", ["gemm", "gemv"])
def test_gemm_equals_the_reference(name: str) -> None:
    rng = np.random.default_rng(0)
    for _ in range(200):
        m = int(rng.choice(SIZES)) if name == "gemm" else int(rng.integers(1, 5))
        n, k = (int(v) for v in rng.choice(SIZES, 2))
        flags = {"transA": int(rng.integers(2)), "transB": int(rng.integers(2))}
        alpha, beta = (float(rng.choice([1.0, 1.0, 0.5, -2.0])) for _ in range(2))
        a = _normal(rng, *((k, m) if flags["transA"] else (m, k)))
        b = _normal(rng, *((n, k) if flags["transB"] else (k, n)))
        shapes = [None, (n,), (1, n), (m, 1), (m, n), (1,), ()]
        shape = shapes[rng.integers(len(shapes))]
        c = None if shape is None else _normal(rng, *shape)
        residual = _normal(rng, m, n) if rng.random() < 0.3 else None
        act, low, high = int(rng.choice([0, 1, 2, 4])), -0.5, 0.7
        node = Node(
            "Gemm",
            "n",
            {**flags, "alpha": alpha, "beta": beta, "act": act, "act_low": low, "act_high": high},
            (
                Operand(a.shape),
                Operand.of(b) if rng.random() < 0.6 else Operand(b.shape),
                None if c is None else Operand.of(c),
                None if residual is None else Operand(residual.shape),
            ),
            (Operand((m, n)),),
        )
        product = gemm(
            a, b, c, alpha=alpha, beta=beta, trans_a=bool(flags["transA"]), trans_b=bool(flags["transB"])
        )
        expected = acted(product if residual is None else product + residual, act, low, high)
        same_for_all_machines(name, node, [a, b, c, residual], [expected])


@pytest.mark.parametrize("name", ["gemm", "gemv"])
def test_matmul_equals_the_reference(name: str) -> None:
    rng = np.random.default_rng(1)
    outers = [((), ()), ((3,), ()), ((2, 3), (2, 3)), ((2, 1), (1, 3)), ((), (2,)), ((1, 2), (3, 1, 1))]
    for _ in range(200):
        m = int(rng.choice(SIZES[:-3])) if name == "gemm" else int(rng.integers(1, 5))
        n, k = (int(v) for v in rng.choice(SIZES[:-3], 2))
        left, right = outers[rng.integers(len(outers))]
        a, b = _normal(rng, *left, m, k), _normal(rng, *right, k, n)
        if rng.random() < 0.1:
            a = a.reshape(-1)[:k]
        elif rng.random() < 0.1:
            b = b.reshape(-1)[:k]
        expected = matmul(a, b)
        bias = _normal(rng, n) if b.ndim > 1 and a.ndim > 1 and rng.random() < 0.3 else None
        if bias is not None:
            expected = expected + bias
        node = Node(
            "MatMul",
            "n",
            {"act": 1},
            (
                Operand(a.shape),
                Operand.of(b) if rng.random() < 0.5 else Operand(b.shape),
                None if bias is None else Operand.of(bias),
            ),
            (Operand(expected.shape),),
        )
        if kernels.get(name)().refuses(node, Context(1)):
            assert name == "gemv"
            continue
        same_for_all_machines(name, node, [a, b, bias], [np.maximum(expected, 0)])


@pytest.mark.parametrize(("m", "n", "k"), [(0, 3, 4), (3, 0, 4), (5, 6, 0), (2, 5, 0)])
def test_empty_products(m: int, n: int, k: int) -> None:
    a, b, c = np.ones((m, k), np.float32), np.ones((k, n), np.float32), np.full(n, 2, np.float32)
    for given in (Operand.of(b), Operand(b.shape)):
        node = Node("Gemm", "n", {}, (Operand(a.shape), given, Operand.of(c)), (Operand((m, n)),))
        same_for_all_machines("gemm", node, [a, b, c], [gemm(a, b, c)])


def test_deep_products_are_passes_that_add_up() -> None:
    rng = np.random.default_rng(2)
    a, b, c = _normal(rng, 21, 1300), _normal(rng, 1300, 55), _normal(rng, 55)
    node = Node(
        "Gemm", "n", {"act": 1}, (Operand(a.shape), Operand.of(b), Operand.of(c)), (Operand((21, 55)),)
    )
    same_for_all_machines("gemm", node, [a, b, c], [np.maximum(gemm(a, b, c), 0)])


def test_kernels_refuse_what_they_cannot() -> None:
    a, b = Operand((5, 4)), Operand((4, 3))
    node = Node("MatMul", "n", {}, (a, b), (Operand((5, 3)),))
    assert "4 rows" in kernels.get("gemv")().refuses(node, Context(1))
    wrong = Node("MatMul", "n", {}, (Operand((5, 4), "float64"), b), (Operand((5, 3), "float64"),))
    assert "float64" in kernels.get("gemm")().refuses(wrong, Context(1))
    tall = Node("MatMul", "n", {}, (a, b, Operand((5, 3))), (Operand((5, 3)),))
    assert "one row" in kernels.get("gemm")().refuses(tall, Context(1))


def test_gemv_is_chosen_for_one_row_and_gemm_for_many() -> None:
    here = Context.here()
    for rows, cheaper in ((1, "gemv"), (64, "gemm")):
        node = Node("MatMul", "n", {}, (Operand((rows, 512)), Operand((512, 512))), (Operand((rows, 512)),))
        found = {}
        for name in ("gemm", "gemv"):
            kernel = kernels.get(name)()
            if not kernel.refuses(node, here):
                found[name] = kernel.cost(node, kernel.forms(node, here)[0], here)
        assert min(found, key=lambda n: found[n]) == cheaper


def test_one_row_of_products_is_what_bench_runs() -> None:
    a, b = np.ones((1, 3), np.float32), np.ones((3, 2), np.float32)
    node = Node("MatMul", "n", {}, (Operand(a.shape), Operand.of(b)), (Operand((1, 2)),))
    assert Bench(kernels.get("gemv")(), node, [a, None], Context.here()).run()[0].tolist() == [[3, 3]]
