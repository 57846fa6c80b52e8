"""From a Model to the engine's network: shapes bound, constants folded, attributes made explicit."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.model import Model
from dlas.graph.padding import fold_padding
from dlas.graph.passes import bind_batch, infer_shapes, simplify
from dlas.graph.qoperators import decoded, has_contrib_operators
from dlas.kernels.kernel import Node, Operand
from dlas.runtime.engine.network import Call, Network

_WINDOWS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}
_RESHAPES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "DepthToSpace", "SpaceToDepth", "Transpose"}
# The shape of the result follows from those of the operands ...
_SHAPED = {
    *_WINDOWS, "Flatten", "DepthToSpace", "SpaceToDepth", "Transpose", "GlobalAveragePool", "GlobalMaxPool",
    "BatchNormalization", "Gemm", "MatMul", "Softmax", "LogSoftmax", "Concat", "Add", "Sub", "Mul", "Div", "Pow",
    "Min", "Max", "LSTM", "GRU", "RNN", "QLinearConv", "ConvInteger", "QLinearMatMul", "MatMulInteger",
}  # fmt: skip
# ... or, where all but the first are constants, from their values too.
_TOLD = {
    "Reshape",
    "Squeeze",
    "Unsqueeze",
    "Pad",
    "Slice",
    "ReduceMean",
    "ReduceSum",
    "ReduceMax",
    "ReduceMin",
}


def lower(model: Model, *, batch: int = 1, fold_pads: bool = True) -> Network:
    """The network of ``model`` with ``batch`` rows.

    Raises:
        ModelError: Operands contradict each other.
        ShapeError: A dimension beyond the batch is dynamic.
        UnsupportedError: Shapes inside depend on values, or an operator is not of the ONNX standard.
    """
    if has_contrib_operators(model):
        model = decoded(model)
    graph = bind_batch(model, batch).editable()
    simplify(graph)
    if fold_pads:
        fold_padding(graph)
    _infer_anew(graph)
    names = _Names()
    calls = [_call(node, names) for node in graph.graph if node.op_type != "Constant"]
    inputs = {
        names.of(v): _operand(v)
        for v in graph.graph.inputs
        if not v.is_initializer() and v.name in {s.name for s in model.inputs}
    }
    outputs = {names.of(v): _operand(v) for v in graph.graph.outputs}
    return Network(model.name, tuple(calls), inputs, outputs)


def _infer_anew(graph: ir.Model) -> None:
    """Shapes that follow from the inputs, and what the model says only where none does: kernels write by them."""
    said = {value: value.shape for node in graph.graph for value in node.outputs}
    for value in said:
        value.shape = None
    infer_shapes(graph)
    _refuse_contradictions(graph.graph)
    open_ended = [v for v in said if not _bound(v)]
    for value in open_ended:
        value.shape = said[value]
    if open_ended:
        infer_shapes(graph)


def _bound(value: ir.Value) -> bool:
    return value.shape is not None and all(isinstance(d, int) for d in value.shape)


def _size(value: ir.Value) -> int:
    return math.prod(d for d in value.shape or () if isinstance(d, int))


def _refuse_contradictions(graph: ir.Graph) -> None:
    """Where shapes follow from what is known and inference found none, the operands do not fit each other."""
    for node in graph:
        operands = [v for v in node.inputs if v is not None]
        if node.domain not in ("", "ai.onnx") or not all(map(_bound, operands)):
            continue
        name = f"{node.op_type} {node.name or node.outputs[0].name!r}"
        shapes = ", ".join(_shape_text(v) for v in operands)
        told = all(ir.convenience.get_const_tensor(v) is not None for v in operands[1:])
        follows = node.op_type in _SHAPED or (node.op_type in _TOLD and told)
        if follows and not all(_bound(v) for v in node.outputs if v.name):
            raise ModelError(f"{name}: operands of {shapes} do not fit each other")
        result = node.outputs[0]
        if node.op_type in _RESHAPES and _bound(result) and _size(operands[0]) != _size(result):
            raise ModelError(f"{name}: {shapes} cannot become {_shape_text(result)}")


class _Names:
    """Every value gets a name of its own, also where the graph left it without."""

    def __init__(self) -> None:
        self._given: dict[int, str] = {}

    def of(self, value: ir.Value | None) -> str:
        if value is None:
            return ""
        return self._given.setdefault(id(value), value.name or f"value_{len(self._given)}")


def _call(node: ir.Node, names: _Names) -> Call:
    if node.domain not in ("", "ai.onnx", "com.microsoft"):
        raise UnsupportedError(f"operator {node.domain}::{node.op_type} is not known to the engine")
    inputs = tuple(None if v is None else _operand(v) for v in node.inputs)
    outputs = tuple(_operand(v) for v in node.outputs if v.name)
    attributes = _attributes(node, inputs, outputs)
    omitted = tuple(i for i, v in enumerate(node.outputs) if not v.name)
    if omitted:
        attributes["omitted"] = omitted  # places of outputs that nobody wants
    kernel_node = Node(
        node.op_type,
        node.name or str(next(v for v in node.outputs if v.name).name),
        attributes,
        inputs,
        outputs,
    )
    return Call(
        kernel_node,
        tuple(names.of(v) for v in node.inputs),
        tuple(names.of(v) for v in node.outputs if v.name),
    )


def _operand(value: ir.Value) -> Operand:
    tensor = ir.convenience.get_const_tensor(value)
    if tensor is not None:
        return Operand.of(np.ascontiguousarray(tensor.numpy()).reshape(tuple(tensor.shape.numpy())))
    shape = None if value.shape is None else [d if isinstance(d, int) else None for d in value.shape]
    if shape is None or None in shape or value.dtype is None:
        raise UnsupportedError(
            f"the shape of {value.name!r}, {_shape_text(value)}, is not known before the network runs",
            "bind every dimension first, for example with `--shape NAME=1,3,32,32`",
        )
    return Operand(tuple(int(d) for d in shape if d is not None), value.dtype.numpy().name)


def _shape_text(value: ir.Value) -> str:
    return "of unknown rank" if value.shape is None else "[" + ", ".join(str(d) for d in value.shape) + "]"


def _attributes(
    node: ir.Node, inputs: tuple[Operand | None, ...], outputs: tuple[Operand, ...]
) -> dict[str, Any]:
    found: dict[str, Any] = {}
    for name, attribute in node.attributes.items():
        value = attribute.value
        if attribute.type in (ir.AttributeType.INTS, ir.AttributeType.FLOATS):
            found[name] = tuple(value)
        elif attribute.type in (ir.AttributeType.INT, ir.AttributeType.FLOAT, ir.AttributeType.STRING):
            found[name] = value
        elif attribute.type == ir.AttributeType.STRINGS:
            found[name] = tuple(value)
        else:
            raise UnsupportedError(
                f"{node.op_type} {node.name!r} has an attribute {name} of type {attribute.type}"
            )
    if node.op_type in _WINDOWS:
        found |= _window(node.op_type, found, inputs, outputs)
    if node.op_type == "Gemm" and len(inputs) > 2 and inputs[2] is not None:
        addend, result = inputs[2].shape, outputs[0].shape
        if len(addend) > 2 or any(a not in (1, b) for a, b in zip(addend[::-1], result[::-1], strict=False)):
            raise ModelError(f"Gemm {node.name!r}: C of {addend} does not broadcast to {result}")
    return found


def _window(
    op: str, given: dict[str, Any], inputs: tuple[Operand | None, ...], outputs: tuple[Operand, ...]
) -> dict[str, Any]:
    x = inputs[0]
    assert x is not None
    rank = len(x.shape) - 2
    weight = inputs[1].shape[2:] if op in ("Conv", "ConvTranspose") and inputs[1] is not None else None
    kernel = tuple(given.get("kernel_shape") or weight or ())
    strides = tuple(given.get("strides") or (1,) * rank)
    dilations = tuple(given.get("dilations") or (1,) * rank)
    auto = given.get("auto_pad", "NOTSET")
    pads = tuple(given.get("pads") or (0,) * 2 * rank)
    if auto == "VALID":
        pads = (0,) * 2 * rank
    elif auto.startswith("SAME"):
        totals = []
        for size, out, k, s, d in zip(
            x.shape[2:], outputs[0].shape[2:], kernel, strides, dilations, strict=True
        ):
            reach = (k - 1) * d + 1
            totals.append(
                max(
                    (size - 1) * s + reach - out if op == "ConvTranspose" else (out - 1) * s + reach - size, 0
                )
            )
        small, large = [t // 2 for t in totals], [t - t // 2 for t in totals]
        pads = (*small, *large) if auto == "SAME_UPPER" else (*large, *small)
    found: dict[str, Any] = {"kernel_shape": kernel, "strides": strides, "dilations": dilations, "pads": pads}
    if op in ("Conv", "ConvTranspose"):
        found["group"] = int(given.get("group", 1))
        _check_channels(op, found["group"], inputs)
        if kernel != weight:
            raise ModelError(f"{op}: kernel_shape is {kernel}, the weights have {weight}")
    return found


def _check_channels(op: str, group: int, inputs: tuple[Operand | None, ...]) -> None:
    """Shape inference lets these pass, and native kernels would read and write beyond their arrays."""
    x, weight, bias = inputs[0], inputs[1], inputs[2] if len(inputs) > 2 else None
    assert x is not None
    assert weight is not None
    first, second = weight.shape[:2]
    ins, outs = (second * group, first) if op == "Conv" else (first, second * group)
    fits = group > 0 and first > 0 and second > 0 and first % group == 0 and ins == x.shape[1]
    if not fits or (bias is not None and bias.shape != (outs,)):
        biased = "" if bias is None else f" and a bias of {bias.shape}"
        raise ModelError(f"{op}: weights of {weight.shape} in {group} groups{biased} do not fit {x.shape}")
