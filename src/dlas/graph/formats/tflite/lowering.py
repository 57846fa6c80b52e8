"""Operators that tflite lacks, rewritten into ones it has, before a network is written.

Those that ONNX itself defines as functions are replaced by that definition; recurrent layers are unrolled, contractions
become matrix products. The rewritten graph is ONNX too and computes the same up to rounding.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from dataclasses import dataclass, field
from typing import Any

import numpy as np
import onnx
import onnx_ir as ir
from onnx import inliner

from dlas.core.errors import UnsupportedError
from dlas.graph.formats.tflite.layout import normal_axis
from dlas.graph.passes import simplify

# Operators whose definition in the ONNX standard is a function of simpler ones.
FUNCTIONS = (
    "Attention", "Celu", "GroupNormalization", "LayerNormalization", "MeanVarianceNormalization", "Mish",
    "RMSNormalization", "ReduceL1", "ReduceL2", "ReduceLogSum", "ReduceSumSquare",
    "RotaryEmbedding", "Selu", "Shrink", "Softsign", "Swish", "ThresholdedRelu",
)  # fmt: skip

Lowering = Callable[["Rewrite"], Sequence[ir.Value | None]]
"""Builds the replacement of one node; one value per output, None for an output that nothing reads."""


@dataclass
class Rewrite:
    """The node being replaced, and the nodes that replace it.

    Attributes:
        graph: The graph.
        node: The node.
        nodes: Its replacement so far.
    """

    graph: ir.Graph
    node: ir.Node
    nodes: list[ir.Node] = field(default_factory=list)

    def op(self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any) -> ir.Value:
        """Add a node; returns its first output."""
        return self.ops(kind, *inputs, outputs=outputs, **attributes)[0]

    def ops(
        self, kind: str, *inputs: ir.Value | None, outputs: int = 1, **attributes: Any
    ) -> Sequence[ir.Value]:
        """Add a node; returns all its outputs."""
        made = ir.node(kind, list(inputs), attributes, num_outputs=outputs)
        base = self.node.name or self.node.outputs[0].name or kind
        made.name = f"{base}/{kind}_{len(self.nodes)}"
        for place, value in enumerate(made.outputs):
            value.name = f"{made.name}:{place}"
        self.nodes.append(made)
        return made.outputs

    def constant(self, array: Any, dtype: Any = None) -> ir.Value:
        """A constant."""
        tensor = ir.tensor(np.asarray(array, dtype))
        return self.op("Constant", value=ir.AttrTensor("value", tensor))

    def ints(self, *values: int) -> ir.Value:
        """A list of int64, such as axes."""
        return self.constant(list(values), np.int64)

    def input(self, index: int) -> ir.Value:
        """An input that the node must have."""
        value = self.optional(index)
        if value is None:
            raise UnsupportedError(f"{self.node.op_type} {self.node.name!r} lacks input {index}")
        return value

    def optional(self, index: int) -> ir.Value | None:
        """An input, or None when it is left out."""
        return self.node.inputs[index] if index < len(self.node.inputs) else None

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Sizes; raises UnsupportedError when one is not a number."""
        if value.shape is None or not all(isinstance(d, int) for d in value.shape):
            raise UnsupportedError(f"{self.node.op_type} {self.node.name!r} has a tensor of unknown shape")
        return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]

    def attribute(self, name: str, default: Any = None) -> Any:
        """An attribute's value."""
        found = self.node.attributes.get(name)
        return default if found is None else found.value

    def array(self, index: int) -> np.ndarray | None:
        """A constant input; None when it is computed or left out."""
        value = self.optional(index)
        if value is None or value.is_graph_input():
            return None
        tensor = ir.convenience.get_const_tensor(value)
        return None if tensor is None else tensor.numpy()


def lower(graph: ir.Model) -> ir.Model:
    """A graph without the operators that have a rewriting; the same object when there are none.

    Raises:
        UnsupportedError: A form of an operator that its rewriting does not know.
    """
    from dlas.graph.formats.tflite.contraction import EINSUM
    from dlas.graph.formats.tflite.unrolling import RECURRENT

    rewritings = _OWN | EINSUM | RECURRENT
    changed = _fuse_gelu(graph.graph)
    functions = [n for n in graph.graph if n.op_type in FUNCTIONS and n.domain in ("", "ai.onnx")]
    if functions:
        for node in functions:
            _state_defaults(node, graph.graph.opset_imports.get("", 1))
        proto = inliner.inline_selected_functions(
            ir.to_proto(graph), [("", kind) for kind in FUNCTIONS], inline_schema_functions=True
        )
        graph, changed = ir.from_proto(_inferred(proto)), True
        simplify(graph)
    for node in list(graph.graph):
        rewriting = rewritings.get(node.op_type) if node.domain in ("", "ai.onnx") else None
        if rewriting is not None:
            _replace(Rewrite(graph.graph, node), rewriting)
            changed = True
    if changed:
        simplify(graph)
        graph.graph.sort()
    return graph


def _state_defaults(node: ir.Node, opset: int) -> None:
    """Write out attributes that are left to their default, which the inliner does not fill in."""
    for name, attribute in onnx.defs.get_schema(node.op_type, opset, "").attributes.items():
        default = attribute.default_value
        if name not in node.attributes and default.type != onnx.AttributeProto.UNDEFINED:
            node.attributes[name] = ir.from_proto(default)


def _inferred(proto: onnx.ModelProto) -> onnx.ModelProto:
    return onnx.shape_inference.infer_shapes(proto, data_prop=True)


def _replace(rewrite: Rewrite, rewriting: Lowering) -> None:
    old = rewrite.node
    results = rewriting(rewrite)
    rewrite.graph.insert_before(old, rewrite.nodes)
    for was, now in zip(old.outputs, results, strict=False):
        if now is None:
            if list(was.uses()) or was.is_graph_output():
                raise UnsupportedError(f"output {was.name!r} of {old.op_type} {old.name!r} cannot be written")
            continue
        name, was.name = was.name, f"{was.name}.lowered"
        now.shape, now.type = was.shape or now.shape, was.type or now.type
        was.replace_all_uses_with(now, replace_graph_outputs=True)
        now.name = name
    rewrite.graph.remove(old, safe=True)


def _fuse_gelu(graph: ir.Graph) -> bool:
    """``x * 0.5 * (1 + erf(x / sqrt 2))``, as exporters below opset 20 spell it, becomes Gelu."""
    if graph.opset_imports.get("", 0) < 13:
        return False
    fused = False
    for erf in [n for n in graph if n.op_type == "Erf"]:
        scaled = erf.inputs[0].producer() if erf.inputs[0] is not None else None
        plus = _only_reader(erf.outputs[0], "Add")
        if scaled is None or plus is None or scaled.op_type not in ("Div", "Mul"):
            continue
        x, factor = scaled.inputs[0], _scalar(scaled.inputs[1])
        wanted = np.sqrt(2.0) if scaled.op_type == "Div" else np.sqrt(0.5)
        if (
            x is None
            or factor is None
            or abs(factor - wanted) > 1e-4
            or _scalar(_other(plus, erf.outputs[0])) != 1.0
        ):
            continue
        last = _times_half(plus.outputs[0], x)
        if last is None:
            continue
        rewrite = Rewrite(graph, last)
        made = rewrite.op("Gelu", x)
        graph.insert_before(last, rewrite.nodes)
        was = last.outputs[0]
        name, was.name = was.name, f"{was.name}.fused"
        made.shape, made.type = was.shape, was.type
        was.replace_all_uses_with(made, replace_graph_outputs=True)
        made.name = name
        fused = True
    if fused:
        graph.opset_imports[""] = max(graph.opset_imports.get("", 0), 20)
    return fused


def _times_half(value: ir.Value, x: ir.Value) -> ir.Node | None:
    """The node that gives ``0.5 * x * value``, its three factors in any order; None without one."""
    product = _only_reader(value, "Mul")
    if product is None:
        return None
    other = _other(product, value)
    if _scalar(other) == 0.5:
        last = _only_reader(product.outputs[0], "Mul")
        return last if last is not None and _other(last, product.outputs[0]) is x else None
    if other is x:
        last = _only_reader(product.outputs[0], "Mul")
        return last if last is not None and _scalar(_other(last, product.outputs[0])) == 0.5 else None
    half = other.producer() if other is not None else None
    if half is not None and half.op_type == "Mul" and x in half.inputs and _scalar(_other(half, x)) == 0.5:
        return product
    return None


def _only_reader(value: ir.Value, kind: str) -> ir.Node | None:
    uses = list(value.uses())
    if len(uses) != 1 or value.is_graph_output() or uses[0].node.op_type != kind:
        return None
    return uses[0].node


def _other(node: ir.Node, value: ir.Value) -> ir.Value | None:
    return node.inputs[1] if node.inputs[0] is value else node.inputs[0]


def _scalar(value: ir.Value | None) -> float | None:
    tensor = None if value is None else ir.convenience.get_const_tensor(value)
    return float(tensor.numpy().reshape(-1)[0]) if tensor is not None and tensor.size == 1 else None


def _erf(r: Rewrite) -> list[ir.Value]:
    """Abramowitz and Stegun 7.1.26, absolute error at most 1.5e-7."""
    x = r.input(0)
    size = r.op("Abs", x)
    one = r.constant(1.0, np.float32)
    scaled = r.op("Add", r.op("Mul", size, r.constant(0.3275911, np.float32)), one)
    t = r.op("Div", one, scaled)
    total = r.constant(1.061405429, np.float32)
    for factor in (-1.453152027, 1.421413741, -0.284496736, 0.254829592):
        total = r.op("Add", r.op("Mul", total, t), r.constant(factor, np.float32))
    bell = r.op("Exp", r.op("Neg", r.op("Mul", x, x)))
    rest = r.op("Mul", r.op("Mul", total, t), bell)
    return [r.op("Mul", r.op("Sign", x), r.op("Sub", one, rest))]


def _instance_norm(r: Rewrite) -> list[ir.Value]:
    x, scale, shift = (r.input(i) for i in range(3))
    rank = len(r.shape(x))
    axes = r.ints(*range(2, rank))
    column = r.ints(1, -1, *[1] * (rank - 2))
    centred = r.op("Sub", x, r.op("ReduceMean", x, axes, keepdims=1))
    variance = r.op("ReduceMean", r.op("Mul", centred, centred), axes, keepdims=1)
    deviation = r.op("Sqrt", r.op("Add", variance, r.constant(r.attribute("epsilon", 1e-5), np.float32)))
    scaled = r.op("Mul", r.op("Div", centred, deviation), r.op("Reshape", scale, column))
    return [r.op("Add", scaled, r.op("Reshape", shift, column))]


def _lp_norm(r: Rewrite) -> list[ir.Value]:
    x, axis = r.input(0), r.ints(r.attribute("axis", -1))
    if r.attribute("p", 2) == 1:
        norm = r.op("ReduceSum", r.op("Abs", x), axis, keepdims=1)
    else:
        norm = r.op("Sqrt", r.op("ReduceSum", r.op("Mul", x, x), axis, keepdims=1))
    dtype = _float(r, x)
    empty = r.op("Equal", norm, r.constant(0, dtype))
    return [r.op("Div", x, r.op("Where", empty, r.constant(1, dtype), norm))]


def _float(r: Rewrite, value: ir.Value) -> np.dtype:
    """Dtype of ``value`` in NumPy; raises UnsupportedError when it is not a floating point one."""
    dtype = np.dtype(np.float32) if value.dtype is None else value.dtype.numpy()
    if not np.issubdtype(dtype, np.floating):
        raise UnsupportedError(f"{r.node.op_type} {r.node.name!r} of {dtype.name} cannot be written")
    return dtype


def _softplus(r: Rewrite) -> list[ir.Value]:
    """``max(x, 0) + log(1 + exp(-|x|))``: the definition's ``exp(x)`` leaves the range of float32 at 89."""
    x = r.input(0)
    small = r.op("Exp", r.op("Neg", r.op("Abs", x)))
    return [r.op("Add", r.op("Relu", x), r.op("Log", r.op("Add", small, r.constant(1, _float(r, x)))))]


def _log_sum_exp(r: Rewrite) -> list[ir.Value]:
    """``m + log(sum(exp(x - m)))`` with the largest element ``m``, for the same reason."""
    x = r.input(0)
    opset, limit = r.graph.opset_imports.get("", 1), np.finfo(_float(r, x)).max
    stated = r.array(1) if r.optional(1) is not None else r.attribute("axes", ())
    if stated is None:
        raise UnsupportedError(f"ReduceLogSumExp {r.node.name!r} has computed axes")
    axes = [int(a) for a in stated]
    if not axes and r.attribute("noop_with_empty_axes", 0):
        return [r.op("Identity", x)]
    axes = axes or list(range(len(r.shape(x))))

    def reduced(kind: str, value: ir.Value, since: int) -> ir.Value:
        if opset < since:
            return r.op(kind, value, axes=axes, keepdims=1)
        return r.op(kind, value, r.ints(*axes), keepdims=1)

    # A row of infinities must not become inf - inf.
    top = r.op("Max", reduced("ReduceMax", x, 18), r.constant(-limit, limit.dtype))
    top = r.op("Min", top, r.constant(limit, limit.dtype))
    total = reduced("ReduceSum", r.op("Exp", r.op("Sub", x, top)), 13)
    result = r.op("Add", top, r.op("Log", total))
    if r.attribute("keepdims", 1):
        return [result]
    return [r.op("Reshape", result, r.ints(*r.shape(r.node.outputs[0])))]


def _fold(kind: str) -> Lowering:
    def rewriting(r: Rewrite) -> list[ir.Value]:
        total = r.input(0)
        for index in range(1, len(r.node.inputs)):
            total = r.op(kind, total, r.input(index))
        return [total]

    return rewriting


def _mean(r: Rewrite) -> list[ir.Value]:
    (total,) = _fold("Add")(r)
    return [r.op("Mul", total, r.constant(1 / len(r.node.inputs), np.float32))]


def _tan(r: Rewrite) -> list[ir.Value]:
    return [r.op("Div", r.op("Sin", r.input(0)), r.op("Cos", r.input(0)))]


def _hyperbolic(sign: str) -> Lowering:
    def rewriting(r: Rewrite) -> list[ir.Value]:
        up, down = r.op("Exp", r.input(0)), r.op("Exp", r.op("Neg", r.input(0)))
        return [r.op("Mul", r.op(sign, up, down), r.constant(0.5, np.float32))]

    return rewriting


def _trilu(r: Rewrite) -> list[ir.Value]:
    x = r.input(0)
    shape = r.shape(x)
    offset = r.array(1)
    if r.optional(1) is not None and offset is None:
        raise UnsupportedError(f"Trilu {r.node.name!r} has a computed diagonal")
    k = int(offset.reshape(-1)[0]) if offset is not None else 0
    keep = (
        np.triu(np.ones(shape[-2:], bool), k)
        if r.attribute("upper", 1)
        else np.tril(np.ones(shape[-2:], bool), k)
    )
    dtype = x.dtype.numpy() if x.dtype is not None else np.float32
    return [r.op("Where", r.constant(keep), x, r.constant(0, dtype))]


def _lrn(r: Rewrite) -> list[ir.Value]:
    """The builtin's reference kernel leaves out the last channel of each window, so it is built of a convolution."""
    x = r.input(0)
    rank, channels, size = len(r.shape(x)), r.shape(x)[1], r.attribute("size")
    places = np.arange(channels)
    ahead = places[None, :] - places[:, None]
    band = (ahead >= -((size - 1) // 2)) & (ahead <= size // 2)
    weight = (band * (r.attribute("alpha", 1e-4) / size)).astype(np.float32)
    bias = np.full(channels, r.attribute("bias", 1.0), np.float32)
    kernel = weight.reshape(channels, channels, *[1] * (rank - 2))
    total = r.op("Conv", r.op("Mul", x, x), r.constant(kernel), r.constant(bias))
    return [r.op("Div", x, r.op("Pow", total, r.constant(r.attribute("beta", 0.75), np.float32)))]


def _gather_elements(r: Rewrite) -> list[ir.Value]:
    picked = r.array(1)
    if picked is None:
        raise UnsupportedError(f"GatherElements {r.node.name!r} has computed indices")
    shape = r.shape(r.input(0))
    axis = normal_axis(r.attribute("axis", 0), len(shape))
    grid = np.indices(picked.shape)
    grid[axis] = np.where(picked < 0, picked + shape[axis], picked)
    return [r.op("GatherND", r.input(0), r.constant(np.moveaxis(grid, 0, -1), np.int64))]


_OWN: dict[str, Lowering] = {
    "Erf": _erf,
    "InstanceNormalization": _instance_norm,
    "LpNormalization": _lp_norm,
    "ReduceLogSumExp": _log_sum_exp,
    "Softplus": _softplus,
    "Sum": _fold("Add"),
    "Mean": _mean,
    "Tan": _tan,
    "Sinh": _hyperbolic("Sub"),
    "Cosh": _hyperbolic("Add"),
    "Trilu": _trilu,
    "LRN": _lrn,
    "GatherElements": _gather_elements,
}
