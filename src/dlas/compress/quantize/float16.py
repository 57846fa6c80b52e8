"""Half precision: weights take half the bytes, and on hardware with float16 units the arithmetic half the time.

Follows IEEE 754 binary16: 11 bits of precision, largest number 65504, smallest 2**-24. Linear in the number of
weights. Not for networks whose activations leave that range: see ``arithmetic=float32``, which stores the weights in
float16 and computes in float32. On CPUs without float16 arithmetic the first form is slower than float32.
"""

from __future__ import annotations

from dataclasses import dataclass, field
from typing import Literal

import numpy as np
import onnx
import onnx_ir as ir

from dlas.compress.method import Change, Method, Plan, Progress, methods
from dlas.core.errors import ModelError, UnsupportedError
from dlas.core.figure import Figure, Source
from dlas.core.options import option, options_dict
from dlas.data.dataset import Dataset
from dlas.graph.analysis import WEIGHTED, layers
from dlas.graph.model import OPSET, Model, Step, step_versions
from dlas.graph.passes import free_name, simplify

LARGEST = float(np.finfo(np.float16).max)
SMALLEST = float(np.finfo(np.float16).smallest_subnormal)
_WORTH_A_CAST = (
    128  # values; the Cast that brings a smaller tensor back to float32 costs more bytes than it saves
)
_HALF, _FULL = ir.DataType.FLOAT16, ir.DataType.FLOAT


@dataclass(frozen=True)
class Options:
    """Options of ``float16``."""

    arithmetic: Literal["float16", "float32"] = option(
        "float16",
        "compute in float16, or store weights in float16 and compute in float32",
        choices=("float16", "float32"),
    )


@methods.register("float16")
class Float16(Method):
    """Store weights, and by choice compute, in float16; inputs and outputs keep their dtype."""

    name = "float16"
    summary = "Half precision: float16 weights, and float16 arithmetic where the hardware has it"
    Options = Options
    options: Options

    def plan(self, model: Model, data: Dataset | None = None) -> Plan:
        """Bytes of every layer before and after; needs no rows."""
        graph, converted = self._convert(model)
        old = {layer.name: layer for layer in layers(_folded(model))}
        changes = []
        totals = [0, 0]
        for layer in layers(Model(graph, model.name)):
            before = old.get(layer.name)
            if before is None or not before.params:
                continue
            totals = [totals[0] + before.weight_bytes, totals[1] + layer.weight_bytes]
            if before.weight_bytes != layer.weight_bytes:
                what = "weights to float16"
                changes.append(
                    Change(layer.name, what, f"{before.weight_bytes} bytes", f"{layer.weight_bytes} bytes")
                )
        expected = {
            "weight_bytes_before": Figure(totals[0], "bytes", Source.ESTIMATED),
            "weight_bytes": Figure(totals[1], "bytes", Source.ESTIMATED),
        }
        return Plan(self.spelled(), tuple(changes), expected, converted.notes())

    def apply(self, model: Model, data: Dataset | None = None, progress: Progress | None = None) -> Model:
        """The network in half precision; see :meth:`Method.apply`.

        Raises:
            UnsupportedError: It has no float32 weights, or is quantised already.
            ModelError: A weight is NaN or infinite.
        """
        graph, converted = self._convert(model)
        if progress is not None:
            progress(1.0, "weights in float16")
        step = Step(
            self.name, options_dict(self.options), step_versions("numpy", "onnx-ir"), converted.notes()
        )
        return model.with_step(graph, step)

    def _convert(self, model: Model) -> tuple[ir.Model, _Converted]:
        graph = _folded(model).ir
        _refuse(graph, model.name)
        converted = _Converted()
        if self.options.arithmetic == "float32":
            _store_half(graph.graph, converted)
        else:
            _compute_half(graph.graph, converted)
        if not converted.tensors:
            raise UnsupportedError(f"{model.name} has no float32 weights to turn into float16")
        return graph, converted


@dataclass
class _Converted:
    """What the conversion did to the values."""

    tensors: int = 0
    clamped: int = 0
    flushed: int = 0
    raised: int = 0
    worst: list[str] = field(default_factory=list)

    def narrow(self, name: str, array: np.ndarray, *, weight: bool) -> np.ndarray:
        """``array`` in float16 with values out of range moved to the nearest number that exists.

        A tiny number in a ``weight`` becomes 0; elsewhere it becomes the smallest number that is not 0, because it may
        be a divisor. A single infinity is a legitimate constant (a bound, a mask) and stays.
        """
        if np.isnan(array).any() or (array.size > 1 and not np.isfinite(array).all()):
            bad = int((~np.isfinite(array)).sum())
            raise ModelError(
                f"tensor {name!r} has {bad} values of {array.size} that are NaN or infinite", "train it again"
            )
        over = np.isfinite(array) & (np.abs(array) > LARGEST)
        with np.errstate(over="ignore"):
            half = array.astype(np.float16)
        under = (half == 0) & (array != 0)
        half = np.where(over, np.sign(array) * LARGEST, half)
        if weight:
            self.flushed += int(under.sum())
        else:
            half = np.where(under, np.sign(array) * SMALLEST, half)
            self.raised += int(under.sum())
        self.tensors += 1
        self.clamped += int(over.sum())
        if over.any():
            self.worst.append(name)
        return half.astype(np.float16)

    def notes(self) -> tuple[str, ...]:
        """What a reader of the result must know."""
        notes = [f"{self.tensors} tensors became float16"]
        if self.clamped:
            names = ", ".join(self.worst[:5])
            notes.append(f"{self.clamped} values beyond ±{LARGEST:g} were clamped (in {names})")
        if self.flushed:
            notes.append(f"{self.flushed} weights nearer to 0 than float16 can tell became 0")
        if self.raised:
            notes.append(f"{self.raised} constants nearer to 0 than float16 can tell became ±{SMALLEST:.1e}")
        return tuple(notes)


def _folded(model: Model) -> Model:
    graph = model.editable()
    simplify(graph)
    return Model(graph, model.name)


def _refuse(graph: ir.Model, name: str) -> None:
    quantised = [
        str(n.name) for n in graph.graph if "Quantize" in n.op_type or n.op_type.startswith("QLinear")
    ]
    if quantised:
        raise UnsupportedError(
            f"{name} is quantised already (at {quantised[0]!r})", "apply float16 to the network before that"
        )


def _store_half(graph: ir.Graph, converted: _Converted) -> None:
    """Weights in float16, each brought back by one Cast that all its consumers share."""
    first = next(iter(graph), None)
    for value in list(graph.initializers.values()):
        if value.dtype is not _FULL or value.const_value is None or not value.uses():
            continue
        small = value.const_value.size < _WORTH_A_CAST and len(value.const_value.shape) < 2
        if small or value.is_graph_output() or first is None:
            continue
        uses = list(value.uses())
        half = _replace(
            graph,
            value,
            converted.narrow(str(value.name), value.const_value.numpy(), weight=_is_weight(value)),
        )
        cast, wide = _cast(graph, half, _FULL, f"{value.name}_float32")
        graph.insert_before(first, cast)
        for node, index in uses:
            node.replace_input_with(index, wide)


def _compute_half(graph: ir.Graph, converted: _Converted) -> None:
    """Every float32 tensor becomes float16, except at the borders and where an operator is defined for float32 only."""
    opset = graph.opset_imports.get("", OPSET)
    original = {v: _is_weight(v) for v in graph.initializers.values() if v.dtype is _FULL}
    halves: dict[ir.Value, ir.Value] = {}
    fed = {v for v in graph.inputs if v.dtype is _FULL}
    for node in list(graph):
        takes, gives = _float_only(node, opset)
        _retype_attributes(node)
        for index, value in enumerate(node.inputs):
            if value is None or index in takes:
                if value is not None and value.dtype is _HALF and value not in original:
                    node.replace_input_with(index, _between(graph, node, value, _FULL))
            elif value in original:
                if value not in halves:
                    halves[value] = _half_of(graph, value, converted, weight=original[value])
                node.replace_input_with(index, halves[value])
            elif value in fed:
                if value not in halves:
                    halves[value] = _between(graph, node, value, _HALF)
                node.replace_input_with(index, halves[value])
        for index, value in enumerate(node.outputs):
            if value.dtype is _FULL and index not in gives:
                value.dtype = _HALF
            elif value.dtype is _FULL:
                _narrow_output(graph, node, value)
    for position, value in enumerate(graph.outputs):
        if value.dtype is _HALF:
            _widen_output(graph, position, value)
    for value in original:
        if not value.uses() and not value.is_graph_output():
            graph.initializers.pop(str(value.name), None)
    # The weight takes over the name of the one it replaces.
    for value, half in halves.items():
        if value in original and str(value.name) not in graph.initializers:
            graph.initializers.pop(str(half.name))
            half.name = value.name
            graph.register_initializer(half)


def _is_weight(value: ir.Value) -> bool:
    """Whether ``value`` only enters products and sums of layers, where a tiny number can safely be 0."""
    return all(node.op_type in WEIGHTED for node, _ in value.uses())


def _half_of(graph: ir.Graph, value: ir.Value, converted: _Converted, *, weight: bool) -> ir.Value:
    assert value.const_value is not None
    array = converted.narrow(str(value.name), value.const_value.numpy(), weight=weight)
    return _register(graph, free_name(graph, f"{value.name}_float16"), array)


def _replace(graph: ir.Graph, value: ir.Value, array: np.ndarray) -> ir.Value:
    """A new initializer under the name of ``value``, which leaves the graph."""
    for node, index in list(value.uses()):
        node.replace_input_with(index, None)
    graph.initializers.pop(str(value.name))
    return _register(graph, str(value.name), array)


def _register(graph: ir.Graph, name: str, array: np.ndarray) -> ir.Value:
    tensor = ir.tensor(np.asarray(array, order="C"), name=name)
    value = ir.Value(
        name=name, shape=ir.Shape(array.shape), type=ir.TensorType(tensor.dtype), const_value=tensor
    )
    graph.register_initializer(value)
    return value


def _cast(graph: ir.Graph, source: ir.Value, to: ir.DataType, name: str) -> tuple[ir.Node, ir.Value]:
    name = free_name(graph, name)
    result = ir.Value(name=name, shape=source.shape, type=ir.TensorType(to))
    node = ir.Node(
        "",
        "Cast",
        [source],
        [ir.AttrInt64("to", int(to))],
        outputs=[result],
        name=f"{name}_Cast",
    )
    return node, result


def _between(graph: ir.Graph, node: ir.Node, value: ir.Value, to: ir.DataType) -> ir.Value:
    """A Cast of ``value`` before ``node``."""
    cast, result = _cast(graph, value, to, f"{value.name}_{to.name.lower()}")
    graph.insert_before(node, cast)
    return result


def _narrow_output(graph: ir.Graph, node: ir.Node, value: ir.Value) -> None:
    """After a node that gives float32: hand float16 to what follows (graph outputs stay float32)."""
    uses = list(value.uses())
    if not uses:
        return
    cast, result = _cast(graph, value, _HALF, f"{value.name}_float16")
    graph.insert_after(node, cast)
    for user, index in uses:
        user.replace_input_with(index, result)


def _widen_output(graph: ir.Graph, position: int, value: ir.Value) -> None:
    producer = value.producer()
    assert producer is not None
    name = str(value.name)
    value.name = free_name(graph, f"{name}_float16")
    cast, result = _cast(graph, value, _FULL, name)
    graph.append(cast)
    graph.outputs[position] = result


def _retype_attributes(node: ir.Node) -> None:
    """Attributes that name or hold float32 for an output."""
    for key in ("to", "dtype"):
        if key in node.attributes and node.attributes.get_int(key) == int(_FULL):
            node.attributes[key] = ir.AttrInt64(key, int(_HALF))
    if node.op_type == "ConstantOfShape" and "value" in node.attributes:
        tensor = node.attributes["value"].as_tensor()
        if tensor.dtype is _FULL:
            half = ir.tensor(_Converted().narrow(str(node.name), tensor.numpy(), weight=False))
            node.attributes["value"] = ir.AttrTensor("value", half)


def _float_only(node: ir.Node, opset: int) -> tuple[set[int], set[int]]:
    """Positions of inputs and outputs that the operator's definition allows in float32 but not in float16."""
    if node.domain not in ("", "ai.onnx"):
        raise UnsupportedError(
            f"operator {node.domain}::{node.op_type} ({node.name}) has no known float16 form",
            "use float16:arithmetic=float32",
        )
    schema = onnx.defs.get_schema(node.op_type, opset, "")

    def refuses(formal: list[onnx.defs.OpSchema.FormalParameter], index: int) -> bool:
        if not formal:
            return False
        types = formal[min(index, len(formal) - 1)].types
        return "tensor(float)" in types and "tensor(float16)" not in types

    return (
        {i for i in range(len(node.inputs)) if refuses(list(schema.inputs), i)},
        {i for i in range(len(node.outputs)) if refuses(list(schema.outputs), i)},
    )
