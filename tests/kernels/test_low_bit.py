"""4-bit weights: the native kernels against NumPy, exact where results are integers."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError, ShapeError, UnsupportedError
from dlas.kernels.extension import native
from dlas.kernels.formats.grids import po2
from dlas.kernels.formats.int4 import pack_w4
from dlas.kernels.kernel import Context, Node, Operand, kernels
from dlas.kernels.matmul import matmul_w4a8, w4a8_node
from dlas.kernels.reference.lowbit import matmul_w4a8 as reference
from dlas.kernels.single import Bench

pytestmark = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
ISAS = native().isa_levels() if native() is not None else []  # type: ignore[union-attr]
NF4 = np.array([-127, -88, -67, -50, -36, -23, -12, 0, 10, 20, 31, 43, 56, 71, 92, 127], np.int8)


def run(name: str, node: Node, a: np.ndarray, context: Context) -> np.ndarray:
    arrays = [a, *[None] * (len(node.inputs) - 1)]
    return Bench(kernels.get(name)(), node, arrays, context).run()[0]


def shapes(count: int, seed: int):
    """Rows around the heights of tiles, columns around blocks and tiles, K around steps."""
    rng = np.random.default_rng(seed)
    for _ in range(count):
        yield (
            int(rng.integers(1, 12)),
            int(rng.choice([rng.integers(1, 20), rng.integers(20, 150)])),
            int(rng.integers(1, 80)),
            rng,
        )


def activations(rng: np.random.Generator, rows: int, k: int) -> np.ndarray:
    kind = np.dtype(rng.choice(["int8", "uint8"]))
    low, high = np.iinfo(kind).min, np.iinfo(kind).max
    if rng.random() < 0.2:  # the extremes, where 16-bit sums would overflow
        return rng.choice([low, high], (rows, k)).astype(kind)
    return rng.integers(low, high, (rows, k), endpoint=True).astype(kind)


def weights(rng: np.random.Generator, k: int, n: int, table: np.ndarray | None) -> np.ndarray:
    values = np.arange(-8, 8, dtype=np.int8) if table is None else table
    if rng.random() < 0.2:
        values = np.array([values.min(), values.max()], np.int8)
    return rng.choice(values, (k, n))


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize("table", [None, NF4, np.array([-128, *range(-7, 7), 127], np.int8)])
def test_integers_are_exact(isa: str, table: np.ndarray | None) -> None:
    contexts = Context.here(1, isa), Context.here(2, isa)
    for rows, n, k, rng in shapes(100, 1):
        a, w = activations(rng, rows, k), weights(rng, k, n, table)
        zero_point = int(rng.choice([0, 128, *rng.integers(-128, 256, 2)]))
        bias = rng.integers(-1000, 1000, n).astype(np.int32) if rng.random() < 0.5 else None
        node = w4a8_node(a, pack_w4(w, table), None, zero_point, bias)
        one, two = (run("w4a8", node, a, c) for c in contexts)
        expected = (a.astype(np.int64) - zero_point) @ w + (0 if bias is None else bias)
        np.testing.assert_array_equal(one, expected)
        np.testing.assert_array_equal(one, two)


@pytest.mark.parametrize("isa", ISAS)
def test_scales_and_groups(isa: str) -> None:
    contexts = Context.here(1, isa), Context.here(2, isa)
    for rows, n, groups, rng in shapes(200, 2):
        size = int(rng.choice([8, 16, 32, 64, 128]))
        groups = groups % 4 + 1
        grouped = rng.random() < 0.7
        table = NF4 if rng.random() < 0.3 else None
        a, w = activations(rng, rows, size * groups), weights(rng, size * groups, n, table)
        scales = rng.random((groups, n) if grouped else n).astype(np.float32)
        if rng.random() < 0.5:
            scales = scales.astype(np.float16).astype(np.float32)  # those are kept as halves
        bias = rng.standard_normal(n).astype(np.float32) if rng.random() < 0.5 else None
        packed, zero_point = pack_w4(w, table), int(rng.integers(-3, 130))
        group = size if grouped else None
        node = w4a8_node(a, packed, scales, zero_point, bias, group_size=group)
        one, two = (run("w4a8", node, a, c) for c in contexts)
        expected = reference(a, packed, scales, zero_point=zero_point, bias=bias, group_size=group)
        largest = np.abs(a.astype(np.float64) - zero_point) @ np.abs(w.astype(np.float64))
        assert np.all(np.abs(one - expected) <= 1e-6 * (1 + largest))
        np.testing.assert_array_equal(one, two)


def quantized(a: np.ndarray, size: int) -> tuple[np.ndarray, np.ndarray]:
    groups = a.reshape(len(a), -1, size)
    step = np.abs(groups).max(axis=2, keepdims=True) / np.float32(127)
    inverse = np.divide(np.float32(1), step, out=np.zeros_like(step), where=step > 0)
    return np.rint(groups * inverse), step


def float_product(a: np.ndarray, w: np.ndarray, scales: np.ndarray, size: int) -> np.ndarray:
    """Activations quantized by groups of ``size``, products by groups in float64."""
    q, step = quantized(a, size)
    w_groups = w.astype(np.float64).reshape(-1, size, w.shape[1])
    sums = np.einsum("mgk,gkn->mgn", q.astype(np.float64), w_groups)
    return (sums * step * scales.reshape(-1, w.shape[1])).sum(axis=1)


@pytest.mark.parametrize("isa", ISAS)
def test_float_activations(isa: str) -> None:
    contexts = Context.here(1, isa), Context.here(2, isa)
    for rows, n, groups, rng in shapes(100, 3):
        size, groups = int(rng.choice([8, 32, 64])), groups % 4 + 1
        a = rng.standard_normal((rows, size * groups)).astype(np.float32)
        a[0, :size] = 0
        w = weights(rng, size * groups, n, None)
        grouped = rng.random() < 0.6
        scales = rng.random((groups, n) if grouped else n).astype(np.float32)
        node = w4a8_node(a, pack_w4(w), scales, group_size=size if grouped else None)
        one, two = (run("w4a8", node, a, c) for c in contexts)
        expected = float_product(a, w, scales, size if grouped else size * groups)
        np.testing.assert_allclose(one, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max() + 1e-9)
        np.testing.assert_array_equal(one, two)


def test_a_nan_spoils_its_row_only() -> None:
    rng = np.random.default_rng(0)
    w, scales = weights(rng, 64, 20, None), np.ones(20, np.float32)
    for wrong in (np.nan, np.inf, -np.inf):
        a = rng.standard_normal((5, 64)).astype(np.float32)
        a[2, 37] = wrong
        y = run("w4a8", w4a8_node(a, pack_w4(w), scales), a, Context.here())
        assert np.isnan(y[2]).all()
        assert np.isfinite(np.delete(y, 2, axis=0)).all()


def nbits_node(
    a: np.ndarray, w: np.ndarray, scales: np.ndarray, zeros: np.ndarray | None, block: int, bias=None
) -> Node:
    """``w`` codes (K, N), ``scales`` (N, blocks), ``zeros`` codes (N, blocks), as ONNX Runtime packs them."""
    k, n = w.shape
    codes = w.T.reshape(n, k // block, block // 2, 2)
    packed = (codes[..., 0] | codes[..., 1] << 4).astype(np.uint8)
    inputs = [Operand(a.shape), Operand.of(packed), Operand.of(scales.reshape(-1))]
    if zeros is not None or bias is not None:
        inputs.append(None if zeros is None else Operand.of(pack_zeros(zeros)))
    if bias is not None:
        inputs += [None, Operand.of(bias)]
    attributes = {"K": k, "N": n, "bits": 4, "block_size": block, "accuracy_level": 4}
    return Node("MatMulNBits", "x", attributes, tuple(inputs), (Operand((*a.shape[:-1], n)),))


def pack_zeros(zeros: np.ndarray) -> np.ndarray:
    even = np.pad(zeros, ((0, 0), (0, zeros.shape[1] % 2)))
    return (even[:, ::2] | even[:, 1::2] << 4).astype(np.uint8).reshape(-1)


@pytest.mark.parametrize("isa", ISAS)
def test_matmul_nbits_of_onnx(isa: str) -> None:
    for rows, n, blocks, rng in shapes(200, 4):
        block, blocks = int(rng.choice([16, 32, 64])), blocks % 5 + 1
        a = rng.standard_normal((2, rows, block * blocks)).astype(np.float32)
        w = rng.integers(0, 16, (block * blocks, n)).astype(np.uint8)
        scales = rng.random((n, blocks)).astype(np.float32)
        zeros = rng.integers(0, 16, (n, blocks)).astype(np.uint8) if rng.random() < 0.6 else None
        bias = rng.standard_normal(n).astype(np.float32) if rng.random() < 0.3 else None
        y = run("w4a8", nbits_node(a, w, scales, zeros, block, bias), a, Context.here(2, isa))
        offsets = np.full((n, blocks), 8) if zeros is None else zeros
        real = w.astype(np.int64) - np.repeat(offsets.T.astype(np.int64), block, axis=0)
        expected = float_product(a.reshape(-1, block * blocks), real, scales.T, block).reshape(y.shape)
        expected = expected + (0 if bias is None else bias)
        np.testing.assert_allclose(y, expected, rtol=1e-5, atol=1e-4 * np.abs(expected).max() + 1e-9)


def test_onnxruntime_agrees_on_matmul_nbits() -> None:
    ort = pytest.importorskip("onnxruntime")
    import onnx

    rng = np.random.default_rng(5)
    k, n, block = 256, 48, 32
    a = rng.standard_normal((3, k)).astype(np.float32)
    w = rng.integers(0, 16, (k, n)).astype(np.uint8)
    scales = (rng.random((n, k // block)) / 8).astype(np.float32)
    zeros = rng.integers(0, 16, (n, k // block)).astype(np.uint8)
    node = nbits_node(a, w, scales, zeros, block)
    names = ["a", "b", "s", "z"]
    made = onnx.helper.make_node(
        "MatMulNBits", names, ["y"], domain="com.microsoft", **{**node.attributes, "accuracy_level": 0}
    )
    constants = [onnx.numpy_helper.from_array(node.constant(i), names[i]) for i in (1, 2, 3)]
    float_type = onnx.TensorProto.FLOAT
    graph = onnx.helper.make_graph(
        [made], "g", [onnx.helper.make_tensor_value_info("a", float_type, [3, k])],
        [onnx.helper.make_tensor_value_info("y", float_type, [3, n])], constants,
    )  # fmt: skip
    opsets = [onnx.helper.make_opsetid("", 17), onnx.helper.make_opsetid("com.microsoft", 1)]
    model = onnx.helper.make_model(graph, opset_imports=opsets, ir_version=8)
    session = ort.InferenceSession(model.SerializeToString(), providers=["CPUExecutionProvider"])
    expected = session.run(None, {"a": a})[0]  # in float32: ours differs by the rounding of the activations
    y = run("w4a8", node, a, Context.here())
    assert np.linalg.norm(y - expected) < 0.02 * np.linalg.norm(expected)


@pytest.mark.parametrize("isa", ISAS)
@pytest.mark.parametrize(("name", "zero"), [("po2-gemv", 1), ("po2-shift", 1), ("po2-shift", 0)])
def test_powers_of_two(isa: str, name: str, zero: int) -> None:
    contexts = Context.here(1, isa), Context.here(2, isa)
    for rows, n, k, rng in shapes(200, 6):
        codes = rng.integers(0, 16, (k, n)).astype(np.uint8)
        a = rng.integers(-128, 128, (rows, k)).astype(np.int8)
        scales = np.full(n, 0.5, np.float32)
        packed = pack_w4(codes.astype(np.int8) - np.int8(8))
        inputs = (Operand(a.shape, "int8"), Operand.of(packed.data), Operand.of(scales), None, None)
        node = Node("MatMulPo2", "x", {"K": k, "N": n, "zero": zero}, inputs, (Operand((rows, n)),))
        one, two = (run(name, node, a, c) for c in contexts)
        expected = a.astype(np.int64) @ po2(zero=bool(zero)).decode_integers(codes).astype(np.int64)
        np.testing.assert_array_equal(one, (expected * 0.5).astype(np.float32))
        np.testing.assert_array_equal(one, two)


def test_function_equals_reference_and_checks() -> None:
    rng = np.random.default_rng(7)
    a, w = activations(rng, 5, 40), weights(rng, 40, 30, None)
    packed = pack_w4(w)
    np.testing.assert_array_equal(matmul_w4a8(a, packed, zero_point=3), (a.astype(np.int64) - 3) @ w)
    # Groups that the native kernel does not have are computed all the same.
    scales = rng.random((10, 30)).astype(np.float32)
    expected = reference(a, packed, scales, group_size=4)
    np.testing.assert_array_equal(matmul_w4a8(a, packed, scales, group_size=4), expected)
    with pytest.raises(ShapeError, match="columns"):
        matmul_w4a8(a[:, 1:], packed)
    with pytest.raises(ShapeError, match="float32"):
        matmul_w4a8(a.astype(np.float32), packed)
    with pytest.raises(OptionError, match="group_size"):
        matmul_w4a8(a, packed, scales, group_size=7)
    with pytest.raises(ShapeError, match="scales"):
        matmul_w4a8(a, packed, scales[:3, :2])


def test_refusals_have_reasons() -> None:
    rng = np.random.default_rng(8)
    a, w = rng.standard_normal((2, 64)).astype(np.float32), weights(rng, 64, 20, None)
    context = Context.here()
    with pytest.raises(UnsupportedError, match="float32 activations need scales"):
        run("w4a8", w4a8_node(a, pack_w4(w)), a, context)
    with pytest.raises(UnsupportedError, match="multiples of 8"):
        run("w4a8", w4a8_node(a, pack_w4(w), np.ones((16, 20), np.float32), group_size=4), a, context)
    node = nbits_node(a, w.astype(np.uint8) & 15, np.ones((20, 2), np.float32), None, 32)
    wrong = Node(node.op, "x", {**node.attributes, "bits": 8}, node.inputs, node.outputs)
    with pytest.raises(UnsupportedError, match="4 bits"):
        run("w4a8", wrong, a, context)
