"""Other engines inside the engine: a run of calls cut out as a Model and given to a back end."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.model import OPSET, Model
from dlas.kernels.kernel import ACTIVATIONS, Operand
from dlas.runtime.backend import backend_for, backends
from dlas.runtime.engine.network import Call, Network

# `reference` is ONNX's own NumPy evaluator, always there and slow.
DELEGATES = ("onnxruntime", "openvino", "litert", "torch", "tvm", "reference")
_BY_NUMBER = {number: name for name, number in ACTIVATIONS.items()}
_ENGINE_ONLY = frozenset({"Silu", "Reorder"})


def delegate_refuses(name: str, call: Call) -> str:
    """Why a delegate cannot compute a call, or an empty string."""
    if call.node.op.startswith("Q") and call.node.op[1:2].isupper() and call.node.op not in ("QLinearConv",):
        return f"{call.node.op} is an operator of the engine alone"
    return "" if name == "reference" else backends.get(name).missing()


def as_model(calls: Sequence[Call], network: Network) -> Model:
    """The calls as a Model of their own: inputs are what they read from elsewhere, outputs what others read."""
    made = {name for call in calls for name in call.outputs}
    inside = {id(call) for call in calls}
    outside = {name for call in network.calls if id(call) not in inside for name in call.reads}
    read = list(dict.fromkeys(name for call in calls for name in call.reads if name not in made))
    values: dict[str, ir.Value] = {}
    operands = network.operands
    graph_inputs = [_value(name, operands[name], values) for name in read]
    nodes: list[ir.Node] = []
    initializers: list[ir.Value] = []
    for call in calls:
        nodes += _nodes(call, values, initializers)
    given = [n for call in calls for n in call.outputs if n in outside or n in network.outputs]
    graph = ir.Graph(
        graph_inputs,
        [values[name] for name in given],
        nodes=nodes,
        initializers=initializers,
        opset_imports={"": OPSET, "com.microsoft": 1},
        name=f"part of {network.name}",
    )
    return Model.from_proto(ir.serde.serialize_model(ir.Model(graph, ir_version=10)))


def _value(name: str, operand: Operand, values: dict[str, ir.Value]) -> ir.Value:
    if name not in values:
        dtype = ir.DataType.from_numpy(np.dtype(operand.dtype))
        values[name] = ir.Value(name=name, shape=ir.Shape(operand.shape), type=ir.TensorType(dtype))
    return values[name]


def _nodes(call: Call, values: dict[str, ir.Value], initializers: list[ir.Value]) -> list[ir.Node]:
    """ONNX nodes of a call: the operator, then the residual and the activation that were fused into it."""
    inputs: list[ir.Value | None] = []
    for position, (name, operand) in enumerate(zip(call.inputs, call.node.inputs, strict=True)):
        if operand is None:
            inputs.append(None)
        elif operand.constant is not None:
            constant = ir.Value(
                name=f"{call.outputs[0]}/constant {position}",
                shape=ir.Shape(operand.shape),
                type=ir.TensorType(ir.DataType.from_numpy(operand.constant.dtype)),
                const_value=ir.tensor(operand.constant),
            )
            initializers.append(constant)
            inputs.append(constant)
        else:
            inputs.append(_value(name, operand, values))
    outputs = [_value(n, o, values) for n, o in zip(call.outputs, call.node.outputs, strict=True)]
    given = {k: v for k, v in call.node.attributes.items() if not k.startswith("act")}
    residual = inputs.pop() if call.node.op == "Conv" and len(inputs) > 3 else None
    act = _BY_NUMBER[call.node.attributes.get("act", 0)]
    chain: list[ir.Node] = []
    omitted = set(call.node.attributes.get("omitted", ()))

    def last() -> ir.Value:
        return chain[-1].outputs[0]

    if call.node.op == "Silu":
        chain.append(ir.Node("", "Sigmoid", inputs))
        chain.append(ir.Node("", "Mul", [inputs[0], last()]))
    else:
        given.pop("omitted", None)
        if call.node.op in ("Conv", "ConvTranspose", "MaxPool", "AveragePool"):
            given.pop("auto_pad", None)
        while inputs and inputs[-1] is None:
            inputs.pop()
        domain = "com.microsoft" if call.node.op == "MatMulNBits" else ""
        attributes = ir.convenience.convert_attributes({k: _plain(v) for k, v in given.items()})
        count = len(outputs) + len(omitted)
        chain.append(ir.Node(domain, call.node.op, inputs, attributes, num_outputs=count, name=call.name))
    if residual is not None:
        chain.append(ir.Node("", "Add", [last(), residual]))
    chain += _activation(act, call, last, initializers)
    ends = [end for place, end in enumerate(chain[-1].outputs) if place not in omitted]
    for place in omitted:
        chain[-1].outputs[place].name = ""
    for end, wanted in zip(ends, outputs, strict=True):
        end.name, end.shape, end.type = wanted.name, wanted.shape, wanted.type
        values[str(wanted.name)] = end
    return chain


def _activation(
    act: str, call: Call, last: Callable[[], ir.Value], initializers: list[ir.Value]
) -> list[ir.Node]:
    low, high = call.node.attributes.get("act_low", 0.0), call.node.attributes.get("act_high", 0.0)
    if not act:
        return []
    if act == "Clip":
        bounds = []
        for side, number in (("low", low), ("high", high)):
            value = ir.Value(name=f"{call.outputs[0]}/{side}", const_value=ir.tensor(np.float32(number)))
            value.shape, value.type = ir.Shape(()), ir.TensorType(ir.DataType.FLOAT)
            initializers.append(value)
            bounds.append(value)
        return [ir.Node("", "Clip", [last(), *bounds])]
    if act == "Silu":
        gate = ir.Node("", "Sigmoid", [last()])
        return [gate, ir.Node("", "Mul", [last(), gate.outputs[0]])]
    named = {"LeakyRelu": {"alpha": low}, "HardSigmoid": {"alpha": low, "beta": high}}.get(act, {})
    return [ir.Node("", act, [last()], ir.convenience.convert_attributes(named))]


def _plain(value: Any) -> Any:
    return list(value) if isinstance(value, tuple) else value


def _session(model: Model, threads: int) -> Any:
    """ONNX Runtime on a part: its inputs need not begin with one batch, as a back end's must."""
    import onnxruntime

    options = onnxruntime.SessionOptions()
    options.intra_op_num_threads, options.inter_op_num_threads = threads, 1
    options.log_severity_level = 3
    # Two pools that spin at the same time would take the processors from each other.
    options.add_session_config_entry("session.intra_op.allow_spinning", "0")
    return onnxruntime.InferenceSession(model.to_bytes(), options, providers=["CPUExecutionProvider"])


class Part:
    """A cut-out part, compiled: a callable on arrays in the order of ``inputs``.

    Args:
        name: One of :data:`DELEGATES`.
        model: From :func:`as_model`.
        threads: Threads of the other engine.

    Raises:
        UnsupportedError: The back end refuses it.
    """

    def __init__(self, name: str, model: Model, threads: int) -> None:
        self.name = name
        self.inputs = [spec.name for spec in model.inputs]
        self.outputs = [spec.name for spec in model.outputs]
        self._close: Callable[[], None] = lambda: None
        if name == "reference":
            from onnx.reference import ReferenceEvaluator

            evaluator = ReferenceEvaluator(model.to_proto())
            self._run: Callable[[dict[str, np.ndarray]], Any] = lambda feed: evaluator.run(None, feed)
            return
        if name not in DELEGATES:
            raise UnsupportedError(f"{name} cannot compute a part of a network")
        if name == "onnxruntime":
            session = _session(model, threads)
            self._run = lambda feed: session.run(None, feed)
            return
        rows = {int(s.shape[0]) for s in model.inputs if s.shape}
        executable = backend_for(name).compile(model, threads=threads, batch=min(rows, default=1))
        self._run = lambda feed: list(executable.run(feed).values())
        self._close = executable.close

    def __call__(self, arrays: Sequence[np.ndarray]) -> list[np.ndarray]:
        """Outputs in order."""
        feed = {n: np.ascontiguousarray(a) for n, a in zip(self.inputs, arrays, strict=True)}
        return [np.asarray(a) for a in self._run(feed)]

    def close(self) -> None:
        """Let go of the other engine."""
        self._close()
