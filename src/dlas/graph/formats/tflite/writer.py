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
from dlas.graph.formats.tflite.builder import Builder
from dlas.graph.formats.tflite.flat import MALFORMED, schema
from dlas.graph.formats.tflite.layout import Perm
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


@dataclass(frozen=True)
class Place:
    """Where a value is: a tensor of the file, and the order in which it stores the value's axes."""

    tensor: int
    perm: Perm


@dataclass(frozen=True, eq=False)
class Constant:
    """A constant in the dtype to store, in the order of the ONNX graph."""

    array: np.ndarray
    quant: Quant | None = None

    def real(self) -> np.ndarray:
        """Its numbers: float64 for quantised, float32 for float16, else as stored."""
        if self.quant is not None:
            return self.quant.real(self.array)
        return self.array.astype(np.float32) if self.array.dtype == np.float16 else self.array


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


class Writer:
    """State of one translation; the rules of ``ops/`` call its methods."""

    def __init__(self, graph: ir.Graph) -> None:
        self.file = Builder()
        self.notes: list[str] = []
        self.layouts: dict[str, dict[str, list[int]]] = {"inputs": {}, "outputs": {}}
        self._graph = graph
        self._places: dict[ir.Value, Place] = {}
        self._orders: dict[tuple[int, Perm], int] = {}
        self._reals: dict[int, int] = {}
        self._constants: dict[ir.Value, Constant] = {}
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
                writers()[node.op_type](self, node)
        except DlasError:
            raise
        except MALFORMED as error:
            raise ModelError(f"{node.op_type} {node.name!r} does not fit its inputs: {error}") from error

    # What the graph says

    def shape(self, value: ir.Value) -> tuple[int, ...]:
        """Sizes of ``value`` in the graph's order; raises UnsupportedError when one is not a number."""
        if value.shape is None and value in self._constants:
            return self._constants[value].array.shape
        if value.shape is None or not all(isinstance(d, int) for d in value.shape):
            raise UnsupportedError(
                f"tensor {value.name!r} has the shape {value.shape}: a tflite file needs numbers",
                "bind its dimensions first",
            )
        return tuple(int(d) for d in value.shape)  # type: ignore[arg-type]

    def input(self, node: ir.Node, index: int) -> ir.Value:
        """Input of a node; raises ModelError when it is left out."""
        value = self.optional(node, index)
        if value is None:
            raise ModelError(f"{node.op_type} {node.name!r} lacks input {index}")
        return value

    def optional(self, node: ir.Node, index: int) -> ir.Value | None:
        """Input of a node, or None when it is left out."""
        return node.inputs[index] if index < len(node.inputs) else None

    def name(self, node: ir.Node, index: int) -> str:
        """Name of an input of a node."""
        return self.input(node, index).name or ""

    def attribute(self, node: ir.Node, name: str, default: Any = None) -> Any:
        """Attribute of a node, as Python numbers, lists and text."""
        found = node.attributes.get(name)
        return default if found is None else _plain(found.value)

    def parameter(self, node: ir.Node, name: str, index: int) -> list[Any] | None:
        """A list that older opsets keep in attribute ``name`` and newer ones in input ``index``; None if in neither."""
        found = self.attribute(node, name)
        if found is not None:
            return found if isinstance(found, list) else [found]
        value = self.optional(node, index)
        return None if value is None else self.need(value).reshape(-1).tolist()

    def constant(self, value: ir.Value) -> Constant | None:
        """``value`` as a constant, or None when it is computed."""
        if value in self._constants:
            return self._constants[value]
        if value.const_value is not None and value not in self._places:
            array = value.const_value.numpy()
            return self._constants.setdefault(value, Constant(np.asarray(array)))
        return None

    def need(self, value: ir.Value) -> np.ndarray:
        """The numbers of a constant; raises UnsupportedError when it is computed at run time."""
        found = self.constant(value)
        if found is None:
            raise UnsupportedError(
                f"{value.name!r} must be a constant in a tflite file, but is computed",
                "simplify the model first",
            )
        return found.real()

    def wide(self, value: ir.Value) -> str:
        """Dtype in which ``value`` is computed: float16 becomes float32, int64 becomes int32."""
        name = "float32" if value.dtype is None else value.dtype.numpy().name
        return {"float16": "float32", "float64": "float32", "int64": "int32"}.get(name, name)

    # Places

    def perm(self, value: ir.Value) -> Perm:
        """Order in which ``value`` is stored."""
        found = self._places.get(value)
        return found.perm if found else layout.identity(len(self.shape(value)))

    def quant(self, value: ir.Value) -> Quant | None:
        """Quantisation of the tensor that holds ``value``."""
        found = self._places.get(value)
        return None if found is None else self.file.cells[found.tensor].quant

    def place(self, value: ir.Value, perm: Perm | None = None) -> int:
        """Tensor that holds ``value`` as stored (integers for a view), its axes in order ``perm``."""
        if value not in self._places:
            return self._constant_place(value, perm or layout.identity(len(self.shape(value))))
        place = self._places[value]
        if perm is None or perm == place.perm:
            return place.tensor
        return self.reorder(place.tensor, layout.between(place.perm, perm))

    def flat(self, value: ir.Value) -> int:
        """Tensor of ``value`` with its elements in the graph's order; axes of size 1 may stand anywhere."""
        place = self._places.get(value)
        if place is not None and not layout.moves_data(self.shape(value), place.perm):
            return place.tensor
        return self.place(value, layout.identity(len(self.shape(value))))

    def reorder(self, tensor: int, perm: Perm) -> int:
        """Tensor ``tensor`` transposed by ``perm`` (once, however often it is asked for)."""
        key = (tensor, perm)
        if key not in self._orders:
            shape = self.file.cells[tensor].shape
            target = layout.permute(shape, perm)
            if layout.moves_data(shape, perm):
                self._orders[key] = self.add("TRANSPOSE", [tensor, self.ints(perm)], target, like=tensor,
                                             options=self.file.options("TransposeOptions"))  # fmt: skip
            else:
                self._orders[key] = self.reshape(tensor, target)
        return self._orders[key]

    def reshape(self, tensor: int, shape: Sequence[int]) -> int:
        """Tensor with another shape, same elements in the same order."""
        options = self.file.options("ReshapeOptions", newShape=np.array(shape, np.int32))
        return self.add("RESHAPE", [tensor, self.ints(shape)], shape, like=tensor, options=options)

    def real(self, value: ir.Value, perm: Perm | None = None) -> int:
        """Tensor that holds the numbers of ``value``; dequantises a view."""
        return self.to_real(self.place(value, perm))

    def to_real(self, tensor: int) -> int:
        """The numbers (float32) of a tensor that may be quantised or float16."""
        cell = self.file.cells[tensor]
        if cell.dtype != "float16" and cell.quant is None:
            return tensor
        if tensor not in self._reals:
            options = self.file.options("DequantizeOptions")
            self._reals[tensor] = self.add(
                "DEQUANTIZE", [tensor], cell.shape, dtype="float32", options=options
            )
        return self._reals[tensor]

    def bind(self, value: ir.Value, tensor: int, perm: Perm) -> None:
        """``value`` is held by ``tensor`` in order ``perm``."""
        self._places[value] = Place(tensor, perm)
        cell = self.file.cells[tensor]
        if not cell.name:
            cell.name = value.name or ""

    # Emission

    def add(
        self,
        kind: str,
        inputs: Sequence[int],
        shape: Sequence[int],
        *,
        dtype: str = "float32",
        quant: Quant | None = None,
        like: int | None = None,
        options: Any = None,
    ) -> int:
        """Add an operator with one new output; ``like`` gives it the dtype and quantisation of a tensor."""
        if like is not None:
            cell = self.file.cells[like]
            dtype, quant = cell.dtype, cell.quant
        output = self.file.tensor(shape, dtype, quant)
        self.file.add(kind, inputs, [output], options)
        return output

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

    def cut(
        self, tensor: int, begin: Sequence[int], size: Sequence[int], stride: Sequence[int] | None = None
    ) -> int:
        """The part of a tensor from ``begin``, ``size`` elements long, every ``stride``-th; axes in stored order."""
        if tuple(size) == self.file.cells[tensor].shape:
            return tensor
        if stride is None or max(stride) == 1:
            options = self.file.options("SliceOptions")
            inputs = [tensor, self.ints(begin), self.ints(size)]
            return self.add("SLICE", inputs, size, like=tensor, options=options)
        ends = [b + (n - 1) * s + 1 for b, n, s in zip(begin, size, stride, strict=True)]
        options = self.file.options("StridedSliceOptions")
        inputs = [tensor, self.ints(begin), self.ints(ends), self.ints(stride)]
        return self.add("STRIDED_SLICE", inputs, size, like=tensor, options=options)

    def keep(self, value: ir.Value, constant: Constant) -> None:
        """``value`` is a constant."""
        self._constants[value] = constant

    def code(self, kind: str, name: str) -> int:
        """The schema's number of ``name`` in an enumeration."""
        return int(getattr(getattr(schema(), kind), name))

    def ints(self, values: Sequence[int] | np.ndarray) -> int:
        """A constant int32 tensor, such as axes or a shape."""
        return self.file.constant(np.array(values, np.int32))

    def numbers(self, array: np.ndarray) -> int:
        """A constant float32 tensor."""
        return self.file.constant(np.asarray(array, np.float32))

    def weights(self, constant: Constant, perm: Perm, name: str = "", integer: bool = False) -> int:
        """A weight in tflite's order of axes; unless ``integer``, small dtypes are widened by DEQUANTIZE."""
        array = constant.array.transpose(perm)
        quant = None if constant.quant is None else constant.quant.permuted(perm)
        if quant is None and array.dtype not in (np.float16, np.float32):
            array = array.astype(np.float32)
        tensor = self.file.constant(array, quant, name)
        return tensor if integer else self.to_real(tensor)

    def _constant_place(self, value: ir.Value, perm: Perm) -> int:
        found = self.constant(value)
        if found is None:
            raise ModelError(f"tensor {value.name!r} is read before it is computed")
        array = found.array.transpose(perm)
        if array.dtype in (np.int64, np.float64):
            array = _narrow(array, value.name or "")
        quant = None if found.quant is None else found.quant.permuted(perm)
        return self.file.constant(array, quant, value.name or "")

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
        if views:
            self.float_note(node)
        return Site(result, activation, None, self.wide(result))

    def as_float(self, node: ir.Node, site: Site) -> Site:
        """The same site computed in float, with a note."""
        self.float_note(node)
        return Site(site.result, site.activation, None, self.wide(site.result))

    def float_note(self, node: ir.Node) -> None:
        """Say that a node between quantised tensors is computed in float."""
        self.note(
            f"{node.op_type} {node.name or node.outputs[0].name!r} is not fully quantised: computed in float"
        )

    def note(self, text: str) -> None:
        """Keep a remark for the user, once."""
        if text not in self.notes:
            self.notes.append(text)

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
        if found is None or abs(found[0]) >= 65504:  # beyond float16, an exporter's way to say open
            return None
        return float(found[0])

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

    def constant_dtype(self, value: ir.Value) -> str | None:
        """Stored dtype of a constant; None for a computed value."""
        found = self.constant(value)
        return None if found is None else found.array.dtype.name

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

    def requantize(self, tensor: int, quant: Quant, dtype: str) -> int:
        """``tensor`` (numbers or integers) stored as integers of this quantisation."""
        options = self.file.options("QuantizeOptions")
        shape = self.file.cells[tensor].shape
        return self.add("QUANTIZE", [tensor], shape, dtype=dtype, quant=quant, options=options)

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
                tensor = self.reshape(tensor, self.file.cells[tensor].shape)
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


def _plain(value: Any) -> Any:
    if isinstance(value, bytes):
        return value.decode()
    return list(value) if isinstance(value, list | tuple) else value


def _narrow(array: np.ndarray, name: str) -> np.ndarray:
    if array.dtype == np.float64:
        return array.astype(np.float32)
    limits = np.iinfo(np.int32)
    if array.size and (array.min() < limits.min or array.max() > limits.max):
        raise UnsupportedError(f"constant {name!r} needs 64-bit integers; tflite operators take 32-bit ones")
    return array.astype(np.int32)


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
