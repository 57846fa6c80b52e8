"""ONNX to tflite: one walk over the nodes, with layouts and quantisation kept per value.

A value has a *place*: a tensor of the file and the order in which it stores the axes. DequantizeLinear writes
nothing: its result keeps the integer tensor as its place (a *view*), and an operator whose inputs are views and whose
result goes straight into QuantizeLinear becomes an integer operator. Anything else that needs numbers gets them from
an explicit DEQUANTIZE, and the notes say so.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import DlasError, ModelError, UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.flat import MALFORMED
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.places import Constant, Place, Places
from dlas.graph.formats.tflite.rules import writers
from dlas.graph.formats.tflite.tensors import QUANTISED, Quant

# ONNX operators that want channels last in tflite, and those through which an input's order can be told.
SPATIAL = {
    "Conv", "ConvTranspose", "MaxPool", "AveragePool", "GlobalAveragePool", "GlobalMaxPool", "BatchNormalization",
    "Resize", "DepthToSpace", "SpaceToDepth", "PRelu", "InstanceNormalization",
}  # fmt: skip
MOVES = {"Reshape", "Flatten", "Squeeze", "Unsqueeze", "Transpose", "Identity"}
UNDECIDED = {
    "QuantizeLinear", "DequantizeLinear", "Cast", "Identity", "Relu", "Clip", "Mul", "Add", "Sub", "Div", "Pad",
    "Sigmoid", "Tanh", "LeakyRelu", "HardSwish", "Concat", "Slice",
}  # fmt: skip


@dataclass(frozen=True, eq=False)
class Site:
    """How one node is to be written.

    Attributes:
        result: The value it must produce: its own output, or that of the activation fused into it.
        activation: Fused activation (``NONE``, ``RELU``, ``RELU6``, ``RELU_N1_TO_1``).
        quant: Quantisation of the result when it is computed in integers, else None.
        dtype: dtype of the result in the file.
    """

    result: ir.Value
    activation: str
    quant: Quant | None
    dtype: str


class Writer(Places):
    """State of one translation; the rules of ``ops/`` call its methods."""

    def __init__(self, graph: ir.Graph) -> None:
        super().__init__()
        self.layouts: dict[str, dict[str, list[int]]] = {"inputs": {}, "outputs": {}}
        self._graph = graph
        self._skipped: set[ir.Node] = set()
        self._shift = _mixes_signs(graph)

    def write(self, metadata: Mapping[str, Any]) -> bytes:
        """The tflite file.

        Args:
            metadata: Stored in it, together with the layouts of inputs and outputs.

        Raises:
            UnsupportedError: Some operators cannot be translated; all are named.
        """
        nodes = list(self._graph)
        known = {*writers(), "QuantizeLinear", "DequantizeLinear", "Cast", "Constant"}
        missing = Counter(
            n.op_type for n in nodes if n.op_type not in known or n.domain not in ("", "ai.onnx")
        )
        if missing:
            raise UnsupportedError(
                "no tflite translation for " + ", ".join(f"{k} ({n})" for k, n in sorted(missing.items())),
                f"{len(known)} ONNX operators can be written",
            )
        inputs = [self._input(v) for v in self._graph.inputs if v.name not in self._graph.initializers]
        for node in nodes:
            if node not in self._skipped:
                self._write_node(node)
        if any(v.dtype == ir.DataType.FLOAT16 and v in self._places for n in nodes for v in n.outputs):
            self.note("float16 weights are kept; arithmetic in float32")
        outputs = self._outputs(inputs)
        self._name(inputs, outputs)
        return self.file.finish(inputs, outputs, {**metadata, "layouts": self.layouts})

    def _write_node(self, node: ir.Node) -> None:
        special = {"QuantizeLinear": self._quantize, "DequantizeLinear": self._dequantize, "Cast": self._cast}
        try:
            if node.op_type in special:
                special[node.op_type](node)
            elif node.op_type == "Constant":
                array = node.outputs[0].const_value
                if array is None:
                    raise UnsupportedError(f"Constant {node.name!r} holds something else than a tensor")
                self._constants[node.outputs[0]] = Constant(array.numpy())
            else:
                count = len(self._places)
                writers()[node.op_type](self, node)
                self._note_float(node, list(self._places)[count:])
        except DlasError:
            raise
        except MALFORMED as error:
            raise ModelError(f"{node.op_type} {node.name!r} does not fit its inputs: {error}") from error

    def _note_float(self, node: ir.Node, made: Sequence[ir.Value]) -> None:
        """Say that a node which reads quantised tensors was written in float."""
        read = any(v is not None and self.quant(v) is not None for v in node.inputs)
        if read and any(self.quant(v) is None and self.wide(v) == "float32" for v in made):
            label = node.name or node.outputs[0].name
            self.note(f"{node.op_type} {label!r} is not fully quantised: computed in float")

    # Integer or float

    def site(
        self, node: ir.Node, data: Sequence[ir.Value], *, fuse: bool = False, exact: bool = False
    ) -> Site:
        """Decide how to write a node.

        Args:
            node: The node.
            data: Its inputs that must be integers for an integer operator.
            fuse: It can carry a Relu or Clip.
            exact: It gives the same integers when its result keeps the input's quantisation.
        """
        result, activation = node.outputs[0], "NONE"
        if fuse:
            result, activation = self._fused(result)
        views = [v for v in data if self.quant(v) is not None]
        wanted = self._requested(result)
        if wanted is not None and views and all(self.as_integer(v) is not None for v in data):
            types = {self.file.cells[self._places[v].tensor].dtype for v in views}
            if types == {wanted[1]}:
                return Site(result, activation, *wanted)
        if exact and views:
            cell = self.file.cells[self._places[data[0]].tensor]
            return Site(result, activation, cell.quant, cell.dtype)
        return Site(result, activation, None, self.wide(result))

    def as_float(self, site: Site) -> Site:
        """The same site computed in float."""
        return Site(site.result, site.activation, None, self.wide(site.result))

    def argument(self, site: Site, value: ir.Value, perm: Perm | None = None) -> int:
        """Tensor of a data input: integers when the site is an integer one, else numbers."""
        return self.place(value, perm) if site.quant is not None else self.real(value, perm)

    def as_integer(self, value: ir.Value) -> Constant | Place | None:
        """A view or quantised constant (a uniform float constant is quantised exactly); None for plain numbers."""
        place = self._places.get(value)
        if place is not None:
            return place if self.file.cells[place.tensor].quant is not None else None
        found = self.constant(value)
        if found is None or (found.quant is not None and found.array.dtype in (np.int8, np.uint8)):
            return found
        return None

    def on_grid(self, site: Site, tensor: int) -> int:
        """A result in the quantisation that the site asks for, where the kernel gave it in its input's."""
        held = self.file.cells[tensor].quant
        if site.quant is None or site.quant.same(held):
            return tensor
        return self.requantize(tensor, site.quant, site.dtype)

    def done(self, site: Site, tensor: int, perm: Perm) -> None:
        """Record the result of a site."""
        self.bind(site.result, tensor, perm)

    def _fused(self, value: ir.Value) -> tuple[ir.Value, str]:
        uses = list(value.uses())
        if len(uses) != 1 or value.is_graph_output():
            return value, "NONE"
        node = uses[0].node
        kind = self.activation(node)
        if kind == "NONE" or uses[0].idx != 0:
            return value, "NONE"
        self._skipped.add(node)
        return node.outputs[0], kind

    def activation(self, node: ir.Node) -> str:
        """Fused activation that a Relu or Clip node amounts to, or ``NONE``."""
        if node.op_type == "Relu":
            return "RELU"
        if node.op_type != "Clip":
            return "NONE"
        low, high = (self.bound(node, name, i) for i, name in ((1, "min"), (2, "max")))
        return {(0.0, None): "RELU", (0.0, 6.0): "RELU6", (-1.0, 1.0): "RELU_N1_TO_1"}.get(
            (low, high), "NONE"
        )

    def bound(self, node: ir.Node, name: str, index: int) -> float | None:
        """A bound of a Clip; None when it is open."""
        found = self.parameter(node, name, index)
        if found is None:
            return None
        # The extreme number of the type is an exporter's way to say open.
        half, wide = node.outputs[0].dtype == ir.DataType.FLOAT16, np.dtype(self.wide(node.outputs[0]))
        kind = np.finfo(np.float16 if half else np.float32) if wide.kind == "f" else np.iinfo(wide)
        is_open = found[0] <= float(kind.min) if name == "min" else found[0] >= float(kind.max)
        return None if is_open else float(found[0])

    def _requested(self, value: ir.Value) -> tuple[Quant, str] | None:
        """The one quantisation that every reader of ``value`` asks for."""
        asked = [use.node for use in value.uses()]
        if len(asked) == 1 and asked[0].op_type in MOVES and not value.is_graph_output():
            return self._requested(asked[0].outputs[0])
        if not asked or value.is_graph_output() or any(n.op_type != "QuantizeLinear" for n in asked):
            return None
        found = [self._parameters(n) for n in asked]
        first = found[0]
        return (
            first
            if all(q.same(first[0]) and d == first[1] for q, d in found) and first[0].axis is None
            else None
        )

    def _parameters(self, node: ir.Node) -> tuple[Quant, str]:
        """Quantisation that a Q or DQ node states, and the dtype that stores it in the file."""
        scale = self.need(self.input(node, 1)).astype(np.float32)
        zero = self.optional(node, 2)
        if zero is None:
            dtype, zeros = "uint8", np.zeros(scale.shape, np.int64)
            if node.op_type == "DequantizeLinear":
                held = self.input(node, 0)
                dtype = self.constant_dtype(held) or (held.dtype.numpy().name if held.dtype else dtype)
        else:
            found = self.need(zero)
            dtype, zeros = found.dtype.name, found.astype(np.int64)
        if self._shift and dtype == "uint8":
            dtype, zeros = "int8", zeros - 128
        axis = None
        if scale.size > 1:
            axis = layout.normal_axis(self.attribute(node, "axis", 1), len(self.shape(self.input(node, 0))))
        return Quant(scale.reshape(-1), zeros.reshape(-1), axis), dtype

    def fixed_scale(
        self,
        kind: str,
        inputs: Sequence[int],
        site: Site,
        scale: Callable[[str], Quant] | None,
        options: Any,
    ) -> int:
        """Add an operator shaped like its input, whose integer kernel knows one output quantisation only."""
        shape = self.file.cells[inputs[0]].shape
        quant = site.quant if site.quant is None or scale is None else scale(site.dtype)
        made = self.add(kind, inputs, shape, dtype=site.dtype, quant=quant, options=options)
        if quant is not None and site.quant is not None and not quant.same(site.quant):
            made = self.requantize(made, site.quant, site.dtype)
        return made

    def _quantize(self, node: ir.Node) -> None:
        value, out = self.input(node, 0), node.outputs[0]
        quant, dtype = self._parameters(node)
        if quant.axis is not None or dtype not in QUANTISED:
            raise UnsupportedError(
                f"QuantizeLinear {node.name!r} is per channel or gives {dtype}: int8 per tensor is written"
            )
        held = self.quant(value)
        perm = self.perm(value)
        source = self.place(value)
        if held is not None and held.same(quant) and self.file.cells[source].dtype == dtype:
            self.bind(out, source, perm)
            return
        self.bind(out, self.requantize(source if held is not None else self.real(value), quant, dtype), perm)

    def _dequantize(self, node: ir.Node) -> None:
        value, out = self.input(node, 0), node.outputs[0]
        quant, dtype = self._parameters(node)
        found = self.constant(value)
        if found is not None:
            array = found.array
            if dtype == "int8" and array.dtype == np.uint8:
                array = (array.astype(np.int16) - 128).astype(np.int8)
            self._constants[out] = Constant(array, quant)
            return
        tensor = self.place(value)
        cell = self.file.cells[tensor]
        if cell.dtype != dtype:
            tensor = self.requantize(tensor, quant, dtype)
        elif not quant.same(cell.quant):
            raise UnsupportedError(
                f"DequantizeLinear {node.name!r} reads integers that were quantised otherwise"
            )
        self.bind(out, tensor, self.perm(value))

    def _cast(self, node: ir.Node) -> None:
        value, out = self.input(node, 0), node.outputs[0]
        found = self.constant(value)
        floats = (ir.DataType.FLOAT, ir.DataType.FLOAT16, ir.DataType.DOUBLE)
        if found is not None:
            small = found.quant is not None or found.array.dtype == np.float16
            keep = small and out.dtype in floats
            kept = (
                found
                if keep
                else Constant(found.array.astype(out.dtype.numpy() if out.dtype else np.float32))
            )
            self._constants[out] = kept
            return
        target = self.wide(out)
        if self.wide(value) == target:
            self.bind(out, self.place(value), self.perm(value))
            return
        tensor = self.real(value)
        made = self.add("CAST", [tensor], self.file.cells[tensor].shape, dtype=target)
        self.bind(out, made, self.perm(value))

    # Ends

    def _input(self, value: ir.Value) -> int:
        shape, dtype = self.shape(value), self.wide(value)
        if value.dtype is not None and value.dtype.numpy().name != dtype:
            self.note(f"input {value.name!r} is {dtype} instead of {value.dtype.numpy().name}")
        perm = layout.NCHW_TO_NHWC if len(shape) == 4 and _wants_nhwc(value) else layout.identity(len(shape))
        quant = None
        if dtype in QUANTISED:
            reader = _first_reader(value, "DequantizeLinear")
            if reader is not None:
                shift, self._shift = self._shift, False
                quant, _ = self._parameters(reader)
                self._shift = shift
        tensor = self.file.tensor(layout.permute(shape, perm), dtype, quant, value.name or "")
        self.bind(value, tensor, perm)
        self.layouts["inputs"][value.name or ""] = list(perm)
        return tensor

    def _outputs(self, inputs: Sequence[int]) -> list[int]:
        taken = set(inputs)
        found = []
        for value in self._graph.outputs:
            dtype = "float32" if value.dtype is None else value.dtype.numpy().name
            perm = self.perm(value)
            tensor = self.place(value) if dtype in QUANTISED else self.real(value)
            cell = self.file.cells[tensor]
            if dtype == "uint8" and cell.dtype == "int8" and cell.quant is not None:
                quant = Quant(cell.quant.scale, cell.quant.zero_point + 128)
                tensor = self.requantize(tensor, quant, "uint8")
            elif dtype != cell.dtype:
                self.note(f"output {value.name!r} is {cell.dtype} instead of {dtype}")
            if tensor in taken or self.file.cells[tensor].data:
                tensor = self.copy(tensor)
            taken.add(tensor)
            found.append(tensor)
            self.layouts["outputs"][value.name or ""] = list(perm)
        return found

    def _name(self, inputs: Sequence[int], outputs: Sequence[int]) -> None:
        """Inputs and outputs carry the model's own names; every other tensor gets a name that is free."""
        ends = {*inputs, *outputs}
        for tensor, value in zip(outputs, self._graph.outputs, strict=True):
            self.file.cells[tensor].name = value.name or ""
        taken = {self.file.cells[i].name for i in ends}
        for i, cell in enumerate(self.file.cells):
            if i in ends:
                continue
            base = cell.name or "tensor"
            name, n = base, 0
            while name in taken or not name:
                n += 1
                name = f"{base}_{i}" if n == 1 else f"{base}_{i}_{n}"
            cell.name = name
            taken.add(name)


def _mixes_signs(graph: ir.Graph) -> bool:
    """Whether weights are int8 and activations uint8, which no tflite kernel takes."""
    signed = unsigned = False
    for node in graph:
        if node.op_type == "DequantizeLinear" and node.inputs[0] is not None:
            constant = node.inputs[0].const_value is not None
            signed |= constant and node.inputs[0].dtype == ir.DataType.INT8
            unsigned |= not constant and node.inputs[0].dtype == ir.DataType.UINT8
    return signed and unsigned


def _first_reader(value: ir.Value, kind: str) -> ir.Node | None:
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop(0).uses():
            if use.node.op_type == kind:
                return use.node
            fresh = [v for v in use.node.outputs if v not in seen]
            seen.update(fresh)
            waiting += fresh
    return None


def _wants_nhwc(value: ir.Value) -> bool:
    """Whether a 4-D input is NCHW: the first operator that minds the order takes channels first."""
    waiting, seen = [value], {value}
    while waiting:
        for use in waiting.pop(0).uses():
            if use.node.op_type in SPATIAL:
                return True
            if use.node.op_type not in UNDECIDED:
                continue
            fresh = [v for v in use.node.outputs if v not in seen]
            seen.update(fresh)
            waiting += fresh
    return False
