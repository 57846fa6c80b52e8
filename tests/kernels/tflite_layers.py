"""int8 layers of .tflite networks: computed by LiteRT's reference kernels, and again by the NumPy references.

Networks of one layer are built here as well, so that quantisation parameters and geometry can be drawn at random.
"""

from __future__ import annotations

from collections.abc import Iterator
from dataclasses import dataclass, field
from typing import Any

import numpy as np

from dlas.graph.formats.tflite.padding import explicit_pads, transposed_pads
from dlas.kernels.reference import quantized, quantized_elementwise
from dlas.kernels.reference.quantized_transpose import transpose_conv2d
from dlas.kernels.reference.requantize import Requantization, activation_range

ACTIVATION = {0: "none", 1: "relu", 2: "relu-n1-to-1", 3: "relu6"}


@dataclass
class Value:
    """A tensor of a network: its content, and how int8 stands for numbers."""

    data: np.ndarray
    scale: np.ndarray = field(default_factory=lambda: np.float32([1]))
    zero_point: int = 0
    constant: bool = False

    @property
    def step(self) -> float:
        return float(self.scale[0])


@dataclass
class Layer:
    """One operator with what it reads and what LiteRT made of it."""

    op: str
    options: Any
    inputs: list[Value | None]
    output: Value
    reads: tuple[int, ...] = ()
    writes: int = 0


def schema() -> Any:
    from ai_edge_litert import schema_py_generated

    return schema_py_generated


def run_reference(content: bytes, x: np.ndarray) -> Iterator[Layer]:
    """Every operator of a network with one input, as LiteRT's reference kernels compute it."""
    from ai_edge_litert import interpreter as litert

    s = schema()
    names = {v: k for k, v in vars(s.BuiltinOperator).items() if isinstance(v, int)}
    runner = litert.Interpreter(
        model_content=content,
        experimental_op_resolver_type=litert.OpResolverType.BUILTIN_REF,
        experimental_preserve_all_tensors=True,
        num_threads=1,
    )
    runner.allocate_tensors()
    details = {d["index"]: d["quantization_parameters"] for d in runner.get_tensor_details()}
    runner.set_tensor(runner.get_input_details()[0]["index"], x)
    runner.invoke()

    def value(index: int) -> Value | None:
        if index < 0:
            return None
        found = details[index]
        zeros = found["zero_points"]
        assert len(set(zeros.tolist())) <= 1
        data = np.array(runner.get_tensor(index))
        return Value(data, np.array(found["scales"]), int(zeros[0]) if len(zeros) else 0)

    model = s.ModelT.InitFromObj(s.Model.GetRootAs(content, 0))
    for operator in model.subgraphs[0].operators:
        code = model.operatorCodes[operator.opcodeIndex]
        op = names[max(code.builtinCode, code.deprecatedBuiltinCode)]
        output = value(operator.outputs[0])
        assert output is not None
        inputs = [int(i) for i in operator.inputs]
        values = [value(i) for i in inputs]
        yield Layer(op, operator.builtinOptions, values, output, tuple(inputs), int(operator.outputs[0]))


def compute(layer: Layer, rounding: str) -> np.ndarray | None:
    """The layer by the NumPy references; None for an operator that they do not have."""
    function = _COMPUTE.get(layer.op)
    if function is None or layer.output.data.dtype not in (np.int8, np.float32):
        return None
    return function(layer, rounding)


def _window(o: Any, x: np.ndarray, kernel: tuple[int, int]) -> dict[str, Any]:
    strides = (o.strideH, o.strideW)
    dilations = (getattr(o, "dilationHFactor", 1), getattr(o, "dilationWFactor", 1))
    padding = "SAME" if o.padding == 0 else "VALID"
    return {
        "strides": strides,
        "dilations": dilations,
        "pads": explicit_pads(padding, x.shape[1:3], kernel, strides, dilations),
    }


def _requantization(layer: Layer, rounding: str, make: Any = Requantization.of) -> Requantization:
    x, w, y = layer.inputs[0], layer.inputs[1], layer.output
    assert x is not None
    assert w is not None
    activation = ACTIVATION[layer.options.fusedActivationFunction]
    return make(x.step, w.scale, y.step, y.zero_point, activation=activation, rounding=rounding)


def _conv(layer: Layer, rounding: str) -> np.ndarray:
    x, w, b = (*layer.inputs, None)[:3]
    assert x is not None
    assert w is not None
    function = quantized.conv2d if layer.op == "CONV_2D" else quantized.depthwise_conv2d
    return function(
        x.data, w.data, None if b is None else b.data, _requantization(layer, rounding),
        x_zero_point=x.zero_point, **_window(layer.options, x.data, w.data.shape[1:3]),
    )  # fmt: skip


def _transposed(layer: Layer, rounding: str) -> np.ndarray:
    """The output's size is the first input."""
    w, x, b = (*layer.inputs[1:], None)[:3]
    assert x is not None
    assert w is not None
    o, size = layer.options, layer.output.data.shape[1:3]
    strides, kernel = (o.strideH, o.strideW), w.data.shape[1:3]
    pads, _ = transposed_pads(
        "SAME" if o.padding == 0 else "VALID", x.data.shape[1:3], kernel, strides, (1, 1), size
    )
    found = Layer(layer.op, o, [x, w, b], layer.output)
    return transpose_conv2d(
        x.data, w.data, None if b is None else b.data, _requantization(found, rounding),
        x_zero_point=x.zero_point, size=size, strides=strides, begins=pads[:2],
    )  # fmt: skip


def _fully_connected(layer: Layer, rounding: str) -> np.ndarray:
    x, w, b = (*layer.inputs, None)[:3]
    assert x is not None
    assert w is not None
    found = quantized.fully_connected(
        x.data.reshape(-1, w.data.shape[1]),
        w.data,
        None if b is None else b.data,
        _requantization(layer, rounding, quantized.fully_connected_requantization),
        x_zero_point=x.zero_point,
    )
    return found.reshape(layer.output.data.shape)


def _pool(layer: Layer, rounding: str) -> np.ndarray:
    x, o, y = layer.inputs[0], layer.options, layer.output
    assert x is not None
    kernel = (o.filterHeight, o.filterWidth)
    low, high = activation_range(ACTIVATION[o.fusedActivationFunction], y.step, y.zero_point)
    window = _window(o, x.data, kernel)
    del window["dilations"]
    function = quantized.average_pool2d if layer.op == "AVERAGE_POOL_2D" else quantized.max_pool2d
    return function(x.data, kernel, **window, low=low, high=high)


def _binary(layer: Layer, rounding: str) -> np.ndarray:
    (a, b), y = layer.inputs, layer.output
    assert a is not None
    assert b is not None
    function = quantized_elementwise.add if layer.op == "ADD" else quantized_elementwise.mul
    return function(
        a.data, b.data, a_scale=a.step, a_zero_point=a.zero_point, b_scale=b.step, b_zero_point=b.zero_point,
        y_scale=y.step, y_zero_point=y.zero_point, rounding=rounding,
        activation=ACTIVATION[layer.options.fusedActivationFunction],
    )  # fmt: skip


def _softmax(layer: Layer, rounding: str) -> np.ndarray:
    x = layer.inputs[0]
    assert x is not None
    return quantized_elementwise.softmax(x.data, x_scale=x.step, beta=layer.options.beta, rounding=rounding)


def _mean(layer: Layer, rounding: str) -> np.ndarray:
    (x, axes), y = layer.inputs, layer.output
    assert x is not None
    assert axes is not None
    return quantized.mean(
        x.data, axes.data.ravel().tolist(), x_scale=x.step, x_zero_point=x.zero_point, y_scale=y.step,
        y_zero_point=y.zero_point, keep_dims=layer.options.keepDims, rounding=rounding,
    )  # fmt: skip


def _pad(layer: Layer, rounding: str) -> np.ndarray:
    x, widths = layer.inputs[:2]
    assert x is not None
    assert widths is not None
    return quantized.pad(x.data, [(int(a), int(b)) for a, b in widths.data], x.zero_point)


def _quantize(layer: Layer, rounding: str) -> np.ndarray:
    x, y = layer.inputs[0], layer.output
    assert x is not None
    if x.data.dtype == np.float32:
        return quantized_elementwise.quantize(x.data, y.step, y.zero_point, rounding=rounding)
    return quantized_elementwise.requantize(
        x.data, x_scale=x.step, x_zero_point=x.zero_point, y_scale=y.step, y_zero_point=y.zero_point,
        rounding=rounding,
    )  # fmt: skip


def _dequantize(layer: Layer, rounding: str) -> np.ndarray:
    x = layer.inputs[0]
    assert x is not None
    return quantized_elementwise.dequantize(x.data, x.step, x.zero_point)


_COMPUTE = {
    "CONV_2D": _conv,
    "DEPTHWISE_CONV_2D": _conv,
    "TRANSPOSE_CONV": _transposed,
    "FULLY_CONNECTED": _fully_connected,
    "AVERAGE_POOL_2D": _pool,
    "MAX_POOL_2D": _pool,
    "ADD": _binary,
    "MUL": _binary,
    "SOFTMAX": _softmax,
    "MEAN": _mean,
    "PAD": _pad,
    "QUANTIZE": _quantize,
    "DEQUANTIZE": _dequantize,
}


def one_layer(op: str, inputs: list[Value], output: Value, options: Any, *, version: int = 3) -> bytes:
    """A network of one operator; inputs after the first are constants unless they say otherwise."""
    import flatbuffers

    s = schema()
    code = s.OperatorCodeT()
    code.builtinCode = getattr(s.BuiltinOperator, op)
    code.deprecatedBuiltinCode = min(code.builtinCode, 127)
    code.version = version
    buffers, tensors = [s.BufferT()], []
    for place, value in enumerate([*inputs, output]):
        tensor = s.TensorT()
        tensor.name, tensor.shape, tensor.type = f"t{place}", list(value.data.shape), _type(value.data)
        tensor.buffer = 0
        if value.constant:
            buffer = s.BufferT()
            buffer.data = np.frombuffer(np.ascontiguousarray(value.data).tobytes(), np.uint8)
            tensor.buffer = len(buffers)
            buffers.append(buffer)
        if value.data.dtype in (np.int8, np.int32):
            tensor.quantization = s.QuantizationParametersT()
            tensor.quantization.scale = value.scale
            tensor.quantization.zeroPoint = np.full(len(value.scale), value.zero_point, np.int64)
            tensor.quantization.quantizedDimension = 3 if op == "DEPTHWISE_CONV_2D" and place == 1 else 0
        tensors.append(tensor)
    operator = s.OperatorT()
    operator.inputs, operator.outputs = list(range(len(inputs))), [len(inputs)]
    operator.builtinOptions = options
    if options is not None:
        kind = type(options).__name__.removesuffix("T")
        operator.builtinOptionsType = getattr(s.BuiltinOptions, kind)
    graph = s.SubGraphT()
    graph.tensors, graph.operators = tensors, [operator]
    graph.inputs = [i for i, v in enumerate(inputs) if not v.constant]
    graph.outputs = [len(inputs)]
    model = s.ModelT()
    model.version, model.operatorCodes, model.subgraphs, model.buffers = 3, [code], [graph], buffers
    builder = flatbuffers.Builder(1024)
    builder.Finish(model.Pack(builder), b"TFL3")
    return bytes(builder.Output())


def run_default(content: bytes, x: np.ndarray) -> np.ndarray:
    """Output of a network as LiteRT runs it unless told otherwise: by XNNPACK."""
    from ai_edge_litert import interpreter as litert

    runner = litert.Interpreter(model_content=content, num_threads=1)
    runner.allocate_tensors()
    runner.set_tensor(runner.get_input_details()[0]["index"], x)
    runner.invoke()
    return np.array(runner.get_tensor(runner.get_output_details()[0]["index"]))


def run_ours(content: bytes, x: np.ndarray, rounding: str) -> np.ndarray:
    """Last tensor of a whole network by the references, every layer fed what they computed before."""
    known: dict[int, np.ndarray] = {}
    found = x
    for layer in run_reference(content, x):
        for value, index in zip(layer.inputs, layer.reads, strict=True):
            if value is not None and index in known:
                value.data = known[index].reshape(value.data.shape)
        if layer.op == "RESHAPE":
            assert layer.inputs[0] is not None
            found = layer.inputs[0].data.reshape(layer.output.data.shape)
        else:
            computed = compute(layer, rounding)
            # What else there is computes shapes.
            found = layer.output.data if computed is None else computed
        known[layer.writes] = found
    return found


def random_input(content: bytes, seed: int = 0) -> np.ndarray:
    """Something to feed a network with one input."""
    from ai_edge_litert import interpreter as litert

    details = litert.Interpreter(model_content=content).get_input_details()[0]
    rng = np.random.default_rng(seed)
    if details["dtype"] == np.float32:
        return rng.random(details["shape"], np.float32) * 2 - 0.5
    return rng.integers(-128, 128, details["shape"]).astype(np.int8)


def _type(data: np.ndarray) -> int:
    kinds = schema().TensorType
    return {"int8": kinds.INT8, "int32": kinds.INT32, "float32": kinds.FLOAT32}[data.dtype.name]


def rounding_of(op: str) -> str:
    """How LiteRT 2.3's reference kernel of an operator rounds."""
    return "away" if op == "FULLY_CONNECTED" else "double"


def compare(content: bytes, x: np.ndarray) -> list[tuple[str, int, int]]:
    """Operator, elements that differ and elements in all, for every layer that the references have."""
    found = []
    for layer in run_reference(content, x):
        ours = compute(layer, rounding_of(layer.op))
        if ours is not None:
            assert ours.shape == layer.output.data.shape, layer.op
            assert ours.dtype == layer.output.data.dtype, layer.op
            found.append((layer.op, int((ours != layer.output.data).sum()), ours.size))
    return found
