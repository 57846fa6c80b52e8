"""tflite in both directions, judged by LiteRT's reference kernels and onnxruntime."""

from __future__ import annotations

import random
from collections import Counter
from pathlib import Path

import numpy as np
import onnx
import onnxruntime as ort
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.format import load_model, save_model
from dlas.graph.formats.tflite import from_bytes, layout, padding, read_layouts, to_bytes
from dlas.graph.model import OPSET, Model
from dlas.graph.passes import simplified
from dlas.graph.preprocessing import Preprocessing
from dlas.graph.reference import predict
from dlas.graph.signature import adapt_rows
from dlas.testing import models

interpreter = pytest.importorskip("ai_edge_litert.interpreter")
SHAPE = (3, 32, 32)


def run_tflite(data: bytes, feeds: dict[str, np.ndarray], reference: bool = True) -> dict[str, np.ndarray]:
    """Feed a Model's inputs (its own layout) row by row; outputs in the Model's layout."""
    resolver = interpreter.OpResolverType
    machine = interpreter.Interpreter(
        model_content=data,
        num_threads=1,
        experimental_op_resolver_type=resolver.BUILTIN_REF if reference else resolver.AUTO,
    )
    machine.allocate_tensors()
    layouts = read_layouts(data)
    rows: dict[str, list[np.ndarray]] = {d["name"]: [] for d in machine.get_output_details()}
    for n in range(len(next(iter(feeds.values())))):
        for d in machine.get_input_details():
            x = feeds[d["name"]][n : n + 1]
            perm = layouts["inputs"].get(d["name"], range(x.ndim))
            machine.set_tensor(d["index"], np.ascontiguousarray(x.transpose(perm)))
        machine.invoke()
        for d in machine.get_output_details():
            y = machine.get_tensor(d["index"])
            rows[d["name"]].append(y.transpose(np.argsort(layouts["outputs"].get(d["name"], range(y.ndim)))))
    return {name: np.concatenate(parts) for name, parts in rows.items()}


def run_onnx(model: Model, feeds: dict[str, np.ndarray]) -> dict[str, np.ndarray]:
    options = ort.SessionOptions()
    options.log_severity_level, options.intra_op_num_threads = 3, 1
    session = ort.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])
    names = [s.name for s in model.outputs]
    count = len(next(iter(feeds.values())))
    rows = [session.run(names, {k: v[n : n + 1] for k, v in feeds.items()}) for n in range(count)]
    return {name: np.concatenate([r[i] for r in rows]) for i, name in enumerate(names)}


def sqnr(wanted: np.ndarray, got: np.ndarray) -> float:
    noise = np.square(wanted.astype(np.float64) - got.astype(np.float64)).sum()
    return float("inf") if noise == 0 else 10 * np.log10(np.square(wanted.astype(np.float64)).sum() / noise)


def inputs_of(model: Model, rows: int = 4) -> dict[str, np.ndarray]:
    rng = np.random.default_rng(7)
    return {
        s.name: rng.standard_normal((rows, *(int(d) for d in s.shape[1:]))).astype(s.dtype)
        for s in model.inputs
    }


def operators(data: bytes) -> Counter[str]:
    details = interpreter.Interpreter(
        model_content=data, experimental_op_resolver_type=interpreter.OpResolverType.BUILTIN_REF
    )._get_ops_details()
    return Counter(d["op_name"] for d in details)


def agree(model: Model, least_db: float = 120.0) -> bytes:
    """Export, compare both kernel sets with onnxruntime, import again, compare with the file."""
    data, _ = to_bytes(model)
    feeds = inputs_of(model)
    wanted = run_onnx(model, feeds)
    for reference in (True, False):
        got = run_tflite(data, feeds, reference)
        assert set(got) == set(wanted)
        for name, array in wanted.items():
            assert got[name].shape == array.shape
            assert sqnr(array, got[name]) >= least_db, (name, reference)
    back = from_bytes(data, "back")
    assert [s.name for s in back.inputs] == [s.name for s in model.inputs]
    assert [s.name for s in back.outputs] == [s.name for s in model.outputs]
    perms = read_layouts(data)
    turned = {k: v.transpose(perms["inputs"][k]) for k, v in feeds.items()}
    for name, array in run_onnx(back, turned).items():
        assert sqnr(wanted[name].transpose(perms["outputs"][name]), array) >= least_db, name
    return data


# Networks


def graph(
    nodes: list[onnx.NodeProto], shape: list, constants: dict[str, np.ndarray], outputs=("y",)
) -> Model:
    made = helper.make_graph(
        nodes,
        "net",
        [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
        [helper.make_tensor_value_info(o, TensorProto.FLOAT, None) for o in outputs],
        [numpy_helper.from_array(np.asarray(v), k) for k, v in constants.items()],
    )
    proto = helper.make_model(made, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
    return Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True), "net")


def node(kind: str, inputs: str, output: str = "y", **attributes) -> onnx.NodeProto:
    return helper.make_node(kind, inputs.split(), output.split(), **attributes)


@pytest.fixture(scope="module")
def resnet() -> Model:
    """A small CIFAR ResNet with option-A shortcuts (strided Slice and channel Pad), as torch exports it."""
    import torch
    import torch.nn.functional as F  # noqa: N812
    from torch import nn

    class Block(nn.Module):
        def __init__(self, inputs: int, outputs: int, stride: int) -> None:
            super().__init__()
            self.first = nn.Conv2d(inputs, outputs, 3, stride, 1, bias=False)
            self.norm1 = nn.BatchNorm2d(outputs)
            self.second = nn.Conv2d(outputs, outputs, 3, 1, 1, bias=False)
            self.norm2 = nn.BatchNorm2d(outputs)
            self.pad = outputs // 4 if stride == 2 else 0

        def forward(self, x):
            y = self.norm2(self.second(F.relu(self.norm1(self.first(x)))))
            if self.pad:
                x = F.pad(x[:, :, ::2, ::2], (0, 0, 0, 0, self.pad, self.pad))
            return F.relu(y + x)

    class Net(nn.Module):
        def __init__(self) -> None:
            super().__init__()
            self.stem, self.norm = nn.Conv2d(3, 16, 3, 1, 1, bias=False), nn.BatchNorm2d(16)
            sizes = [(16, 16, 1), (16, 16, 1), (16, 32, 2), (32, 32, 1), (32, 64, 2), (64, 64, 1)]
            self.blocks = nn.Sequential(*(Block(*s) for s in sizes))
            self.last = nn.Linear(64, 10)

        def forward(self, x):
            x = self.blocks(F.relu(self.norm(self.stem(x))))
            return self.last(F.avg_pool2d(x, x.size()[3]).view(x.size(0), -1))

    torch.manual_seed(1)
    net = Net().eval()
    for layer in net.modules():
        if isinstance(layer, nn.BatchNorm2d):
            layer.running_mean.uniform_(-0.3, 0.3)
            layer.running_var.uniform_(0.5, 2.0)
    dims = ({0: torch.export.Dim("n")},)
    program = torch.onnx.export(
        net, (torch.randn(2, *SHAPE),), dynamo=True, opset_version=18, verbose=False, dynamic_shapes=dims
    )
    return simplified(Model.from_proto(program.model_proto, "resnet"))


# Float export


@pytest.mark.filterwarnings("ignore")
def test_torch_resnet_with_option_a_shortcuts(resnet: Model) -> None:
    data = agree(resnet)
    found = operators(data)
    assert found["CONV_2D"] == 13
    assert found["TRANSPOSE"] == 0  # one layout throughout
    assert found["RELU"] == 0  # all fused
    assert read_layouts(data)["inputs"] == {resnet.inputs[0].name: (0, 2, 3, 1)}


RNG = np.random.default_rng(0)


def w(*shape: int) -> np.ndarray:
    return (RNG.standard_normal(shape) / np.sqrt(max(np.prod(shape[1:]), 1))).astype(np.float32)


def i64(*values: int) -> np.ndarray:
    return np.array(values, np.int64)


C4 = [1, 4, 9, 11]
CASES = {
    "conv same": ([node("Conv", "x w b", pads=[1] * 4)], C4, {"w": w(6, 4, 3, 3), "b": w(6)}),
    "conv stride pads": ([node("Conv", "x w", pads=[1] * 4, strides=[2, 2])], C4, {"w": w(6, 4, 3, 3)}),
    "conv dilated": ([node("Conv", "x w", dilations=[2, 2])], C4, {"w": w(6, 4, 3, 3)}),
    "conv auto pad": ([node("Conv", "x w", auto_pad="SAME_LOWER", strides=[2, 2])], C4, {"w": w(6, 4, 4, 4)}),
    "conv groups": ([node("Conv", "x w", group=2)], C4, {"w": w(6, 2, 3, 3)}),
    "conv 1d": ([node("Conv", "x w", pads=[1, 1], strides=[2])], [1, 4, 21], {"w": w(6, 4, 3)}),
    "depthwise x2": ([node("Conv", "x w b", group=4, pads=[1] * 4)], C4, {"w": w(8, 1, 3, 3), "b": w(8)}),
    "transposed": ([node("ConvTranspose", "x w b", strides=[2, 2])], C4, {"w": w(4, 5, 2, 2), "b": w(5)}),
    "transposed cut": ([node("ConvTranspose", "x w", strides=[2, 2], pads=[1] * 4, output_padding=[1, 1])],
                       C4, {"w": w(4, 5, 3, 3)}),
    "batch norm": ([node("BatchNormalization", "x a b c d")], C4,
                   {"a": w(4), "b": w(4), "c": w(4), "d": np.abs(w(4)) + 0.5}),
    "gemm": ([node("Gemm", "x w b", transB=1)], [1, 12], {"w": w(7, 12), "b": w(7)}),
    "matmul add": ([node("MatMul", "x w", "m"), node("Add", "m b")], [1, 5, 12], {"w": w(12, 7), "b": w(7)}),
    "matmul two": ([node("Transpose", "x", "t", perm=[0, 2, 1]), node("MatMul", "x t")], [1, 5, 12], {}),
    "max pool": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], C4, {}),
    "max pool ceil": ([node("MaxPool", "x", kernel_shape=[3, 3], strides=[2, 2], ceil_mode=1)], [1, 4, 8, 10], {}),
    "average pool": ([node("AveragePool", "x", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)], C4, {}),
    "average counted": ([node("AveragePool", "x", kernel_shape=[3, 3], pads=[1] * 4, count_include_pad=1)], C4, {}),
    "global": ([node("GlobalAveragePool", "x", "a"), node("GlobalMaxPool", "x", "m"), node("Add", "a m")], C4, {}),
    "mean": ([node("Relu", "x", "r"), node("ReduceMean", "r a", keepdims=0)], C4, {"a": i64(2, 3)}),
    "reductions": ([node("MaxPool", "x", "p", kernel_shape=[1, 1]), node("ReduceMax", "p a", "q", keepdims=1),
                    node("ReduceSum", "q b", keepdims=0)], C4, {"a": i64(1), "b": i64(3)}),
    "flatten": ([node("Conv", "x w", "c"), node("Flatten", "c", "f"), node("Gemm", "f v")], C4,
                {"w": w(2, 4, 3, 3), "v": w(126, 5)}),
    "softmax": ([node("Conv", "x w", "c"), node("Softmax", "c", axis=1)], C4, {"w": w(5, 4, 1, 1)}),
    "softmax height": ([node("Conv", "x w", "c"), node("Softmax", "c", axis=2)], C4, {"w": w(5, 4, 1, 1)}),
    "activations": ([node("Sigmoid", "x", "a"), node("Tanh", "a", "b"), node("LeakyRelu", "b", "c", alpha=0.1),
                     node("HardSwish", "c", "d"), node("HardSigmoid", "d")], C4, {}),
    "clips": ([node("Conv", "x w", "c"), node("Clip", "c lo hi", "d"), node("Clip", "d lo hi6", "e"),
               node("Add", "e e", "f"), node("Clip", "f lo hi6")], C4,
              {"w": w(5, 4, 1, 1), "lo": np.float32(0), "hi": np.float32(0.7), "hi6": np.float32(6)}),
    "prelu": ([node("PRelu", "x s")], C4, {"s": w(4, 1, 1)}),
    "arithmetic": ([node("Conv", "x w", "c"), node("Mul", "c k", "d"), node("Sub", "d c", "e"), node("Div", "e h", "f"),
                    node("Max", "f c", "g"), node("Min", "g k", "m"), node("Add", "m v")], C4,
                   {"w": w(5, 4, 1, 1), "k": w(5, 1, 1), "h": np.float32(2.5), "v": w(11)}),
    "functions": ([node("Abs", "x", "a"), node("Add", "a one", "b"), node("Sqrt", "b", "c"), node("Log", "c", "d"),
                   node("Exp", "d", "e"), node("Reciprocal", "e", "f"), node("Pow", "f two", "g"), node("Neg", "g")],
                  C4, {"one": np.float32(1), "two": np.float32(2)}),
    "concat slice": ([node("Conv", "x w", "c"), node("Concat", "c x", "d", axis=1), node("Slice", "d s e a t")], C4,
                     {"w": w(5, 4, 1, 1), "s": i64(1, 0), "e": i64(8, 99), "a": i64(1, 3), "t": i64(1, 2)}),
    "split": ([node("Conv", "x w", "c"), node("Split", "c n", "p q", axis=1), node("Mul", "p q")], C4,
              {"w": w(6, 4, 1, 1), "n": i64(3, 3)}),
    "pads": ([node("Pad", "x p", "a"), node("Pad", "a p v", "b"), node("Pad", "b r", "c", mode="reflect"),
              node("Pad", "c n")], C4,
             {"p": i64(0, 1, 0, 2, 0, 0, 3, 0), "v": np.float32(1.5), "r": i64(0, 0, 1, 1, 0, 0, 1, 1),
              "n": i64(0, 0, -1, 0, 0, 0, 0, -2)}),
    "shapes": ([node("Squeeze", "x z", "a"), node("Transpose", "a", "b", perm=[2, 0, 1]), node("Unsqueeze", "b z", "c"),
                node("Reshape", "c r")], C4, {"z": i64(0), "r": i64(1, -1, 6)}),
    "gather": ([node("Gather", "x i", axis=1)], C4, {"i": i64(2, 0, -1)}),
    "resize nearest": ([node("Resize", "x r s", mode="nearest", nearest_mode="floor",
                             coordinate_transformation_mode="asymmetric")], C4,
                       {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}),
    "resize linear": ([node("Resize", "x r s", mode="linear")], C4,
                      {"r": np.zeros(0, np.float32), "s": np.array([1, 1, 2, 2], np.float32)}),
    "blocks": ([node("DepthToSpace", "x", "a", blocksize=2, mode="CRD"), node("SpaceToDepth", "a", blocksize=2)],
                       [1, 8, 4, 6], {}),
    "argmax": ([node("ArgMax", "x", "a", axis=1), node("Cast", "a", to=1)], C4, {}),
    "where": ([node("Greater", "x z", "g"), node("Where", "g x h")], C4, {"z": np.float32(0), "h": np.float32(0.5)}),
    "expand": ([node("Expand", "x s")], [1, 4, 1, 1], {"s": i64(1, 4, 3, 2)}),
}  # fmt: skip


@pytest.mark.parametrize("name", CASES)
def test_every_operator_both_ways(name: str) -> None:
    agree(graph(*CASES[name]))


def test_input_that_is_also_an_output_gets_a_tensor_of_its_own() -> None:
    model = graph([node("Relu", "x"), node("Identity", "x", "z")], C4, {}, ("y", "z"))
    data, _ = to_bytes(model)
    feeds = inputs_of(model)
    assert np.array_equal(run_tflite(data, feeds)["z"], feeds["x"])


def test_weights_start_at_multiples_of_16(resnet: Model) -> None:
    data, _ = to_bytes(resnet)
    for array in resnet.initializers.values():
        if array.ndim == 4:
            assert data.find(array.transpose(0, 2, 3, 1).tobytes()) % 16 == 0


def test_batch_option_binds_the_batch(resnet: Model) -> None:
    data, _ = to_bytes(resnet, batch=3)
    machine = interpreter.Interpreter(model_content=data)
    assert machine.get_input_details()[0]["shape"].tolist() == [3, 32, 32, 3]
    assert machine.get_output_details()[0]["shape"].tolist() == [3, 10]


# Integers and float16


def quantised(model: Model, tmp_path: Path, activation: str, weight: str, per_channel: bool) -> Model:
    from onnxruntime.quantization import CalibrationDataReader, QuantFormat, QuantType, quantize_static

    class Rows(CalibrationDataReader):
        def __init__(self) -> None:
            self.rows = iter([{k: v[n : n + 1] for k, v in inputs_of(model, 8).items()} for n in range(8)])

        def get_next(self):
            return next(self.rows, None)

    onnx.save(model.to_proto(), tmp_path / "float.onnx")
    quantize_static(
        tmp_path / "float.onnx", tmp_path / "int8.onnx", Rows(), quant_format=QuantFormat.QDQ,
        activation_type=QuantType[activation], weight_type=QuantType[weight], per_channel=per_channel,
    )  # fmt: skip
    return Model.from_proto(onnx.load(tmp_path / "int8.onnx"), "int8")


@pytest.mark.parametrize(
    ("activation", "weight", "per_channel"),
    [
        ("QInt8", "QInt8", True),
        ("QInt8", "QInt8", False),
        ("QUInt8", "QInt8", True),
        ("QUInt8", "QUInt8", False),
    ],
)
def test_qdq_becomes_integer_operators(resnet, tmp_path, activation, weight, per_channel) -> None:
    model = quantised(resnet, tmp_path, activation, weight, per_channel)
    data, notes = to_bytes(model)
    assert notes == ()
    found = operators(data)
    assert (found["QUANTIZE"], found["DEQUANTIZE"]) == (1, 1)  # at the ends only
    feeds = inputs_of(model, 24)
    (wanted,) = run_onnx(model, feeds).values()
    (reference,) = run_tflite(data, feeds).values()
    (xnnpack,) = run_tflite(data, feeds, reference=False).values()
    floor = sqnr(reference, xnnpack)  # what two sets of LiteRT's own kernels differ by
    assert sqnr(wanted, reference) >= floor - 1.5
    assert sqnr(wanted, xnnpack) >= floor - 1.5
    flips = (reference.argmax(1) != xnnpack.argmax(1)).mean()
    assert (wanted.argmax(1) != xnnpack.argmax(1)).mean() <= max(flips, 1 / 24)
    (again,) = run_tflite(to_bytes(from_bytes(data, "again"))[0], {
        k: v.transpose(0, 2, 3, 1) for k, v in feeds.items()
    }).values()  # fmt: skip
    assert np.array_equal(again, reference)


def qdq(name: str, scale: float, zero: int, constants: dict[str, np.ndarray]) -> list[onnx.NodeProto]:
    constants |= {f"{name}_s": np.float32(scale), f"{name}_z": np.int8(zero)}
    params = f"{name}_s {name}_z"
    return [
        node("QuantizeLinear", f"{name} {params}", f"{name}_q"),
        node("DequantizeLinear", f"{name}_q {params}", f"{name}_d"),
    ]


def test_operator_without_output_scale_stays_float_and_is_named() -> None:
    constants: dict[str, np.ndarray] = {"k": w(4, 4, 1, 1)}
    nodes = [*qdq("x", 0.02, 3, constants), helper.make_node("Conv", ["x_d", "k"], ["y"], name="lonely")]
    model = graph(nodes, C4, constants)
    data, notes = to_bytes(model)
    assert any("lonely" in n and "float" in n for n in notes)
    assert operators(data)["DEQUANTIZE"] == 1
    feeds = inputs_of(model)
    assert sqnr(run_onnx(model, feeds)["y"], run_tflite(data, feeds)["y"]) > 120


def test_integer_pool_pads_with_the_smallest_integer_and_relu_keeps_the_grid() -> None:
    constants: dict[str, np.ndarray] = {}
    pool = node("MaxPool", "x_d", "m", kernel_shape=[3, 3], strides=[2, 2], pads=[1] * 4)
    nodes = [*qdq("x", 0.02, 100, constants), pool, node("Relu", "m", "r"), *qdq("r", 0.02, 100, constants),
             node("Identity", "r_d", "y")]  # fmt: skip
    model = graph(nodes, [1, 4, 8, 10], constants)
    data, _ = to_bytes(model)
    feeds = inputs_of(model)
    assert operators(data)["PADV2"] == 1, operators(data)
    assert np.array_equal(run_onnx(model, feeds)["y"], run_tflite(data, feeds)["y"])


def test_float16_weights_stay_small(resnet: Model) -> None:
    proto = resnet.to_proto()
    casts = []
    for tensor in proto.graph.initializer:
        if tensor.data_type == TensorProto.FLOAT:
            name = tensor.name
            small = numpy_helper.to_array(tensor).astype(np.float16)
            tensor.CopyFrom(numpy_helper.from_array(small, f"{name}_half"))
            casts.append(node("Cast", f"{name}_half", name, to=TensorProto.FLOAT))
    nodes = [*casts, *proto.graph.node]
    del proto.graph.node[:]
    proto.graph.node.extend(nodes)
    model = Model.from_proto(proto, "half")
    data = agree(model)
    assert len(data) < 0.6 * len(to_bytes(resnet)[0])
    kept = [a for a in from_bytes(data, "back").initializers.values() if a.ndim == 4]
    assert kept
    assert {a.dtype for a in kept} == {np.dtype("float16")}


def test_float16_arithmetic_becomes_float32_with_a_note() -> None:
    nodes = [
        node("Cast", "x", "h", to=TensorProto.FLOAT16),
        node("Conv", "h w", "c"),
        node("Cast", "c", to=1),
    ]
    model = graph(nodes, C4, {"w": w(5, 4, 3, 3).astype(np.float16)})
    data, notes = to_bytes(model)
    assert any("arithmetic in float32" in n for n in notes)
    feeds = inputs_of(model)
    assert sqnr(run_onnx(model, feeds)["y"], run_tflite(data, feeds)["y"]) > 60


# What travels with the file


def test_preprocessing_and_history_travel(resnet: Model, tmp_path: Path) -> None:
    from dataclasses import replace

    from dlas.graph.model import Step

    told = replace(
        resnet, preprocessing=Preprocessing(32, 32, mean=(0.5,), layout="NCHW"), history=(Step("prune"),)
    )
    written = save_model(told, tmp_path / "net.tflite")
    assert written.path == tmp_path / "net.tflite"
    assert [p.name for p in tmp_path.iterdir()] == ["net.tflite"]
    back = load_model(tmp_path / "net.tflite")
    assert back.preprocessing == Preprocessing(32, 32, mean=(0.5,), layout="NHWC")  # the file's input is NHWC
    assert [s.action for s in back.history] == ["prune", "import"]
    assert back.source["format"] == "tflite"
    assert back.inputs[0].shape == (1, 32, 32, 3)


def test_open_batch_is_read_as_such(resnet: Model) -> None:
    from dlas.graph.formats.tflite.flat import pack, schema

    data, _ = to_bytes(resnet)
    raw = schema().ModelT.InitFromPackedBuf(data, 0)
    for i in (*raw.subgraphs[0].inputs, *raw.subgraphs[0].outputs):
        tensor = raw.subgraphs[0].tensors[i]
        tensor.shapeSignature = np.array([-1, *tensor.shape[1:]], np.int32)
    opened = pack(raw)
    assert from_bytes(opened, "n", dynamic_batch=False).inputs[0].shape[0] == 1
    model = from_bytes(opened, "n")
    assert model.inputs[0].is_dynamic
    x = inputs_of(resnet, 5)[resnet.inputs[0].name].transpose(0, 2, 3, 1)
    session = ort.InferenceSession(model.to_bytes(), providers=["CPUExecutionProvider"])
    together = session.run(None, {model.inputs[0].name: np.ascontiguousarray(x)})[0]
    (alone,) = run_onnx(model, {model.inputs[0].name: x}).values()
    assert sqnr(alone, together) > 120


# Refusals


def test_every_missing_operator_is_named_once() -> None:
    nodes = [node("Acosh", "x", "a"), node("Acosh", "a", "b"), node("Det", "b")]
    with pytest.raises(UnsupportedError, match=r"Acosh \(2\), Det \(1\)"):
        to_bytes(graph(nodes, [1, 4, 4], {}))


def test_missing_tflite_operators_are_named_with_their_count(resnet: Model) -> None:
    from dlas.graph.formats.tflite.flat import pack, schema

    raw = schema().ModelT.InitFromPackedBuf(to_bytes(resnet)[0], 0)
    for code in raw.operatorCodes:
        if code.builtinCode == schema().BuiltinOperator.PAD:
            code.builtinCode = schema().BuiltinOperator.WHILE
            code.deprecatedBuiltinCode = schema().BuiltinOperator.WHILE
        if code.builtinCode == schema().BuiltinOperator.CONV_2D:
            code.builtinCode = code.deprecatedBuiltinCode = schema().BuiltinOperator.CUSTOM
            code.customCode = "Mine"
    with pytest.raises(UnsupportedError, match=r"CUSTOM 'Mine' \(13\), WHILE \(\d\)"):
        from_bytes(pack(raw), "x")


def test_wrong_identifier_and_empty_constant_data(tmp_path: Path) -> None:
    path = tmp_path / "no.tflite"
    path.write_bytes(b"PK\x03\x04" * 20)
    with pytest.raises(ModelError, match="no tflite network"):
        load_model(path)
    with pytest.raises(ModelError, match="TFL3"):
        from_bytes(b"\x1c\0\0\0TFL2" + bytes(40), "x")


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda g, m: setattr(g.tensors[0], "buffer", 9999), "buffer 9999"),
        (lambda g, m: setattr(g.operators[0], "inputs", np.array([0, 9999], np.int32)), "tensor 9999"),
        (lambda g, m: setattr(g.operators[0], "opcodeIndex", 77), "operator code 77"),
        (lambda g, m: setattr(g, "outputs", np.array([-3], np.int32)), "tensor -3"),
        (lambda g, m: setattr(g, "operators", g.operators[::-1]), "before anything computes it"),
        (lambda g, m: [setattr(t, "shape", t.shape * 3) for t in g.tensors], "bytes"),
        (lambda g, m: setattr(m, "subgraphs", None), "no subgraph"),
    ],
)
def test_inconsistent_files_are_refused(resnet: Model, change, message: str) -> None:
    from dlas.graph.formats.tflite.flat import pack, schema

    raw = schema().ModelT.InitFromPackedBuf(to_bytes(resnet)[0], 0)
    change(raw.subgraphs[0], raw)
    with pytest.raises(ModelError, match=message):
        from_bytes(pack(raw), "x")


def test_nan_weights_are_refused() -> None:
    model = graph([node("Conv", "x w")], C4, {"w": w(5, 4, 3, 3)})
    data, _ = to_bytes(model)
    spot = data.find(model.initializers["w"].transpose(0, 2, 3, 1).tobytes())
    broken = data[:spot] + np.float32(np.nan).tobytes() + data[spot + 4 :]
    with pytest.raises(ModelError, match="NaN"):
        from_bytes(broken, "x")


def test_damaged_bytes_raise_nothing_but_our_errors() -> None:
    nodes = [node("Conv", "x w", "c", pads=[1] * 4), node("MaxPool", "c", "m", kernel_shape=[2, 2], strides=[2, 2]),
             node("Flatten", "m", "f"), node("Gemm", "f v", "g"), node("Softmax", "g")]  # fmt: skip
    data, _ = to_bytes(graph(nodes, [1, 4, 8, 8], {"w": w(3, 4, 3, 3), "v": w(48, 5)}))
    rng = random.Random(3)
    refused = 0
    for n in range(0, len(data), max(len(data) // 150, 1)):
        with pytest.raises(ModelError):
            from_bytes(data[:n], "x")
    for _ in range(250):
        broken = bytearray(data)
        for _ in range(rng.choice([1, 2, 8])):
            broken[rng.randrange(len(data))] = rng.choice([0, 127, 128, 255, rng.randrange(256)])
        try:
            from_bytes(bytes(broken), "x")
        except DlasError:
            refused += 1
    assert refused > 20


def test_damaged_metadata_is_refused(resnet: Model) -> None:
    data, _ = to_bytes(resnet)
    assert data.count(b'"layouts"') == 1
    with pytest.raises(ModelError):
        read_layouts(data.replace(b'{"history"', b'["history"'))
    with pytest.raises(ModelError):
        read_layouts(data.replace(b"[0, 2, 3, 1]", b'{"a": "b"} '))
    with pytest.raises(ModelError):
        read_layouts(b"nothing")


def test_layout_algebra() -> None:
    x = RNG.standard_normal((2, 3, 4, 5))
    held, wanted, moved = (0, 2, 3, 1), (3, 1, 0, 2), (1, 3, 0, 2)
    assert np.array_equal(x.transpose(held).transpose(layout.between(held, wanted)), x.transpose(wanted))
    y = x.transpose(moved)
    assert np.array_equal(y.transpose(layout.after_transpose(held, moved)), x.transpose(held))
    assert not layout.moves_data((1, 7, 1, 1), (0, 2, 3, 1))
    assert layout.moves_data((1, 7, 2, 1), (0, 2, 3, 1))
    assert padding.same_padding(32, 3, 2) == (0, 1)


def test_a_file_of_our_own_is_read_again_and_again(tmp_path: Path) -> None:
    # Tensors of a written file keep the names that the reader gave to values before: they must not be given again.
    current = models.residual_quantized()
    x = models.images(2)
    expected = predict(current, x)
    for turn in range(3):
        path = tmp_path / f"turn{turn}.tflite"
        save_model(current, path)
        current = load_model(path)
    found = predict(current, adapt_rows(x, current))
    assert np.abs(found - expected).max() <= 0.05 * np.abs(expected).max()
