"""Operators without a tflite builtin of their own, or with an unlike one: written, run by LiteRT, read again."""

from __future__ import annotations

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.compress.method import compress_model
from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite import from_bytes, read_layouts, to_bytes
from dlas.graph.formats.tflite.flat import parse
from dlas.graph.model import Model
from dlas.graph.reference import Reference

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
RNG = np.random.default_rng(8)
C4 = [1, 4, 6, 8]


def node(op: str, inputs: str, outputs: str = "y", **attributes) -> onnx.NodeProto:
    names = ["" if n == "-" else n for n in inputs.split()]
    return helper.make_node(op, names, outputs.split(), **attributes)


def w(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) * 0.5).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


def recurrent(op: str, directions: int = 1, bias: bool = True, initial: bool = False, **attributes):
    gates = {"LSTM": 4, "GRU": 3, "RNN": 1}[op]
    way = {1: "forward", 2: "bidirectional"}[directions]
    constants = {"w": w(directions, gates * 6, 5), "r": w(directions, gates * 6, 6)}
    names = "x w r"
    if bias:
        constants["b"] = w(directions, 2 * gates * 6)
    names += (" b" if bias else " -") + " -"
    if initial:
        constants["h"] = w(directions, 1, 6)
        names += " h"
        if op == "LSTM":
            constants["c"] = w(directions, 1, 6)
            names += " c"
    attributes = {"direction": way, **attributes}
    return ([node(op, names, "y", hidden_size=6, **attributes)], [7, 1, 5], constants)


CASES = {
    "lstm": recurrent("LSTM"),
    "lstm both ways": recurrent("LSTM", 2, initial=True),
    "lstm backwards": recurrent("LSTM", bias=False, direction="reverse"),
    "gru": recurrent("GRU"),
    "gru keras": recurrent("GRU", 2, initial=True, linear_before_reset=1),
    "gru one step": ([node("GRU", "x w r", hidden_size=6)], [1, 1, 5], {"w": w(1, 18, 5), "r": w(1, 18, 6)}),
    "rnn": recurrent("RNN", activations=["Relu"]),
    "layer norm": ([node("LayerNormalization", "x s b", axis=-1)], [1, 5, 12], {"s": w(12), "b": w(12)}),
    "layer norm of an image": ([node("LayerNormalization", "x s", axis=1)], C4, {"s": w(4, 6, 8)}),
    "instance norm": ([node("InstanceNormalization", "x s b")], C4, {"s": w(4), "b": w(4)}),
    "group norm": ([node("GroupNormalization", "x s b", num_groups=2)], C4, {"s": w(4), "b": w(4)}),
    "gelu": ([node("Gelu", "x")], C4, {}),
    "gelu in parts": ([node("Div", "x r", "a"), node("Erf", "a", "e"), node("Add", "e one", "p"),
                       node("Mul", "x p", "m"), node("Mul", "m half")], C4,
                      {"r": np.float32(2**0.5), "one": np.float32(1), "half": np.float32(0.5)}),
    "erf": ([node("Erf", "x")], C4, {}),
    "softplus": ([node("Softplus", "x")], C4, {}),
    "mish": ([node("Mish", "x")], C4, {}),
    "selu": ([node("Selu", "x")], C4, {}),
    "celu": ([node("Celu", "x", alpha=0.7)], C4, {}),
    "softsign": ([node("Softsign", "x")], C4, {}),
    "thresholded": ([node("ThresholdedRelu", "x", alpha=0.3)], C4, {}),
    "tan": ([node("Tan", "x")], C4, {}),
    "sinh cosh": ([node("Sinh", "x", "s"), node("Cosh", "x", "c"), node("Add", "s c")], C4, {}),
    "atan": ([node("Atan", "x")], C4, {}),
    "sum mean": ([node("Sum", "x x x", "s"), node("Mean", "s x")], C4, {}),
    "norms": ([node("ReduceL2", "x a", "l", keepdims=1), node("ReduceL1", "x a", "m", keepdims=1),
               node("ReduceSumSquare", "x a", "q", keepdims=1), node("ReduceLogSumExp", "x a", "s", keepdims=1),
               node("Sum", "l m q s")], C4, {"a": i64(1)}),
    "lp norm": ([node("LpNormalization", "x", axis=1)], C4, {}),
    "lrn": ([node("LRN", "x", size=3, alpha=0.2, bias=1.5)], C4, {}),
    "einsum": ([node("Einsum", "x k", equation="bchw,dh->bdcw")], C4, {"k": w(3, 6)}),
    "einsum batched": ([node("Einsum", "x k", equation="bchw,bcwd->bchd")], C4, {"k": w(1, 4, 8, 3)}),
    "einsum alone": ([node("Einsum", "x", equation="bchw->hb")], C4, {}),
    "einsum implicit": ([node("Einsum", "x k", equation="ij,jk")], [1, 6], {"k": w(6, 3)}),
    "top k": ([node("TopK", "x k", "v i", axis=1), node("Cast", "i", "f", to=1), node("Add", "v f")], C4,
              {"k": i64(2)}),
    "bottom k": ([node("TopK", "x k", "y i", axis=3, largest=0)], C4, {"k": i64(3)}),
    "gather nd": ([node("GatherND", "x i")], C4, {"i": np.array([[0, 1], [0, -1]])}),
    "gather elements": ([node("GatherElements", "x i", axis=1)], C4, {"i": RNG.integers(-4, 4, (1, 2, 6, 8))}),
    "scatter nd": ([node("ScatterND", "x i u")], C4, {"i": np.array([[0, 1], [0, -1]]), "u": w(2, 6, 8)}),
    "cumsum": ([node("CumSum", "x a", exclusive=1)], C4, {"a": np.int64(2)}),
    "cumsum backwards": ([node("CumSum", "x a", reverse=1)], C4, {"a": np.int64(1)}),
    "tile": ([node("Conv", "x k", "c"), node("Tile", "c n")], C4, {"k": w(3, 4, 1, 1), "n": i64(1, 2, 1, 3)}),
    "reverse sequence": ([node("ReverseSequence", "x n", batch_axis=0, time_axis=1)], C4, {"n": i64(3)}),
    "one hot": ([node("ArgMax", "x", "a", axis=1, keepdims=0), node("OneHot", "a d v", axis=1)], C4,
                {"d": np.int64(4), "v": np.array([-1, 2], np.float32)}),
    "one hot from the end": ([node("Cast", "x", "a", to=7), node("OneHot", "a d v", axis=1)], [40],
                             {"d": np.int64(2), "v": np.array([-1, 2], np.float32)}),
    "log sum exp": ([node("ReduceLogSumExp", "x a", keepdims=0)], C4, {"a": i64(1, -1)}),
    "log sum exp of all": ([node("ReduceLogSumExp", "x", "l"), node("Add", "x l")], C4, {}),
    "reductions of nothing": ([node("ReduceL1", "x", "l", noop_with_empty_axes=1),
                               node("ReduceL2", "l", "m", noop_with_empty_axes=1),
                               node("ReduceSumSquare", "m", "q", noop_with_empty_axes=1),
                               node("ReduceMax", "q", "r", noop_with_empty_axes=1),
                               node("ReduceLogSumExp", "r", "s", noop_with_empty_axes=1),
                               node("ReduceMean", "s", noop_with_empty_axes=1)], C4, {}),
    "clip integers": ([node("Cast", "x", "a", to=6), node("Clip", "a lo hi", "c"), node("Cast", "c", to=1)], [40],
                      {"lo": np.int32(-1), "hi": np.int32(2**31 - 1)}),
    "trilu": ([node("Trilu", "x k", upper=0)], C4, {"k": np.int64(1)}),
    "mod": ([node("Cast", "x", "a", to=6), node("Mod", "a m", "r"), node("Cast", "r", to=1)], C4, {"m": np.int32(-3)}),
    "xor": ([node("Greater", "x z", "g"), node("Less", "x o", "l"), node("Xor", "g l", "e"), node("Cast", "e", to=1)],
            C4, {"z": np.float32(-0.3), "o": np.float32(0.4)}),
}  # fmt: skip
OPSETS = {"gelu": 20, "group norm": 21}
# Sums of exponentials, and polynomials in float32.
FLOORS = {"erf": 110, "gelu": 110, "gelu in parts": 110, "tan": 100, "norms": 110}


def build(name: str) -> Model:
    nodes, shape, constants = CASES[name]
    graph = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT, shape if name == "group norm" else None)],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    opset = [helper.make_opsetid("", OPSETS.get(name, 18))]
    proto = helper.make_model(graph, opset_imports=opset, ir_version=10)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True), "net")


def run(data: bytes, x: np.ndarray, reference: bool) -> np.ndarray:
    kind = interpreter.OpResolverType.BUILTIN_REF if reference else interpreter.OpResolverType.AUTO
    machine = interpreter.Interpreter(model_content=data, num_threads=1, experimental_op_resolver_type=kind)
    machine.allocate_tensors()
    layouts = read_layouts(data)
    (given,), (out,) = machine.get_input_details(), machine.get_output_details()
    machine.set_tensor(given["index"], np.ascontiguousarray(x.transpose(layouts["inputs"]["x"])))
    machine.invoke()
    machine.invoke()  # a second call gives the same: nothing is carried over
    return machine.get_tensor(out["index"]).transpose(np.argsort(layouts["outputs"]["y"]))


def db(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = float(np.square(wanted.astype(np.float64) - got).sum())
    return float("inf") if noise == 0 else 10 * np.log10(float(np.square(wanted).sum()) / noise)


@pytest.mark.parametrize("name", CASES)
def test_written_run_and_read_again(name: str) -> None:
    model = build(name)
    data, notes = to_bytes(model)
    assert not [n for n in notes if "float16" in n]
    x = np.random.default_rng(6).standard_normal(CASES[name][1]).astype(np.float32)
    with Reference(model, level="disable") as reference:
        wanted = reference.run({"x": x})["y"]
    assert np.ptp(wanted) > 0
    for kernels in (True, False):
        try:
            got = run(data, x, kernels)
        except ValueError as error:
            if "Didn't find op" in str(error) and kernels:
                continue  # LiteRT has no reference kernel of this one
            raise
        assert got.shape == wanted.shape
        assert db(wanted, got) >= FLOORS.get(name, 120), kernels
    layouts = read_layouts(data)
    with Reference(from_bytes(data, "back"), level="disable") as reference:
        turned = np.ascontiguousarray(x.transpose(layouts["inputs"]["x"]))
        again = reference.run({"x": turned})["y"]
    assert db(wanted, again.transpose(np.argsort(layouts["outputs"]["y"]))) >= FLOORS.get(name, 120)


def test_all_outputs_of_an_lstm() -> None:
    nodes, shape, constants = recurrent("LSTM", 2, initial=True)
    nodes[0].output[:] = ["y", "h_last", "c_last"]
    outputs = [helper.make_tensor_value_info(n, TensorProto.FLOAT, None) for n in ("y", "h_last", "c_last")]
    graph = helper.make_graph(
        nodes, "net", [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)], outputs,
        [numpy_helper.from_array(v, k) for k, v in constants.items()],
    )  # fmt: skip
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    model = Model.from_proto(onnx.shape_inference.infer_shapes(proto), "net")
    data, _ = to_bytes(model)
    x = np.random.default_rng(6).standard_normal(shape).astype(np.float32)
    machine = interpreter.Interpreter(model_content=data, num_threads=1)
    machine.allocate_tensors()
    machine.set_tensor(machine.get_input_details()[0]["index"], x)
    machine.invoke()
    found = {d["name"]: machine.get_tensor(d["index"]) for d in machine.get_output_details()}
    with Reference(model) as reference:
        for name, wanted in reference.run({"x": x}).items():
            assert db(wanted, found[name]) >= 120, name


@pytest.mark.parametrize("name", ["lstm", "gru", "gru keras"])
def test_dynamic_range_stays_in_recurrent_layers(name: str) -> None:
    model = build(name)
    data, notes = to_bytes(compress_model(model, "dynamic-int8:min_elements=0"))
    assert any("rounds the activations" in n for n in notes)
    network = parse(data, name)
    dense = [op for op in network.operations if op.kind == "FULLY_CONNECTED"]
    assert {network.tensors[op.inputs[1]].dtype for op in dense} == {"int8"}
    codes = [t for t in network.tensors if t.dtype == "int8" and t.data is not None]
    assert len(codes) <= 2 * len(CASES[name][2]["w"]) + len(CASES[name][2]["w"])  # stored once for all steps
    x = np.random.default_rng(6).standard_normal(CASES[name][1]).astype(np.float32)
    with Reference(model) as reference:
        wanted = reference.run({"x": x})["y"]
    for kernels in (True, False):
        assert 20 < db(wanted, run(data, x, kernels)) < 60


INF = float("inf")
EDGES = {
    "softplus": ([node("Softplus", "x")], [[-200, -1, 0, 90, 200]], {}, 18),
    "log sum exp": ([node("ReduceLogSumExp", "x a")], [[90, 200, 1], [-200, -201, -1e4], [-INF] * 3, [1, INF, 2]],
                    {"a": i64(1)}, 18),
    "log sum exp before 18": ([node("ReduceLogSumExp", "x", axes=[1])], [[90, 200, 1]], {}, 17),
    "l2 norm": ([node("LpNormalization", "x", axis=1)], [[0, 0], [3, 4]], {}, 18),
    "l1 norm": ([node("LpNormalization", "x", axis=1, p=1)], [[0, 0], [-3, 1]], {}, 18),
    "clip beyond float16": ([node("Clip", "x lo hi")], [[-1e5, -7e4, 0, 7e4, 1e5]],
                            {"lo": np.float32(-65504), "hi": np.float32(8e4)}, 18),
    "clip below infinity": ([node("Clip", "x lo hi")], [[-1e38, 0, 1e38]],
                            {"lo": np.finfo(np.float32).min, "hi": np.float32(INF)}, 18),
}  # fmt: skip


@pytest.mark.parametrize("name", EDGES)
def test_numbers_at_the_edge(name: str, monkeypatch: pytest.MonkeyPatch) -> None:
    nodes, rows, constants, opset = EDGES[name]
    x = np.array(rows, np.float32)
    monkeypatch.setitem(CASES, "edge", (nodes, list(x.shape), constants))
    monkeypatch.setitem(OPSETS, "edge", opset)
    model = build("edge")
    with Reference(model, level="disable") as reference:
        wanted = reference.run({"x": x})["y"]
    data, _ = to_bytes(model)
    for kernels in (True, False):
        # LiteRT's sums stop at the largest float32 where ONNX Runtime's are infinite.
        got, limit = run(data, x, kernels), np.finfo(np.float32).max
        np.testing.assert_allclose(got.clip(-limit, limit), wanted.clip(-limit, limit), rtol=1e-5, atol=1e-6)


@pytest.mark.parametrize(("bound", "kinds"), [(np.float16(65504), []), (np.float16(65472), ["MINIMUM"])])
def test_the_largest_float16_bounds_nothing(bound: np.float16, kinds: list[str]) -> None:
    graph = helper.make_graph(
        [node("Clip", "x - hi")],
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT16, [4])],
        [helper.make_tensor_value_info("y", TensorProto.FLOAT16, [4])],
        [numpy_helper.from_array(np.asarray(bound), "hi")],
    )
    proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", 18)], ir_version=10)
    data, _ = to_bytes(Model.from_proto(proto, "net"))
    assert [op.kind for op in parse(data, "net").operations if op.kind == "MINIMUM"] == kinds


@pytest.mark.parametrize(
    ("made", "message"),
    [
        (recurrent("LSTM", clip=1.0), "clip"),
        (recurrent("RNN", activations=["Affine"]), "Affine"),
        (([node("Einsum", "x x x", equation="i,i,i->i")], [4], {}), "Einsum"),
        (([node("Einsum", "x", equation="ii->i")], [4, 4], {}), "Einsum"),
        (([node("ScatterND", "x i u")], [4], {"i": np.array([[1], [1]]), "u": w(2)}), "twice"),
        (
            ([node("ArgMax", "x", "a", select_last_index=1), node("Cast", "a", to=1)], [4], {}),
            "select_last_index",
        ),
        (
            (
                [
                    node(
                        "Resize",
                        "x - - n",
                        mode="linear",
                        coordinate_transformation_mode="pytorch_half_pixel",
                    )
                ],
                C4,
                {"n": i64(1, 4, 1, 8)},
            ),
            "pytorch_half_pixel",
        ),
        (([node("NonZero", "x", "n"), node("Cast", "n", to=1)], [4], {}), "NonZero"),
    ],
)
def test_refusals_name_what_is_wrong(made, message: str, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(CASES, "bad", made)
    with pytest.raises(UnsupportedError, match=message):
        to_bytes(build("bad"))
