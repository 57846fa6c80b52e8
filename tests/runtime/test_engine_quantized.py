"""Float operators between conversions become operators on bytes."""

from __future__ import annotations

import numpy as np
import pytest

from dlas.core.errors import OptionError
from dlas.kernels.extension import native
from dlas.kernels.kernel import Context, Node, Operand
from dlas.kernels.reference import quantized
from dlas.kernels.reference.quantized_transpose import transpose_conv2d
from dlas.kernels.reference.requantize import Requantization
from dlas.runtime.engine.network import Call, Network
from dlas.runtime.engine.program import Bound, Program
from dlas.runtime.engine.quantized import lower_quantized
from dlas.runtime.engine.select import candidates, choose

needs_native = pytest.mark.skipif(native() is None, reason="the native kernels were not built")
WINDOW = {"kernel_shape": (3, 3), "strides": (2, 2), "dilations": (1, 1), "pads": (0, 0, 0, 0), "group": 1}


class Builder:
    """A network of conversions and float operators, as an importer writes it."""

    def __init__(self) -> None:
        self.calls: list[Call] = []

    def add(
        self, op: str, inputs: dict[str, Operand], output: str, made: Operand, **attributes: object
    ) -> Operand:
        node = Node(op, f"{op} {output}", attributes, tuple(inputs.values()), (made,))
        self.calls.append(Call(node, tuple(inputs), (output,)))
        return made

    def grid(self, scale: float | np.ndarray, zero: int, dtype: str) -> dict[str, Operand]:
        zeros = np.full(np.shape(scale), zero, dtype)
        return {
            f"s{len(self.calls)}": Operand.of(np.float32(scale)),
            f"z{len(self.calls)}": Operand.of(zeros),
        }

    def dequantize(
        self, name: str, x: Operand, scale: float | np.ndarray, zero: int = 0, **more: object
    ) -> Operand:
        inputs = {name: x} | self.grid(np.asarray(scale, np.float32), zero, x.dtype)
        return self.add("DequantizeLinear", inputs, f"{name}/real", Operand(x.shape), **more)

    def quantize(self, name: str, x: Operand, result: str, scale: float, zero: int) -> Operand:
        inputs = {name: x} | self.grid(np.asarray(scale, np.float32), zero, "int8")
        return self.add("QuantizeLinear", inputs, result, Operand(x.shape, "int8"))


def padded_convolution(bias_scale: float = 1.0) -> tuple[Network, np.ndarray, np.ndarray, np.ndarray]:
    """Transposed to channels first, padded, convolved, clipped: bytes in, bytes out."""
    rng = np.random.default_rng(0)
    b = Builder()
    w = rng.integers(-127, 128, (20, 5, 3, 3)).astype(np.int8)
    bias = rng.integers(-500, 500, 20).astype(np.int32)
    steps = rng.uniform(0.001, 0.01, 20).astype(np.float32)
    image = b.dequantize("x", Operand((1, 8, 8, 5), "int8"), 0.1, 7)
    first = b.add("Transpose", {"x/real": image}, "t", Operand((1, 5, 8, 8)), perm=(0, 3, 1, 2))
    b.dequantize("tq", b.quantize("t", first, "tq", 0.1, 7), 0.1, 7)
    pads = Operand.of(np.array([0, 0, 0, 0, 0, 0, 1, 1]))
    inputs = {"tq/real": first, "pads": pads, "value": Operand.of(np.float32(0))}
    frame = b.add("Pad", inputs, "p", Operand((1, 5, 9, 9)), mode="constant")
    b.dequantize("pq", b.quantize("p", frame, "pq", 0.1, 7), 0.1, 7)
    b.dequantize("w", Operand.of(w), steps, axis=0)
    b.dequantize("b", Operand.of(bias), np.float32(0.1) * steps * np.float32(bias_scale), axis=0)
    inputs = {"pq/real": frame, "w/real": Operand(w.shape), "b/real": Operand((20,))}
    y = b.add("Conv", inputs, "c", Operand((1, 20, 4, 4)), **WINDOW)
    limits = {"low": Operand.of(np.float32(0)), "high": Operand.of(np.float32(6))}
    y = b.add("Clip", {"c": y} | limits, "r", y)
    out = b.quantize("r", y, "y", 0.05, -3)
    network = Network("n", tuple(b.calls), {"x": Operand((1, 8, 8, 5), "int8")}, {"y": out})
    x = rng.integers(-128, 128, (1, 8, 8, 5)).astype(np.int8)
    return network, x, w, bias


def run(network: Network, x: np.ndarray) -> np.ndarray:
    context = Context.here(1)
    program = Program(network, choose(network, candidates(network, context, [], exact=True)), context)
    (operand,) = network.outputs.values()
    y = np.empty(operand.shape, operand.dtype)
    program.bind(Bound([x], [y]))
    program.run()
    return y


def test_a_convolution_with_all_around_it_becomes_one_operator():
    network, *_ = padded_convolution()
    found = lower_quantized(network)
    assert dict(found.count()) == {"QImage": 1, "QConv": 1}
    (conv,) = (call.node for call in found.calls if call.node.op == "QConv")
    assert conv.attributes["pads"] == (0, 0, 1, 1)
    assert (conv.attributes["act_min"], conv.attributes["act_max"]) == (-3, 117)
    assert conv.attributes["x_zero_point"] == 7
    assert conv.operand(0) == Operand((1, 5, 8, 8), "int8")


@needs_native
@pytest.mark.parametrize("rounding", ["double", "single", "xnnpack"])
def test_its_bytes_are_those_of_the_reference(rounding: str):
    network, x, w, bias = padded_convolution()
    (weights,) = (call.node for call in network.calls if call.inputs[0] == "w")
    steps = weights.constant(1)
    assert steps is not None
    factors = Requantization.of(0.1, steps, 0.05, -3, activation="relu6", rounding=rounding)
    expected = quantized.conv2d(
        x, w.transpose(0, 2, 3, 1), bias, factors, x_zero_point=7, strides=(2, 2), pads=(0, 0, 1, 1)
    )
    found = run(lower_quantized(network, rounding), x)
    np.testing.assert_array_equal(found.transpose(0, 2, 3, 1), expected)


def test_a_bias_in_other_units_stays_real():
    network, *_ = padded_convolution(bias_scale=2.0)
    counts = lower_quantized(network).count()
    assert counts["Conv"] == 1
    assert counts["QConv"] == 0
    assert counts["Quantize"] == 1


def test_a_network_without_conversions_is_left_alone():
    node = Node("Relu", "r", {}, (Operand((1, 3)),), (Operand((1, 3)),))
    network = Network("n", (Call(node, ("x",), ("y",)),), {"x": Operand((1, 3))}, {"y": Operand((1, 3))})
    assert lower_quantized(network) is network


def test_an_unknown_rounding_is_refused():
    with pytest.raises(OptionError, match="double"):
        lower_quantized(padded_convolution()[0], "half")


@needs_native
def test_another_scale_and_a_relu_are_tables():
    b = Builder()
    real = b.dequantize("x", Operand((1, 4), "int8"), 0.1, 2)
    b.add("Relu", {"x/real": real}, "r", Operand((1, 4)))
    out = b.quantize("r", Operand((1, 4)), "y", 0.3, -5)
    network = lower_quantized(Network("n", tuple(b.calls), {"x": Operand((1, 4), "int8")}, {"y": out}))
    assert dict(network.count()) == {"QTable": 1}
    found = run(network, np.array([[-128, 2, 32, 127]], np.int8))
    np.testing.assert_array_equal(found, [[-5, -5, 5, 37]])


def upsampling(
    kernel: int = 3, act: str = ""
) -> tuple[Network, np.ndarray, np.ndarray, np.ndarray, np.ndarray]:
    """A transposed convolution between conversions, and an activation behind it with one of its own."""
    rng = np.random.default_rng(0)
    b = Builder()
    w = rng.integers(-127, 128, (6, 5, kernel, kernel)).astype(np.int8)
    bias = rng.integers(-500, 500, 5).astype(np.int32)
    steps = rng.uniform(0.001, 0.01, 5).astype(np.float32)
    x = b.dequantize("x", Operand((1, 6, 4, 4), "int8"), 0.1, 7)
    b.dequantize("w", Operand.of(w), steps, axis=1)
    b.dequantize("b", Operand.of(bias), np.float32(0.1) * steps, axis=0)
    window = {
        "kernel_shape": (kernel,) * 2,
        "strides": (2, 2),
        "dilations": (1, 1),
        "pads": (0, 0, 1, 1),
        "group": 1,
    }
    size = 3 * 2 + kernel - 1
    inputs = {"x/real": x, "w/real": Operand(w.shape), "b/real": Operand((5,))}
    out = b.quantize(
        "t", b.add("ConvTranspose", inputs, "t", Operand((1, 5, size, size)), **window), "y", 0.05, -3
    )
    if act:
        b.dequantize("y", out, 0.05, -3)
        more = {"alpha": 0.2} if act == "LeakyRelu" else {}
        real = b.add(act, {"y/real": Operand(out.shape)}, "a", Operand(out.shape), **more)
        out = b.quantize("a", real, "z", 1 / 128, 0)
    name = "z" if act else "y"
    network = Network("n", tuple(b.calls), {"x": Operand((1, 6, 4, 4), "int8")}, {name: out})
    return network, rng.integers(-128, 128, (1, 6, 4, 4)).astype(np.int8), w, bias, steps


@needs_native
@pytest.mark.parametrize("rounding", ["double", "single", "xnnpack"])
def test_a_transposed_convolution_becomes_one_operator(rounding: str):
    network, x, w, bias, steps = upsampling()
    lowered = lower_quantized(network, rounding)
    assert dict(lowered.count()) == {"QConvTranspose": 1}
    assert lowered.calls[0].node.macs == x.size * 5 * 9
    factors = Requantization.of(0.1, steps, 0.05, -3, rounding=rounding)
    expected = transpose_conv2d(
        x.transpose(0, 2, 3, 1),
        w.transpose(1, 2, 3, 0),
        bias,
        factors,
        x_zero_point=7,
        strides=(2, 2),
        size=(8, 8),
    )
    np.testing.assert_array_equal(run(lowered, x).transpose(0, 2, 3, 1), expected)


def test_transposed_convolutions_that_stay_real():
    assert lower_quantized(upsampling()[0], "onnx").count()["ConvTranspose"] == 1
    assert lower_quantized(upsampling(kernel=1)[0], "xnnpack").count()["ConvTranspose"] == 1
    assert lower_quantized(upsampling(kernel=1)[0], "double").count()["QConvTranspose"] == 1


@needs_native
@pytest.mark.parametrize(
    ("act", "function"), [("LeakyRelu", lambda v: np.where(v < 0, 0.2 * v, v)), ("Tanh", np.tanh)]
)
def test_curved_activations_are_tables(act: str, function):
    network, x, *_ = upsampling(act=act)
    lowered = lower_quantized(network)
    assert dict(lowered.count()) == {"QConvTranspose": 1, "QTable": 1}
    before = run(lower_quantized(upsampling()[0]), x)
    wanted = np.clip(np.rint(function((before + 3.0) * np.float32(0.05)) * 128), -128, 127)
    assert np.abs(run(lowered, x) - wanted).max() <= 1
    assert lower_quantized(network, "xnnpack").count()[act] == 1
