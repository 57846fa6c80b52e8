"""The delegate in LiteRT's interpreter: bytes of the reference kernels, a report, and failures that are told."""

from __future__ import annotations

import gc
import shutil
import weakref
from pathlib import Path
from typing import Any, ClassVar

import numpy as np
import onnx
import pytest
from onnx import TensorProto, helper, numpy_helper

from dlas.core.errors import DlasError, OptionError, UnsupportedError
from dlas.graph.formats.tflite import to_bytes
from dlas.graph.formats.tflite.flat import pack, schema
from dlas.graph.model import OPSET, Model
from dlas.hardware.accelerator import Accelerator, Cycles, DoesNotFitError, Layer
from dlas.hardware.accelerators.vm import Vm
from dlas.kernels.kernel import Node
from dlas.kernels.reference.requantize import scale_sum
from dlas.runtime.delegate.build import library
from dlas.runtime.delegate.delegate import LiteRtDelegate, litert_delegate

litert = pytest.importorskip("ai_edge_litert.interpreter")
pytestmark = pytest.mark.skipif(shutil.which("g++") is None, reason="there is no g++")
REFERENCE = litert.OpResolverType.BUILTIN_REF
COMPILED: list[Path] = []


@pytest.fixture(autouse=True)
def one_cache(tmp_path_factory: pytest.TempPathFactory, monkeypatch: pytest.MonkeyPatch) -> None:
    """The delegate is compiled once for all tests of this file."""
    if not COMPILED:
        COMPILED.append(tmp_path_factory.mktemp("compiled"))
    monkeypatch.setenv("DLAS_CACHE", str(COMPILED[0]))


class Net:
    """An int8 network of float operators between conversions, as dlas exports it to TFLite."""

    def __init__(self, seed: int = 0) -> None:
        self.rng = np.random.default_rng(seed)
        self.nodes: list[onnx.NodeProto] = []
        self.constants: list[onnx.TensorProto] = []

    def add(self, op: str, inputs: list[str], output: str, **attributes: Any) -> str:
        self.nodes.append(helper.make_node(op, inputs, [output], **attributes))
        return output

    def constant(self, name: str, value: Any) -> str:
        self.constants.append(numpy_helper.from_array(np.asarray(value), name))
        return name

    def grid(self, name: str, x: str, scale: float, zero: int) -> str:
        both = [
            self.constant(f"{name}/scale", np.float32(scale)),
            self.constant(f"{name}/zero", np.int8(zero)),
        ]
        self.add("QuantizeLinear", [x, *both], f"{name}/q")
        return self.add("DequantizeLinear", [f"{name}/q", *both], name)

    def weights(self, name: str, shape: tuple[int, ...], axis: int, x_scale: float) -> list[str]:
        """Stored weights with a scale per channel, and a bias."""
        scales = self.rng.uniform(0.002, 0.01, shape[axis]).astype(np.float32)
        stored = {
            "w": (self.rng.integers(-127, 128, shape).astype(np.int8), scales, axis),
            "b": (
                self.rng.integers(-900, 900, shape[axis]).astype(np.int32),
                np.float32(x_scale) * scales,
                0,
            ),
        }
        for key, (value, step, over) in stored.items():
            zero = np.zeros(len(step), value.dtype)
            inputs = [
                self.constant(f"{name}/{key}{i}", v)
                for i, v in enumerate((value, step.astype(np.float32), zero))
            ]
            self.add("DequantizeLinear", inputs, f"{name}/{key}", axis=over)
        return [f"{name}/w", f"{name}/b"]

    def bytes(self, shape: list[int], output: str, made: list[int]) -> bytes:
        graph = helper.make_graph(
            self.nodes,
            "net",
            [helper.make_tensor_value_info("x", TensorProto.FLOAT, shape)],
            [helper.make_tensor_value_info(output, TensorProto.FLOAT, made)],
            self.constants,
        )
        proto = helper.make_model(graph, opset_imports=[helper.make_opsetid("", OPSET)], ir_version=10)
        model = Model.from_proto(onnx.shape_inference.infer_shapes(proto, data_prop=True), "net")
        return to_bytes(model)[0]


def small() -> bytes:
    """A convolution with a bound, one per channel, a transposed one, a dense layer."""
    n = Net()
    x = n.grid("given", "x", 0.03, 5)
    wide = n.weights("conv", (6, 3, 3, 3), 0, 0.03)
    y = n.add("Conv", [x, *wide], "c", strides=[2, 2], pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    zero, six = n.constant("zero", np.float32(0)), n.constant("six", np.float32(6))
    x = n.grid("conv/y", n.add("Clip", [y, zero, six], "r"), 0.03, -128)
    each = n.weights("each", (6, 1, 3, 3), 0, 0.03)
    y = n.add("Conv", [x, *each], "d", group=6, pads=[1, 1, 1, 1], kernel_shape=[3, 3])
    x = n.grid("each/y", y, 0.05, 3)
    up = n.weights("up", (6, 2, 3, 3), 1, 0.05)
    y = n.add("ConvTranspose", [x, *up], "t", strides=[2, 2], kernel_shape=[3, 3])
    x = n.grid("up/y", y, 0.1, -9)
    x = n.grid("flat/y", n.add("Flatten", [x], "f"), 0.1, -9)
    dense = n.weights("dense", (7, 2 * 11 * 11), 0, 0.1)
    n.grid("y", n.add("Gemm", [x, *dense], "g", transB=1), 0.4, 1)
    return n.bytes([1, 3, 9, 9], "y", [1, 7])


@pytest.fixture(scope="module")
def content() -> bytes:
    return small()


def interpreter(content: bytes, *delegates: LiteRtDelegate, rows: int = 1) -> Any:
    made = litert.Interpreter(
        model_content=content,
        experimental_delegates=list(delegates),
        experimental_op_resolver_type=REFERENCE,
        num_threads=1,
    )
    if rows > 1:
        given = made.get_input_details()[0]
        made.resize_tensor_input(given["index"], [rows, *given["shape"][1:]])
    made.allocate_tensors()
    return made


def give(machine: Any, seed: int = 0) -> None:
    given = machine.get_input_details()[0]
    x = np.random.default_rng(seed).normal(0, 1, given["shape"]).astype(np.float32)
    machine.set_tensor(given["index"], x)


def result(machine: Any, seed: int = 0) -> np.ndarray:
    give(machine, seed)
    machine.invoke()
    return np.array(machine.get_tensor(machine.get_output_details()[0]["index"]))


def test_the_bytes_are_those_of_the_reference_kernels(content: bytes) -> None:
    delegate = litert_delegate("vm:units=1")
    reference, machine = interpreter(content), interpreter(content, delegate)
    for seed in range(3):
        expected = result(reference, seed)
        assert len(np.unique(expected)) > 3
        np.testing.assert_array_equal(result(machine, seed), expected)


def test_it_reports_what_was_offloaded_and_why_the_rest_was_not(content: bytes) -> None:
    delegate = litert_delegate("vm:units=1")
    machine = interpreter(content, delegate)
    result(machine)
    conv, each, up, dense = delegate.layers
    assert [layer.op for layer in delegate.layers] == [
        "CONV_2D",
        "DEPTHWISE_CONV_2D",
        "TRANSPOSE_CONV",
        "FULLY_CONNECTED",
    ]
    assert [layer.reason for layer in delegate.layers] == [
        "",
        "it is depthwise",
        "vm does not compute TRANSPOSE_CONV",
        "",
    ]
    assert (conv.macs, each.macs) == (5 * 5 * 6 * 27, 5 * 5 * 6 * 9)
    assert (up.macs, dense.macs) == (5 * 5 * 6 * 2 * 9, 7 * 242)
    assert conv.cycles.total > conv.macs / 64 / 4
    assert (each.cycles.total, up.cycles.total) == (0, 0)
    assert delegate.cycles.total == conv.cycles.total + dense.cycles.total
    lines = delegate.report().splitlines()
    assert f"{conv.cycles.total} cycles" in lines[0]
    assert lines[1].endswith("LiteRT, it is depthwise")


def test_back_from_an_input_of_another_size(content: bytes) -> None:
    delegate = litert_delegate("vm:units=1")
    machine = interpreter(content, delegate)
    one = delegate.layers[0].macs
    given = machine.get_input_details()[0]
    machine.resize_tensor_input(given["index"], [1, 11, 9, 3])
    with pytest.raises((RuntimeError, ValueError)):  # the dense layer takes 242 values
        machine.allocate_tensors()
    machine.resize_tensor_input(given["index"], [1, 9, 9, 3])
    machine.allocate_tensors()
    np.testing.assert_array_equal(result(machine), result(interpreter(content)))
    assert delegate.layers[0].macs == one


def convolution() -> bytes:
    n = Net(1)
    x = n.grid("given", "x", 0.03, 5)
    y = n.add(
        "Conv", [x, *n.weights("conv", (5, 3, 3, 3), 0, 0.03)], "c", kernel_shape=[3, 3], dilations=[2, 1]
    )
    n.grid("y", y, 0.05, 0)
    return n.bytes([1, 3, 9, 9], "y", [1, 5, 5, 7])


def test_an_input_that_the_weights_do_not_take() -> None:
    delegate = litert_delegate("vm:units=1")
    machine = interpreter(convolution(), delegate)
    given = machine.get_input_details()[0]
    machine.resize_tensor_input(given["index"], [1, 9, 2, 3])
    with pytest.raises(RuntimeError, match=r"CONV_2D .* does not take an input of shape \[1, 9, 2, 3\]"):
        machine.allocate_tensors()


def test_more_rows_than_the_file_says() -> None:
    content = convolution()
    delegate = litert_delegate("vm:units=1")
    machine = interpreter(content, delegate, rows=3)
    found = result(machine)
    assert len(found) == 3
    np.testing.assert_array_equal(found, result(interpreter(content, rows=3)))
    assert delegate.layers[0].macs == 3 * 35 * 5 * 27


class Upward(Accelerator):
    """Transposed convolutions, by adding the filter of every pixel."""

    name = "upward"
    ops: ClassVar[tuple[str, ...]] = ("QConvTranspose",)
    multipliers = 1

    def design(self) -> Any:
        raise NotImplementedError

    def refuses(self, node: Node) -> str:
        return ""

    def layer(self, node: Node) -> Layer:
        return _Upward(node)

    def trial(self, random: np.random.Generator) -> Any:
        raise NotImplementedError


class _Upward(Layer):
    def __init__(self, node: Node) -> None:
        self.node = node

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        a, w, b = self.node.attributes, self.node.constant(1), self.node.constant(2)
        assert w is not None
        assert b is not None
        n, c, height, width = self.node.output.shape
        (sh, sw), (top, left, bottom, right) = a["strides"], a["pads"]
        sums = np.zeros((n, c, height + top + bottom, width + left + right), np.int64)
        x = inputs.astype(np.int64) - a["x_zero_point"]
        for i, j in np.ndindex(*x.shape[2:]):
            part = np.einsum("nc,cohw->nohw", x[:, :, i, j], w.astype(np.int64))
            sums[:, :, i * sh : i * sh + w.shape[2], j * sw : j * sw + w.shape[3]] += part
        sums = sums[:, :, top : top + height, left : left + width] + b.reshape(-1, 1, 1)
        factors = [np.array(a[key]).reshape(-1, 1, 1) for key in ("multipliers", "shifts")]
        found = scale_sum(sums, *factors, a["rounding"]) + a["y_zero_point"]
        return np.clip(found, a["act_min"], a["act_max"]).astype(np.int8), Cycles({"total": self.node.macs})


def test_transposed_convolutions(content: bytes) -> None:
    delegate = litert_delegate(Upward())
    machine = interpreter(content, delegate)
    np.testing.assert_array_equal(result(machine), result(interpreter(content)))
    assert [layer.reason for layer in delegate.layers][2] == ""
    assert delegate.cycles.total == 5 * 5 * 6 * 2 * 9


def test_a_result_of_another_size_than_the_file_says_is_refused() -> None:
    n = Net()
    x = n.grid("given", "x", 0.03, 5)
    up = n.weights("up", (3, 2, 3, 3), 1, 0.03)
    n.grid("y", n.add("ConvTranspose", [x, *up], "t", strides=[2, 2], kernel_shape=[3, 3]), 0.1, -9)
    s = schema()
    tree = s.ModelT.InitFromObj(s.Model.GetRootAs(n.bytes([1, 3, 4, 4], "y", [1, 2, 9, 9]), 0))
    for tensor in tree.subgraphs[0].tensors:
        if list(tensor.shape) == [1, 9, 9, 2]:
            tensor.shape = np.array([1, 9, 10, 2], np.int32)  # the operator's own operand still says 9
    delegate = litert_delegate(Upward())
    machine = interpreter(pack(tree), delegate)
    give(machine)
    with pytest.raises(RuntimeError, match="another size for a transposed convolution than its file says"):
        machine.invoke()


class Faulty(Vm):
    """Works until it is told not to."""

    name = "faulty"
    fault: ClassVar[BaseException | None] = None
    preparing: ClassVar[BaseException | None] = None

    def layer(self, node: Node) -> Layer:
        if self.preparing is not None:
            raise self.preparing
        return _Faulty(super().layer(node))


class _Faulty(Layer):
    def __init__(self, layer: Layer) -> None:
        self.whole = layer

    def run(self, inputs: np.ndarray, level: str) -> tuple[np.ndarray, Cycles]:
        if Faulty.fault is not None:
            raise Faulty.fault
        return self.whole.run(inputs, level)


def test_a_failure_in_the_middle_is_told_and_the_interpreter_goes_on(
    content: bytes, monkeypatch: pytest.MonkeyPatch
) -> None:
    delegate = litert_delegate(Faulty(units=1))
    machine = interpreter(content, delegate)
    expected = result(machine)
    monkeypatch.setattr(Faulty, "fault", DlasError("the array is on fire"))
    give(machine)
    with pytest.raises(DlasError, match=r"^the array is on fire$"):
        delegate.invoke(machine)
    with pytest.raises(RuntimeError, match="the array is on fire"):
        machine.invoke()
    with pytest.raises(DlasError, match="the array is on fire"):
        delegate.check()
    monkeypatch.setattr(Faulty, "fault", ZeroDivisionError("by 0"))
    with pytest.raises(DlasError, match="ZeroDivisionError: by 0") as caught:
        delegate.invoke(machine)
    assert isinstance(caught.value.__cause__, ZeroDivisionError)
    monkeypatch.setattr(Faulty, "fault", KeyboardInterrupt())
    with pytest.raises(KeyboardInterrupt):
        delegate.invoke(machine)
    monkeypatch.setattr(Faulty, "fault", None)
    np.testing.assert_array_equal(result(machine), expected)
    delegate.check()


def test_a_failure_while_layers_are_prepared_is_told(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "preparing", DlasError("no such layer"))
    delegate = litert_delegate(Faulty(units=1))
    with pytest.raises((RuntimeError, ValueError), match="no such layer"):
        interpreter(content, delegate)
    with pytest.raises(DlasError, match=r"^no such layer$"):
        delegate.check()


def test_a_layer_that_does_not_fit_stays(content: bytes, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Faulty, "preparing", DoesNotFitError("weight buffer", 9000, 4096))
    delegate = litert_delegate(Faulty(units=1))
    machine = interpreter(content, delegate)
    assert delegate.layers[0].reason == "the weight buffer would need 9000 bytes, it has 4096"
    np.testing.assert_array_equal(result(machine), result(interpreter(content)))


def test_memory_is_given_back_in_either_order(content: bytes) -> None:
    for first in ("delegate", "interpreter"):
        gc.disable()
        try:
            delegate = litert_delegate("vm:units=1")
            machine = interpreter(content, delegate)
            gone = weakref.ref(delegate)
            if first == "delegate":
                del delegate
                assert result(machine).any()
                del machine
            else:
                del machine
                assert gone() is delegate
                del delegate
            assert gone() is None
        finally:
            gc.enable()


def test_one_delegate_serves_two_interpreters(content: bytes) -> None:
    delegate = litert_delegate("vm:units=1")
    first, second = interpreter(content, delegate), interpreter(convolution(), delegate)
    result(second)
    np.testing.assert_array_equal(result(first), result(interpreter(content)))
    assert len(delegate.layers) == 5


def test_float_networks_stay() -> None:
    n = Net()
    w = n.constant("w", np.ones((4, 3, 1, 1), np.float32))
    n.add("Conv", ["x", w], "y", kernel_shape=[1, 1])
    content = n.bytes([1, 3, 5, 5], "y", [1, 4, 5, 5])
    delegate = litert_delegate("vm:units=1")
    result(interpreter(content, delegate))
    assert delegate.layers[0].reason == "it computes float32 to float32, not integers of 8 bits"


def test_another_layout_of_litert_is_refused() -> None:
    with pytest.raises(
        UnsupportedError, match=r"the delegate does not fit ai-edge-litert .*input 0 is read as"
    ):
        library(["-DDLAS_SHIFTED_TENSOR"])


def test_without_a_compiler(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("DLAS_CACHE", str(tmp_path))
    monkeypatch.setenv("PATH", "")
    with pytest.raises(UnsupportedError, match="there is no g\\+\\+") as caught:
        litert_delegate("vm")
    assert "\n" not in str(caught.value)


def test_an_unknown_level() -> None:
    with pytest.raises(OptionError, match="one of tlm, rtl"):
        litert_delegate("vm", "gate")
