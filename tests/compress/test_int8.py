"""int8: the grids, the places of Q and DQ, the kernels that come out of it, and what is refused."""

from __future__ import annotations

import dataclasses

import numpy as np
import onnx
import onnx_ir as ir
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper
from onnx.reference import ReferenceEvaluator

from dlas.compress.method import compress_model, methods
from dlas.compress.unsigned import unsigned_activations
from dlas.core.errors import DataError, DlasError, ModelError, OptionError, UnknownNameError, UnsupportedError
from dlas.data.dataset import Dataset
from dlas.graph.format import save_model
from dlas.graph.model import Model

RNG = np.random.default_rng(7)


def weights(*shape: int, scale: float = 0.3) -> np.ndarray:
    return RNG.normal(0, scale, shape).astype(np.float32)


def net(nodes, shape, out_shape, constants, *, name="net", outputs=("y",), dtype=TensorProto.FLOAT) -> Model:
    """A Model from ``(op, inputs, output, attributes)`` rows; the input is called x."""
    made = [
        helper.make_node(
            op, list(inputs), [out] if isinstance(out, str) else list(out), name=f"n{i}_{op}", **a
        )
        for i, (op, inputs, out, a) in enumerate(nodes)
    ]
    graph = helper.make_graph(
        made,
        name,
        [helper.make_tensor_value_info("x", dtype, shape)],
        [helper.make_tensor_value_info(o, dtype, out_shape) for o in outputs],
        [numpy_helper.from_array(np.asarray(a), n) for n, a in constants.items()],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=9)
    onnx.checker.check_model(proto, full_check=True)
    return Model.from_proto(proto, name)


def rows(*shape: int, count: int = 48) -> Dataset:
    return Dataset("rows", np.random.default_rng(3).normal(0, 1, (count, *shape)).astype(np.float32))


def int8(model: Model, data: Dataset | None, **options) -> Model:
    options.setdefault("activations", "int8")  # the codes themselves; uint8 only stores them otherwise
    out = methods.get("int8")(**options).apply(model, data)
    onnx.checker.check_model(out.to_proto(), full_check=True)
    return out


def run(model: Model, x: np.ndarray, level: str = "ORT_DISABLE_ALL") -> np.ndarray:
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = getattr(ort.GraphOptimizationLevel, level)
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    return np.asarray(session.run(None, {"x": x})[0])


def sqnr_db(reference: np.ndarray, got: np.ndarray) -> float:
    return float(10 * np.log10((reference**2).sum() / ((reference - got) ** 2).sum()))


def ops(model: Model) -> list[str]:
    return [n.op_type for n in model.ir.graph]


def node(model: Model, op: str, index: int = 0):
    return [n for n in model.ir.graph if n.op_type == op][index]


def kernels(model: Model, tmp_path) -> list[str]:
    """Operator types after onnxruntime has optimised the network with uint8 activations."""
    graph = model.editable()
    unsigned_activations(graph)
    shifted = Model(graph, model.name)
    onnx.checker.check_model(shifted.to_proto(), full_check=True)
    options = ort.SessionOptions()
    options.log_severity_level = 3
    options.graph_optimization_level = ort.GraphOptimizationLevel.ORT_ENABLE_EXTENDED
    options.optimized_model_filepath = str(tmp_path / "optimised.onnx")
    ort.InferenceSession(shifted.to_bytes(), options, providers=["CPUExecutionProvider"])
    return [n.op_type for n in onnx.load(tmp_path / "optimised.onnx").graph.node]


def grid(model: Model, q_or_dq) -> tuple[np.ndarray, np.ndarray]:
    return model.initializers[q_or_dq.inputs[1].name], model.initializers[q_or_dq.inputs[2].name]


def reader_grid(model: Model, name: str) -> tuple[float, int]:
    """Scale and zero point of the Q that reads tensor ``name``."""
    q = next(n for n in model.ir.graph if n.op_type == "QuantizeLinear" and n.inputs[0].name == name)
    scale, zero = grid(model, q)
    return float(scale), int(zero)


@pytest.fixture(scope="module")
def residual() -> Model:
    """Conv-Relu-MaxPool, a residual block, global pool, Gemm: every fusing rule once."""
    return net(
        [
            ("Conv", ["x", "w1", "b1"], "c1", {"pads": [1, 1, 1, 1]}),
            ("Relu", ["c1"], "r1", {}),
            ("MaxPool", ["r1"], "p1", {"kernel_shape": [2, 2], "strides": [2, 2]}),
            ("Conv", ["p1", "w2", "b2"], "c2", {"pads": [1, 1, 1, 1]}),
            ("Add", ["c2", "p1"], "a", {}),
            ("Relu", ["a"], "r2", {}),
            ("GlobalAveragePool", ["r2"], "g", {}),
            ("Flatten", ["g"], "f", {}),
            ("Gemm", ["f", "w3", "b3"], "y", {"transB": 1}),
        ],
        ["N", 3, 8, 8],
        ["N", 5],
        {
            "w1": weights(8, 3, 3, 3), "b1": weights(8), "w2": weights(8, 8, 3, 3, scale=0.1),
            "b2": weights(8), "w3": weights(5, 8), "b3": weights(5),
        },
    )  # fmt: skip


def test_every_activation_has_one_pair_and_relu_is_absorbed(residual: Model) -> None:
    model = int8(residual, rows(3, 8, 8))
    quantized = [n.inputs[0].name for n in model.ir.graph if n.op_type == "QuantizeLinear"]
    assert sorted(quantized) == sorted(["x", "r1", "p1", "c2", "r2", "g", "f", "y_float"])
    for n in model.ir.graph:
        if n.op_type in ("Conv", "Gemm", "Add", "MaxPool", "GlobalAveragePool", "Flatten"):
            assert all(v.producer().op_type == "DequantizeLinear" for v in n.inputs), n.name
        if n.op_type in ("Conv", "Add", "Relu", "Gemm"):
            readers = [u.node.op_type for u in n.outputs[0].uses()]
            assert readers in (["QuantizeLinear"], ["Relu"]), n.name
    assert model.outputs == residual.outputs
    assert model.inputs == residual.inputs


def test_onnxruntime_runs_integer_kernels_only(residual: Model, tmp_path) -> None:
    found = kernels(int8(residual, rows(3, 8, 8)), tmp_path)
    assert found.count("QLinearConv") == 2
    assert not {"Conv", "Gemm", "Add", "Relu", "GlobalAveragePool"} & set(found), found
    assert {"QLinearAdd", "QGemm", "QLinearGlobalAveragePool"} <= set(found)


@pytest.mark.parametrize("per_channel", [True, False])
def test_scales_and_codes_match_a_numpy_derivation(residual: Model, per_channel: bool) -> None:
    data = rows(3, 8, 8, count=20)
    model = int8(
        residual, data, per_channel=per_channel, calibration="min-max", rows=20, bias_correction=False
    )
    proto = residual.to_proto()
    proto.graph.output.extend([onnx.ValueInfoProto(name=n) for n in ("r1", "c2", "r2")])
    values = dict(
        zip(["y", "r1", "c2", "r2"], ReferenceEvaluator(proto).run(None, {"x": data.samples}), strict=True)
    )
    values["x"] = data.samples
    for name in ("x", "r1", "c2", "r2"):
        low, high = min(0.0, values[name].min()), max(0.0, values[name].max())
        scale, zero = reader_grid(model, name)
        assert scale == pytest.approx((high - low) / 255, rel=1e-5)
        assert zero == pytest.approx(-128 - low / scale, abs=0.51)
    for index, (w, b, source) in enumerate([("w1", "b1", "x"), ("w2", "b2", "p1")]):
        conv = node(model, "Conv", index)
        weight, bias = residual.initializers[w], residual.initializers[b]
        axes = (1, 2, 3) if per_channel else None
        expected = np.abs(weight).max(axis=axes) / 127
        scale, zero = grid(model, conv.inputs[1].producer())
        codes = model.initializers[conv.inputs[1].producer().inputs[0].name]
        np.testing.assert_allclose(scale, expected, rtol=1e-6)
        assert not zero.any()
        spread = scale.reshape(-1, 1, 1, 1) if per_channel else scale
        np.testing.assert_array_equal(codes, np.round(weight / spread).astype(np.int8))
        assert codes.min() >= -127
        bias_scale, _ = grid(model, conv.inputs[2].producer())
        np.testing.assert_allclose(bias_scale, scale * np.float32(reader_grid(model, source)[0]), rtol=1e-6)
        stored = model.initializers[conv.inputs[2].producer().inputs[0].name]
        assert stored.dtype == np.int32
        np.testing.assert_allclose(stored * bias_scale, bias, atol=float(np.max(bias_scale)))


def test_pools_and_reshapes_keep_the_grid(residual: Model) -> None:
    model = int8(residual, rows(3, 8, 8))
    assert reader_grid(model, "p1") == reader_grid(model, "r1")
    assert reader_grid(model, "g") == reader_grid(model, "f") == reader_grid(model, "r2")
    assert reader_grid(model, "r1")[1] == -128


@pytest.mark.parametrize("calibration", ["min-max", "percentile", "mse"])
def test_result_is_close_to_float(residual: Model, calibration: str) -> None:
    model = int8(residual, rows(3, 8, 8), calibration=calibration)
    x = rows(3, 8, 8, count=64).samples
    assert sqnr_db(run(residual, x), run(model, x)) > 22
    fused = run(model, x, "ORT_ENABLE_ALL")
    assert np.abs(fused - run(model, x)).max() <= 4 * reader_grid(model, "y_float")[0]


def test_same_rows_same_bytes_and_the_input_is_untouched(residual: Model) -> None:
    before = residual.hash
    first, second = (int8(residual, rows(3, 8, 8)) for _ in range(2))
    assert first.to_bytes() == second.to_bytes()
    assert residual.hash == before
    step = first.history[-1]
    assert step.action == "int8"
    assert step.options["calibration"] == "mse"
    assert step.notes == (f"calibrated on 48 rows of rows ({rows(3, 8, 8).hash[:16]})",)
    assert methods.get("int8")(**step.options).options == methods.get("int8")(activations="int8").options
    assert len(first.to_bytes()) < len(residual.to_bytes()) + 20_000


def test_unsigned_shift_changes_no_value(residual: Model) -> None:
    x = rows(3, 8, 8).samples
    for io in ("float32", "int8"):
        model = int8(residual, rows(3, 8, 8), io=io)
        graph = model.editable()
        assert unsigned_activations(graph) == 8
        shifted = Model(graph)
        feed = x if io == "float32" else np.clip(x * 40, -128, 127).astype(np.int8)
        np.testing.assert_array_equal(run(model, feed), run(shifted, feed))
        assert shifted.inputs == model.inputs
        assert shifted.outputs == model.outputs


@pytest.mark.parametrize("io", ["float32", "int8"])
def test_uint8_activations_are_the_same_numbers_and_the_same_tflite_file(
    residual: Model, io: str, tmp_path
) -> None:
    signed, plain = (
        int8(residual, rows(3, 8, 8), io=io),
        methods.get("int8")(io=io).apply(residual, rows(3, 8, 8)),
    )
    kinds = {
        i.const_value.dtype for n in plain.ir.graph if n.op_type == "QuantizeLinear" for i in n.inputs[2:]
    }
    assert kinds == {ir.DataType.UINT8} if io == "float32" else ir.DataType.UINT8 in kinds
    x = rows(3, 8, 8).samples if io == "float32" else np.arange(-96, 96, dtype=np.int8).reshape(1, 3, 8, 8)
    np.testing.assert_array_equal(run(signed, x), run(plain, x))
    for name, model in (("signed", signed), ("plain", plain)):
        save_model(dataclasses.replace(model, history=()), tmp_path / f"{name}.tflite")  # it tells the option
    assert (tmp_path / "signed.tflite").read_bytes() == (tmp_path / "plain.tflite").read_bytes()


def test_onnxruntime_fuses_every_layer_of_the_bare_file(residual: Model, tmp_path) -> None:
    model = methods.get("int8")().apply(residual, rows(3, 8, 8))
    assert unsigned_activations(model.editable()) == 0  # so `kernels` takes it as it is
    found = kernels(model, tmp_path)
    assert found.count("QLinearConv") == 2
    assert {"QLinearAdd", "QGemm"} <= set(found)
    assert not {"Conv", "Gemm", "Add", "Relu"} & set(found)


def test_integer_arithmetic_of_a_gemm() -> None:
    """The fused network equals int32 accumulation and one rescale, to one step of the output."""
    model = net(
        [("Gemm", ["x", "w", "b"], "y", {"transB": 1})], ["N", 16], ["N", 6],
        {"w": weights(6, 16), "b": weights(6)},
    )  # fmt: skip
    q = int8(model, rows(16))
    x = rows(16, count=30).samples
    (sx, zx), (sy, zy) = reader_grid(q, "x"), reader_grid(q, "y_float")
    gemm = node(q, "Gemm")
    sw, _ = grid(q, gemm.inputs[1].producer())
    wq, bq = (q.initializers[gemm.inputs[i].producer().inputs[0].name].astype(np.int64) for i in (1, 2))
    xq = np.clip(np.rint(x / np.float32(sx)) + zx, -128, 127).astype(np.int64)
    total = (xq - zx) @ wq.T + bq
    y = (np.clip(np.rint(total * (sx * sw.astype(np.float64) / sy)) + zy, -128, 127) - zy) * sy
    for level in ("ORT_DISABLE_ALL", "ORT_ENABLE_ALL"):
        assert np.abs(run(q, x, level) - y).max() <= sy * 1.001


CASES = {
    "depthwise-clip": (
        [
            ("Conv", ["x", "w", "b"], "c", {"group": 4, "pads": [1, 1, 1, 1]}),
            ("Clip", ["c", "zero", "six"], "k", {}),
            ("Conv", ["k", "p"], "d", {}),
            ("Clip", ["d", "zero", "six"], "y", {}),
        ],
        (4, 6, 6), ["N", 8, 6, 6],
        {"w": weights(4, 1, 3, 3, scale=3), "b": weights(4), "zero": np.float32(0), "six": np.float32(6),
         "p": weights(8, 4, 1, 1)},
        ["QLinearConv"], ["Conv", "Clip"],
    ),
    "conv-1d": (
        [("Conv", ["x", "w"], "c", {}), ("Relu", ["c"], "y", {})],
        (3, 12), ["N", 4, 10], {"w": weights(4, 3, 3)}, ["QLinearConv"], ["Conv", "Relu"],
    ),
    "gemm-transb-0": (
        [("Gemm", ["x", "w", "b"], "y", {})], (6,), ["N", 4], {"w": weights(6, 4), "b": weights(4)},
        ["QGemm"], ["Gemm"],
    ),
    "gemm-alpha-beta": (
        [("Gemm", ["x", "w", "b"], "y", {"alpha": 0.5, "beta": 2.0, "transB": 1})], (6,), ["N", 4],
        {"w": weights(4, 6), "b": weights(1, 4)}, ["QGemm"], ["Gemm"],
    ),
    "matmul-add": (
        [("MatMul", ["x", "w"], "m", {}), ("Add", ["b", "m"], "y", {})], (6,), ["N", 4],
        {"w": weights(6, 4), "b": weights(4)}, ["QGemm"], ["MatMul", "Add", "Gemm"],
    ),
    "matmul-3d": (
        [("MatMul", ["x", "w"], "m", {}), ("Add", ["m", "b"], "y", {})], (5, 6), ["N", 5, 4],
        {"w": weights(6, 4), "b": weights(4)}, ["QLinearMatMul", "QLinearAdd"], ["MatMul", "Add"],
    ),
    "attention-scores": (
        [("MatMul", ["x", "w"], "q", {}), ("Transpose", ["x"], "t", {"perm": [0, 2, 1]}),
         ("MatMul", ["q", "t"], "s", {}), ("Softmax", ["s"], "y", {"axis": -1})],
        (5, 6), ["N", 5, 5], {"w": weights(6, 6)}, ["QLinearMatMul", "QLinearSoftmax"], ["MatMul", "Softmax"],
    ),
    "transposed-conv": (
        [("ConvTranspose", ["x", "w", "b"], "y", {"strides": [2, 2]})], (3, 4, 4), ["N", 5, 8, 8],
        {"w": weights(3, 5, 2, 2), "b": weights(5)}, [], [],
    ),
    "transposed-conv-groups": (
        [("ConvTranspose", ["x", "w", "b"], "y", {"strides": [2, 2], "group": 2})], (4, 4, 4), ["N", 6, 8, 8],
        {"w": weights(4, 3, 2, 2), "b": weights(6)}, [], [],
    ),
    "nhwc-input": (
        [("Transpose", ["x"], "t", {"perm": [0, 3, 1, 2]}), ("Conv", ["t", "w"], "c", {}),
         ("Relu", ["c"], "r", {}), ("ReduceMean", ["r", "axes"], "y", {"keepdims": 0})],
        (6, 6, 3), ["N", 4], {"w": weights(4, 3, 3, 3), "axes": np.array([-2, -1])},
        ["QLinearConv", "QLinearGlobalAveragePool"], ["Conv", "Relu", "ReduceMean", "GlobalAveragePool"],
    ),
    "option-a-shortcut": (
        [("Conv", ["x", "w"], "c", {"strides": [2, 2], "pads": [1, 1, 1, 1]}),
         ("Slice", ["x", "from", "to", "axes", "by"], "s", {}), ("Pad", ["s", "pads"], "p", {}),
         ("Add", ["c", "p"], "a", {}), ("Relu", ["a"], "y", {})],
        (2, 8, 8), ["N", 4, 4, 4],
        {"w": weights(4, 2, 3, 3), "from": np.array([0, 0]), "to": np.array([9, 9]), "axes": np.array([2, 3]),
         "by": np.array([2, 2]), "pads": np.array([0, 1, 0, 0, 0, 1, 0, 0])},
        ["QLinearConv", "QLinearAdd"], ["Conv", "Add", "Relu"],
    ),
    "leftover-batch-norm": (
        [("Relu", ["x"], "r", {}), ("BatchNormalization", ["r", "g", "b", "m", "v"], "n", {}),
         ("Relu", ["n"], "r2", {}), ("Conv", ["r2", "w"], "y", {})],
        (3, 6, 6), ["N", 4, 4, 4],
        {"g": weights(3) + 1, "b": weights(3), "m": weights(3), "v": weights(3) ** 2 + 0.5,
         "w": weights(4, 3, 3, 3)},
        ["QLinearConv"], ["Conv", "BatchNormalization"],
    ),
    "gates": (
        [("Conv", ["x", "w"], "c", {}), ("Sigmoid", ["c"], "s", {}), ("Mul", ["c", "s"], "m", {}),
         ("LeakyRelu", ["m"], "l", {"alpha": 0.1}), ("Tanh", ["l"], "y", {})],
        (3, 6, 6), ["N", 4, 4, 4], {"w": weights(4, 3, 3, 3)},
        ["QLinearConv", "QLinearSigmoid", "QLinearMul", "QLinearLeakyRelu"],
        ["Conv", "Sigmoid", "Mul", "LeakyRelu"],
    ),
    "scaled-input": (
        [("Mul", ["x", "k"], "m", {}), ("Conv", ["m", "w"], "y", {})],
        (3, 6, 6), ["N", 4, 4, 4], {"k": np.float32(0.25), "w": weights(4, 3, 3, 3)},
        ["QLinearMul", "QLinearConv"], ["Mul", "Conv"],
    ),
    "split": (
        [("Conv", ["x", "w"], "c", {}), ("Split", ["c", "sizes"], ("a", "b"), {"axis": 1}),
         ("Mul", ["a", "b"], "y", {})],
        (3, 6, 6), ["N", 2, 4, 4], {"w": weights(4, 3, 3, 3), "sizes": np.array([2, 2])},
        ["QLinearConv", "QLinearMul"], ["Conv", "Mul"],
    ),
}  # fmt: skip


@pytest.mark.parametrize("case", CASES)
@pytest.mark.parametrize("per_channel", [True, False])
def test_operator(case: str, per_channel: bool, tmp_path) -> None:
    nodes, shape, out_shape, constants, present, absent = CASES[case]
    model = net(nodes, ["N", *shape], out_shape, constants, name=case)
    q = int8(model, rows(*shape), per_channel=per_channel)
    x = rows(*shape, count=40).samples
    assert sqnr_db(run(model, x), run(q, x)) > 24
    found = kernels(q, tmp_path)
    assert set(present) <= set(found), found
    assert not set(absent) & set(found), found
    assert not [n for n in q.history[-1].notes if "stays float" in n]


@pytest.mark.parametrize(
    ("op", "attributes", "shape", "axis"),
    [("Gemm", {}, (6, 4), 1), ("Gemm", {"transB": 1}, (4, 6), 0), ("MatMul", {}, (6, 4), 1)],
)
def test_output_channel_axis(op: str, attributes: dict, shape: tuple[int, int], axis: int) -> None:
    weight = weights(*shape)
    model = net([(op, ["x", "w"], "y", attributes)], ["N", 6], ["N", 4], {"w": weight})
    q = int8(model, rows(6))
    dq = node(q, op).inputs[1].producer()
    assert dq.attributes["axis"].value == axis
    np.testing.assert_allclose(grid(q, dq)[0], np.abs(weight).max(axis=1 - axis) / 127, rtol=1e-6)


def branches(first: str, second: str) -> Model:
    """Two convolutions with an activation each, joined by a Concat and read by a third."""
    tails = {"relu": ("Relu", {}), "sigmoid": ("Sigmoid", {}), "none": None}
    nodes = [("Conv", ["x", "w1"], "c1", {}), ("Conv", ["x", "w2"], "c2", {})]
    joined = []
    for i, kind in ((1, first), (2, second)):
        tail = tails[kind]
        if tail is not None:
            nodes.append((tail[0], [f"c{i}"], f"t{i}", tail[1]))
        joined.append(f"t{i}" if tail is not None else f"c{i}")
    nodes += [("Concat", joined, "k", {"axis": 1}), ("Conv", ["k", "w3"], "y", {})]
    constants = {"w1": weights(4, 3, 1, 1), "w2": weights(4, 3, 1, 1, scale=2.0), "w3": weights(2, 8, 1, 1)}
    return net(nodes, ["N", 3, 5, 5], ["N", 2, 5, 5], constants)


@pytest.mark.parametrize("kind", ["relu", "none", "sigmoid"])
def test_concat_of_like_branches_shares_one_grid(kind: str, tmp_path) -> None:
    q = int8(branches(kind, kind), rows(3, 5, 5), calibration="min-max")
    a, b = ("c1", "c2") if kind == "none" else ("t1", "t2")
    assert reader_grid(q, a) == reader_grid(q, b) == reader_grid(q, "k")
    assert "Conv" not in kernels(q, tmp_path)


@pytest.mark.parametrize(("first", "second"), [("relu", "none"), ("relu", "sigmoid"), ("none", "sigmoid")])
def test_concat_of_unlike_branches_requantises(first: str, second: str, tmp_path) -> None:
    model = branches(first, second)
    q = int8(model, rows(3, 5, 5))
    concat = node(q, "Concat")
    entering = {tuple(map(float, grid(q, v.producer()))) for v in concat.inputs}
    assert entering == {reader_grid(q, "k")}
    if first == "relu":
        assert reader_grid(q, "t1")[1] == -128
    if second == "sigmoid":
        assert reader_grid(q, "t2") == (1 / 256, -128)
    assert "Conv" not in kernels(q, tmp_path)
    x = rows(3, 5, 5).samples
    assert sqnr_db(run(model, x), run(q, x)) > 24


def test_softmax_has_the_grid_tflite_prescribes() -> None:
    model = net(
        [("Gemm", ["x", "w"], "g", {}), ("Softmax", ["g"], "y", {"axis": 1})], ["N", 6], ["N", 4],
        {"w": weights(6, 4)},
    )  # fmt: skip
    assert reader_grid(int8(model, rows(6)), "y_float") == (1 / 256, -128)


def test_unsupported_operator_stays_float_between_borders() -> None:
    model = net(
        [
            ("Conv", ["x", "w"], "c", {}),
            ("Erf", ["c"], "e", {}),
            ("Relu", ["e"], "r", {}),
            ("Conv", ["r", "v"], "y", {}),
        ],
        ["N", 3, 6, 6], ["N", 4, 2, 2], {"w": weights(4, 3, 3, 3), "v": weights(4, 4, 3, 3)},
    )  # fmt: skip
    q = int8(model, rows(3, 6, 6))
    erf = node(q, "Erf")
    assert erf.inputs[0].producer().op_type == "DequantizeLinear"
    assert [u.node.op_type for u in erf.outputs[0].uses()] == ["QuantizeLinear"]
    assert any("Erf stays float" in n and "n1_Erf" in n for n in q.history[-1].notes)
    assert methods.get("int8")().plan(model).notes == q.history[-1].notes[:-1]


def test_a_tensor_read_by_integer_and_float_nodes() -> None:
    """A float producer hands its exact values to float readers and its codes to integer ones."""
    model = net(
        [("Erf", ["x"], "e", {}), ("Gemm", ["e", "w"], "g", {}), ("Exp", ["e"], "h", {}), ("Div", ["g", "h"], "y", {})],
        ["N", 4], ["N", 4], {"w": weights(4, 4)},
    )  # fmt: skip
    q = int8(model, rows(4))
    assert node(q, "Exp").inputs[0].producer().op_type == "Erf"
    assert node(q, "Gemm").inputs[0].producer().op_type == "DequantizeLinear"
    assert node(q, "Div").inputs[0].producer().op_type == "DequantizeLinear"


def test_keep_float_and_a_network_input_that_is_also_an_output() -> None:
    model = net(
        [("Gemm", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "v"], "y", {})],
        ["N", 6], ["N", 6], {"w": weights(6, 6), "v": weights(6, 6)}, outputs=("y", "r"),
    )  # fmt: skip
    q = int8(model, rows(6), keep_float="n2_*")
    assert q.ir.graph.outputs[0].producer().op_type == "Gemm"
    assert [o.name for o in q.outputs] == ["y", "r"]
    assert q.ir.graph.outputs[1].producer().op_type == "DequantizeLinear"
    assert any("kept float as asked" in n for n in q.history[-1].notes)


def test_weights_shared_by_two_layers_are_stored_once() -> None:
    model = net(
        [("Gemm", ["x", "w", "b"], "h", {}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "w", "b"], "y", {})],
        ["N", 6], ["N", 6], {"w": weights(6, 6), "b": weights(6)},
    )  # fmt: skip
    q = int8(model, rows(6))
    assert sum(a.shape == (6, 6) for a in q.initializers.values()) == 1
    x = rows(6).samples
    assert sqnr_db(run(model, x), run(q, x)) > 24


def test_dead_channels_and_huge_biases() -> None:
    weight, bias = weights(4, 3, 1, 1), np.array([0.5, -0.25, 1e9, 0.1], np.float32)
    weight[0] = 0.0
    weight[1] *= 1e-30
    model = net(
        [("Conv", ["x", "w", "b"], "y", {})], ["N", 3, 4, 4], ["N", 4, 4, 4], {"w": weight, "b": bias}
    )
    q = int8(model, rows(3, 4, 4), calibration="min-max", bias_correction=False)
    dq = node(q, "Conv").inputs[1].producer()
    scale, _ = grid(q, dq)
    assert (scale > 1e-6).all()
    bias_dq = node(q, "Conv").inputs[2].producer()
    stored = q.initializers[bias_dq.inputs[0].name].astype(np.float64) * grid(q, bias_dq)[0]
    np.testing.assert_allclose(stored, bias, rtol=1e-3)
    assert np.isfinite(run(q, rows(3, 4, 4).samples)).all()


def test_all_zero_weights_and_activations() -> None:
    model = net(
        [("Gemm", ["x", "w"], "h", {}), ("Relu", ["h"], "r", {}), ("Gemm", ["r", "v", "b"], "y", {})],
        ["N", 6], ["N", 3], {"w": np.zeros((6, 4), np.float32), "v": weights(4, 3), "b": weights(3)},
    )  # fmt: skip
    q = int8(model, rows(6))
    x = rows(6).samples
    np.testing.assert_allclose(run(q, x), run(model, x), atol=0.02)


def test_int8_interface() -> None:
    from dlas.graph.preprocessing import Preprocessing

    base = net([("Gemm", ["x", "w"], "y", {})], ["N", 6], ["N", 3], {"w": weights(6, 3)})
    model = Model(base.ir, "net", preprocessing=Preprocessing(layout="N*"))
    plain = int8(base, rows(6), io="int8")
    assert (plain.inputs[0].dtype, plain.outputs[0].dtype) == ("int8", "int8")
    assert ops(plain).count("QuantizeLinear") == 1
    assert [n.split(":")[0] for n in plain.history[-1].notes[:2]] == ["input x", "output y"]
    q = int8(model, rows(6), io="int8")
    assert q.preprocessing is not None
    assert q.preprocessing.dtype == "int8"
    scale, zero = grid(
        q, next(n for n in q.ir.graph if n.op_type == "DequantizeLinear" and n.inputs[0].name == "x")
    )
    assert q.preprocessing.quant_scale == pytest.approx(float(scale))
    assert q.preprocessing.quant_zero_point == int(zero)


def test_int8_interface_where_float_layers_stand() -> None:
    """The input also feeds a float node; the output comes from one and so stays float."""
    model = net(
        [("Gemm", ["x", "w"], "g", {}), ("Exp", ["x"], "e", {}), ("Div", ["g", "e"], "y", {})],
        ["N", 4],
        ["N", 4],
        {"w": weights(4, 4)},
    )
    q = int8(model, rows(4), io="int8")
    assert (q.inputs[0].dtype, q.outputs[0].dtype) == ("int8", "float32")
    assert node(q, "Exp").inputs[0].producer().op_type == "DequantizeLinear"
    assert "output y stays float32: no integer layer there" in q.history[-1].notes
    assert any(n.startswith("input x: int8, scale") for n in q.history[-1].notes)


def test_concat_with_a_constant_and_progress() -> None:
    model = net(
        [("Gemm", ["x", "w"], "g", {}), ("Relu", ["g"], "r", {}), ("Concat", ["r", "k"], "y", {"axis": 0})],
        ["N", 4],
        ["M", 4],
        {"w": weights(4, 4), "k": weights(3, 4, scale=5)},
    )
    told: list[float] = []
    q = methods.get("int8")().apply(model, rows(4), lambda fraction, text: told.append(fraction))
    onnx.checker.check_model(q.to_proto(), full_check=True)
    x = rows(4).samples
    assert sqnr_db(run(model, x), run(q, x)) > 24
    assert told == sorted(told)
    assert told[-1] == 1.0


def test_fixed_batch() -> None:
    model = net([("Gemm", ["x", "w"], "y", {})], [4, 6], [4, 3], {"w": weights(6, 3)})
    for count in (8, 10, 13):
        q = int8(model, rows(6, count=count), calibration="min-max")
        data = rows(6, count=count).samples
        assert reader_grid(q, "x")[0] == pytest.approx((data.max() - data.min()) / 255, rel=1e-5)


def test_plan(residual: Model) -> None:
    plan = methods.get("int8")().plan(residual)
    assert [c.layer for c in plan.changes] == ["n0_Conv", "n3_Conv", "n8_Gemm"]
    assert "8x3x3x3" in plan.changes[0].what
    assert "8 scales" in plan.changes[0].what
    before = sum(a.nbytes for a in residual.initializers.values())
    assert plan.expected["weight_bytes_before"].value == before
    q = int8(residual, rows(3, 8, 8))
    weights_only = [n for n in q.initializers if n[0] in "wb" and n[1] in "123"]
    assert plan.expected["weight_bytes"].value == sum(q.initializers[n].nbytes for n in weights_only)
    assert str(plan.expected["weight_bytes"].source) == "estimated"


def test_composes_by_spelling(residual: Model) -> None:
    q = compress_model(
        residual, "int8:per_channel=false,calibration=percentile,percentile=99.9", rows(3, 8, 8)
    )
    assert q.history[-1].options["percentile"] == 99.9
    assert q.history[-1].options["per_channel"] is False


def test_weights_stored_as_integers_are_quantised_anew() -> None:
    codes = RNG.integers(-127, 128, (6, 4)).astype(np.int8)
    scale = np.array([0.01, 0.02, 0.005, 0.03], np.float32)
    model = net(
        [("DequantizeLinear", ["w", "s"], "d", {"axis": 1}), ("Gemm", ["x", "d"], "y", {})],
        ["N", 6],
        ["N", 4],
        {"w": codes, "s": scale},
    )
    x = rows(6).samples
    q = int8(model, rows(6))
    assert q.initializers[node(q, "Gemm").inputs[1].producer().inputs[0].name].dtype == np.int8
    np.testing.assert_allclose(run(model, x), x @ (codes * scale), atol=1e-5)
    assert sqnr_db(run(model, x), run(q, x)) > 24
    assert methods.get("int8")().plan(model).changes[0].layer == "n1_Gemm"


def test_mean_of_an_older_opset() -> None:
    nodes = [("Conv", ["x", "w"], "c", {}), ("ReduceMean", ["c"], "y", {"axes": [2, 3], "keepdims": 0})]
    made = [helper.make_node(op, i, [o], name=op, **a) for op, i, o, a in nodes]
    graph = helper.make_graph(
        made,
        "g",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, ["N", 3, 6, 6])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, ["N", 4])],
        [numpy_helper.from_array(weights(4, 3, 3, 3), "w")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 17)], ir_version=8)
    model = Model.from_proto(proto)
    q = int8(model, rows(3, 6, 6))
    assert not [n for n in q.history[-1].notes if "stays float" in n]
    x = rows(3, 6, 6).samples
    assert sqnr_db(run(model, x), run(q, x)) > 24
    for other in (12, 0):
        graph = model.editable()
        graph.graph.opset_imports[""] = other
        with pytest.raises(UnsupportedError, match=f"opset {other}"):
            int8(Model(graph), rows(3, 6, 6))


def one_layer(**changes) -> Model:
    settings = {"nodes": [("Gemm", ["x", "w"], "y", {})], "constants": {"w": weights(6, 3)}, **changes}
    return net(settings["nodes"], ["N", 6], settings.get("out", ["N", 3]), settings["constants"])


@pytest.mark.parametrize(
    ("data", "told"),
    [
        (None, "training rows"),
        (rows(7), "takes float32"),
        (rows(6, 2), "takes float32"),
        (Dataset("pixels", np.zeros((4, 7), np.uint8)), "takes float32"),
        (Dataset("jpegs", [b"not an image"] * 3), "encoded images"),
        (Dataset("text", np.array([["a"] * 6] * 3)), "expected numbers"),
        (Dataset("nan", np.full((9, 6), np.nan, np.float32)), "not finite"),
    ],
)
def test_bad_rows(data: Dataset | None, told: str) -> None:
    with pytest.raises(DataError, match=told):
        int8(one_layer(), data)


def test_activations_that_overflow_name_their_layer() -> None:
    model = net(
        [("Gemm", ["x", "w"], "h", {}), ("Exp", ["h"], "e", {}), ("Gemm", ["e", "v"], "y", {})],
        ["N", 6], ["N", 2], {"w": weights(6, 3, scale=500), "v": weights(3, 2)},
    )  # fmt: skip
    with pytest.raises(DataError, match="n1_Exp"):
        int8(model, rows(6))


def test_bad_networks() -> None:
    weight = weights(6, 3)
    weight[0, 0] = np.nan
    with pytest.raises(DlasError, match=r"not finite|NaN"):
        int8(one_layer(constants={"w": weight}), rows(6))
    with pytest.raises(UnsupportedError, match="already quantised"):
        int8(int8(one_layer(), rows(6)), rows(6))
    with pytest.raises(UnsupportedError, match=r"no layer that int8 can quantise.*Exp"):
        int8(one_layer(nodes=[("Exp", ["x"], "y", {})], constants={}, out=["N", 6]), rows(6))
    half = net([("Relu", ["x"], "y", {})], ["N", 6], ["N", 6], {}, dtype=TensorProto.FLOAT16)
    with pytest.raises(UnsupportedError, match="float16"):
        int8(half, rows(6))


def test_nan_in_a_weight_that_calibration_does_not_see() -> None:
    from dlas.compress.qdq import weight_grid

    with pytest.raises(ModelError, match="w holds NaN"):
        weight_grid(np.array([[np.inf, 1.0]], np.float32), 0, name="w")


def test_bad_options() -> None:
    for options in ({"calibration": "entropy"}, {"rows": 0}, {"percentile": 101.0}, {"io": "uint8"}):
        with pytest.raises(OptionError):
            methods.get("int8")(**options)
    with pytest.raises(UnknownNameError, match="per_channel"):
        methods.get("int8")(per_chanel=True)


def test_accuracy_next_to_the_quantiser_of_onnxruntime(tmp_path) -> None:
    """On digits, both keep the labels of the float network to within the same margin."""
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static
    from sklearn.datasets import load_digits
    from sklearn.linear_model import RidgeClassifier

    images, labels = load_digits(return_X_y=True)
    x = (images / 16).astype(np.float32).reshape(-1, 1, 8, 8)
    body = [
        ("Conv", ["x", "w", "b"], "c", {"pads": [1, 1, 1, 1]}),
        ("Relu", ["c"], "r", {}),
        ("MaxPool", ["r"], "p", {"kernel_shape": [2, 2], "strides": [2, 2]}),
    ]
    constants = {"w": weights(12, 1, 3, 3, scale=0.5), "b": weights(12, scale=0.1)}
    features = run(net([*body, ("Flatten", ["p"], "y", {})], ["N", 1, 8, 8], ["N", 192], constants), x)
    fit = RidgeClassifier().fit(features[:1200], labels[:1200])
    constants |= {"v": fit.coef_.astype(np.float32), "d": fit.intercept_.astype(np.float32)}
    tail = [("Flatten", ["p"], "f", {}), ("Gemm", ["f", "v", "d"], "y", {"transB": 1})]
    model = net([*body, *tail], ["N", 1, 8, 8], ["N", 10], constants)

    class Reader(CalibrationDataReader):
        def __init__(self) -> None:
            self.batches = iter([{"x": x[i : i + 100]} for i in range(0, 400, 100)])

        def get_next(self):
            return next(self.batches, None)

    onnx.save(model.to_proto(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "peer.onnx", Reader(), quant_format=QuantFormat.QDQ,
        per_channel=True, activation_type=QuantType.QInt8, weight_type=QuantType.QInt8,
    )  # fmt: skip
    peer = Model.from_proto(onnx.load(tmp_path / "peer.onnx"))
    own = int8(model, Dataset("digits", x[:400]))
    test, truth = x[1200:], labels[1200:]
    reference = run(model, test)
    accuracy = {
        name: float((run(m, test).argmax(1) == truth).mean()) for name, m in (("own", own), ("peer", peer))
    }
    assert (reference.argmax(1) == truth).mean() > 0.9
    assert accuracy["own"] >= accuracy["peer"] - 0.01
    assert sqnr_db(reference, run(own, test)) >= sqnr_db(reference, run(peer, test)) - 1.0
