"""From a Model to the engine's network: shapes bound, constants folded, attributes made explicit."""

from __future__ import annotations

from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import UnsupportedError
from dlas.graph.model import Model
from dlas.graph.padding import fold_padding
from dlas.graph.passes import bind_batch, infer_shapes, simplify
from dlas.kernels.kernel import Node, Operand
from dlas.runtime.engine.network import Call, Network

_WINDOWS = {"Conv", "ConvTranspose", "MaxPool", "AveragePool", "LpPool"}


def lower(model: Model, *, batch: int = 1, fold_pads: bool = True) -> Network:
    """The network of ``model`` with ``batch`` rows.

    Raises:
        ShapeError: A dimension beyond the batch is dynamic.
        UnsupportedError: Shapes inside depend on values, or an operator is not of the ONNX standard.
    """
    graph = bind_batch(model, batch).editable()
    simplify(graph)
    if fold_pads:
        fold_padding(graph)
    infer_shapes(graph)
    names = _Names()
    calls = [_call(node, names) for node in graph.graph if node.op_type != "Constant"]
    inputs = {
        names.of(v): _operand(v)
        for v in graph.graph.inputs
        if not v.is_initializer() and v.name in {s.name for s in model.inputs}
    }
    outputs = {names.of(v): _operand(v) for v in graph.graph.outputs}
    return Network(model.name, tuple(calls), inputs, outputs)


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
    return found
