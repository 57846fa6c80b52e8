"""Where the values of an ONNX graph are in the tflite file being written, and how operators are added to it.

A value has a *place*: a tensor of the file and the order in which it stores the axes. A constant has none until an
operator asks for it.
"""

from __future__ import annotations

from collections.abc import Sequence
from dataclasses import dataclass
from typing import Any

import numpy as np
import onnx_ir as ir

from dlas.core.errors import ModelError, UnsupportedError
from dlas.graph.formats.tflite import layout
from dlas.graph.formats.tflite.builder import Builder
from dlas.graph.formats.tflite.flat import schema
from dlas.graph.formats.tflite.layout import Perm
from dlas.graph.formats.tflite.tensors import Quant


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


class Places:
    """Values and their places; the base of the writer."""

    def __init__(self) -> None:
        self.file = Builder()
        self.notes: list[str] = []
        self._places: dict[ir.Value, Place] = {}
        self._orders: dict[tuple[int, Perm], int] = {}
        self._reals: dict[int, int] = {}
        self._reshaped: dict[int, int] = {}
        self.zero_padded: dict[int, tuple[int, tuple[tuple[int, int], ...]]] = {}
        self._constants: dict[ir.Value, Constant] = {}

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
        """Tensor with another shape, same elements in the same order; a reshape of a reshape is one, or none."""
        tensor = self._reshaped.get(tensor, tensor)
        if self.file.cells[tensor].shape == tuple(shape):
            return tensor
        options = self.file.options("ReshapeOptions", newShape=np.array(shape, np.int32))
        made = self.add("RESHAPE", [tensor, self.ints(shape)], shape, like=tensor, options=options)
        self._reshaped[made] = tensor
        return made

    def copy(self, tensor: int) -> int:
        """Another tensor with the same content."""
        shape = self.file.cells[tensor].shape
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

    def constant_dtype(self, value: ir.Value) -> str | None:
        """Stored dtype of a constant; None for a computed value."""
        found = self.constant(value)
        return None if found is None else found.array.dtype.name

    def requantize(self, tensor: int, quant: Quant, dtype: str) -> int:
        """``tensor`` (numbers or integers) stored as integers of this quantisation."""
        options = self.file.options("QuantizeOptions")
        shape = self.file.cells[tensor].shape
        return self.add("QUANTIZE", [tensor], shape, dtype=dtype, quant=quant, options=options)

    def note(self, text: str) -> None:
        """Keep a remark for the user, once."""
        if text not in self.notes:
            self.notes.append(text)


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
